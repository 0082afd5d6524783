"""The arms of a few-label study: what each changes in the settings that all of them share. Called by `study`."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.config import FinetuneConfig
from finetune.few_label.config import EVERY_ARM, ArmKind, FewLabelConfig
from finetune.few_label.resenc import plan_resenc
from finetune.train import crop_of
from jaxseg.audit import card_of
from jaxseg.errors import ConfigError, InputError
from jaxseg.models.unet import UNetConfig

ABOUT: dict[str, str] = {
    "scratch": "the network from scratch",
    "pretrained": "the same network, its encoder from the pretraining",
    "untrained": "the pretrained arm's recipe (how its encoder is spared) on untouched first weights",
    "frozen": "the pretrained encoder held still, the rest trained",
    "scratch_x4": "from scratch, with four times the steps",
    "equal_time": "from scratch, with as many steps as fit the pretrained arm's wall time, pretraining's share included",
    "no_transformer": "the same network without its transformer, from scratch: patch embedding, stem and decoder, no hidden states",
    "resenc": "a residual-encoder U-Net from scratch, as nnU-Net would plan it for these crops",
    "resenc_time": "that U-Net, with as many steps as fit the pretrained arm's wall time, pretraining's share included",
    "partial": "the pretrained arm with only every n-th slice of a labelled case contoured",
    "partial_scratch": "from scratch, with only every n-th slice of a labelled case contoured",
    "regions": "the pretrained arm with only every n-th cube of a labelled case contoured, the rest ignored",
    "regions_scratch": "from scratch, with only every n-th cube of a labelled case contoured, the rest ignored",
    "mean_teacher": "the pretrained arm with a mean teacher on the unlabelled pool",
    "pseudo_labels": "the pretrained arm, twice: the second time with the first's confident predictions on the unlabelled pool",
    "anchor": "that U-Net in PyTorch (dynamic-network-architectures), same crops, loss and steps; filled in by `python -m bench.anchor`",
}
INITIALISED = ("pretrained", "frozen", "partial", "regions", "mean_teacher", "pseudo_labels")  # by a pretraining
PACED = {"equal_time": "scratch", "resenc_time": "resenc"}  # by the wall time of a pretrained arm, at the pace of this kind
SAME_LABELS = {"partial": "partial_scratch", "regions": "regions_scratch"}  # from scratch, with as few contours
SEMI = ("mean_teacher", "pseudo_labels")
RIVALS = ("scratch_x4", "untrained", "equal_time", "no_transformer", "resenc", "resenc_time", "anchor")  # of a pretrained arm
FEW = 5  # labelled cases up to which no checkpoint is chosen by its score
_GIVEN = re.compile(r"(?:(\w+)=)?(.+?)(?::(encoder|network))?")


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: in results and folders.
        kind: a key of `ABOUT`.
        init: the pretraining that it starts from, if any.
        take: what of it, "encoder" or "network"; None for `study.finetune.take`.
        given: the arm whose wall time it is given, if its steps follow from that; `pretraining` is then the one that this arm starts from.
    """

    name: str
    kind: str
    init: str = ""
    given: str = ""
    pretraining: str = ""
    take: Literal["encoder", "network"] | None = None


def arms_of(kinds: Sequence[ArmKind], pretrained: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of a study, in the order asked for: one for each pretraining where a kind takes one.

    Raises ConfigError for an unknown kind, two arms of one name, a kind that needs a pretraining where there is none, or one whose steps
    follow from arms that are not asked for.
    """
    unknown = sorted(set(kinds) - set(EVERY_ARM))
    if unknown:
        raise ConfigError(f"unknown arm {', '.join(unknown)}; there are {', '.join(ABOUT)}")
    for given in pretrained:
        name, folder, _ = named_folder(given)
        if not name and re.match(r"[^/\\]*=", folder) and not Path(folder).exists():
            raise ConfigError(f"--pretrained {given}: expected FOLDER or NAME=FOLDER, where NAME has letters, digits and _ alone")
    arms = []
    for kind in kinds:
        if kind not in INITIALISED and kind not in PACED:
            arms.append(Arm(kind, kind))
            continue
        if not pretrained:
            raise ConfigError(f"the arm {kind} needs --pretrained FOLDER (or NAME=FOLDER …)")
        if kind in PACED and not {"pretrained", PACED[kind]} <= set(kinds):
            raise ConfigError(f"the steps of {kind} follow from the seconds of the arms pretrained and {PACED[kind]}: ask for those, too")
        for given in pretrained:
            name, folder, take = named_folder(given)
            end = f"_{name}" if name else ""
            arms.append(
                Arm(kind + end, kind, given=f"pretrained{end}", pretraining=folder)
                if kind in PACED
                else Arm(kind + end, kind, folder, take=take)
            )
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two arms have one name ({', '.join(names)}): name the pretrainings, --pretrained NAME=FOLDER NAME=FOLDER:network"
        )
    return tuple(arms)


def named_folder(given: str) -> tuple[str, str, Literal["encoder", "network"] | None]:
    """(NAME, FOLDER, what is taken) of a pretraining given as NAME=FOLDER:network; NAME is "" and what is taken None where they are left out.

    A name has letters, digits and "_" alone.
    """
    found = _GIVEN.fullmatch(given)
    if found is None:  # a line break in a path
        return "", given, None
    take: dict[str, Literal["encoder", "network"]] = {"encoder": "encoder", "network": "network"}
    return found[1] or "", found[2], take.get(found[3] or "")


def describe(arm: Arm, study: FewLabelConfig) -> str:
    """What the arm is, in words."""
    if arm.kind == "pretrained" and (arm.take or study.finetune.take) == "network":
        return "the same network, all of it from the pretraining"
    nth = {1: "", 2: "2nd", 3: "3rd"}.get(study.partial_every, f"{study.partial_every}th")
    return ABOUT[arm.kind].replace("n-th", nth)


def pairs_of(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """Which arms are compared, (arm, against): all with scratch; the pretrained ones with every other network or budget that they must hold
    against; what is done on top of a pretrained arm with that one; those with fewer contours with scratch on as few."""
    pairs = [(arm.name, "scratch") for arm in arms if arm.kind != "scratch"]
    pairs += [(arm.name, other.name) for arm in arms for other in arms if other.kind == SAME_LABELS.get(arm.kind)]
    for arm in (arm for arm in arms if arm.kind == "pretrained"):
        pairs += [(arm.name, other.name) for other in arms if other.kind in RIVALS and other.given in ("", arm.name)]
        pairs += [
            (other.name, arm.name)
            for other in arms
            if other.kind in INITIALISED and (other.init, other.take) == (arm.init, arm.take) and other != arm
        ]
    return pairs


def settings_of(
    arm: Arm, study: FewLabelConfig, *, labels: int, seed: int, spacing: Sequence[float], pool: str = "", steps: int | None = None
) -> FinetuneConfig:
    """The fine-tuning of one cell: what the arm does not say is that of `study.finetune`, crops, augmentation and peak learning rate always.

    Up to `FEW` labels (all of a small pool, too) the last checkpoint counts, whatever `keep` says: there is nothing to choose a better one by without peeking.
    A network from scratch learns alike everywhere (`study.scratch_layer_decay`, 1; no `decoder_first`, nothing of `freeze`), and so does one from a
    pretraining of no steps, which is therefore scratch to the bit (if its seed is the cell's): to learn more slowly towards the input, later or not
    at all is for encoders that know something already. The arm `frozen` holds its encoder still, whatever it knows.
    `spacing` (mm, of the store) is what the U-Net is planned for; `pool` ("FILE.json:KEY") are the unlabelled scans of
    the semi-supervised arms; `steps` are those of an arm whose steps follow from a wall time. Warm-up keeps its part of the steps.
    """
    base = study.finetune
    steps = base.loop.steps * (4 if arm.kind == "scratch_x4" else 1) if steps is None else steps
    base = dataclasses.replace(
        base,
        model=_model(arm, base, spacing),
        init=arm.init,
        take=arm.take or base.take,
        split="",
        labels=None,
        loop=dataclasses.replace(base.loop, steps=steps, seed=base.seed + seed),
        optim=dataclasses.replace(
            base.optim,
            warmup=min(steps, round(base.optim.warmup * steps / max(1, base.loop.steps))),
            layer_decay=_layer_decay(arm, study),
            decoder_first=base.optim.decoder_first if _spared(arm) else 0,
            freeze=(*(base.optim.freeze if _spared(arm) else ()), *(("encoder",) if arm.kind == "frozen" else ())),
        ),
        keep="last" if labels <= FEW else base.keep,
        seed=base.seed + seed,
    )
    if arm.kind in ("partial", "partial_scratch"):
        base = dataclasses.replace(base, label_every=study.partial_every, label_axis=study.partial_axis)
    if arm.kind in ("regions", "regions_scratch"):
        base = dataclasses.replace(base, label_every=study.partial_every, label_cube=study.partial_cube)
    if arm.kind in SEMI:
        base = dataclasses.replace(base, semi=dataclasses.replace(base.semi, method=arm.kind, pool=pool))
    return base


def _model(arm: Arm, base: FinetuneConfig, spacing: Sequence[float]):
    if arm.kind in ("resenc", "resenc_time", "anchor"):
        return plan_resenc(crop_of(base.model), spacing)
    if arm.kind != "no_transformer":
        return base.model
    if isinstance(base.model, UNetConfig):
        raise ConfigError("the arm no_transformer needs a network with a transformer; finetune.model is a U-Net")
    return dataclasses.replace(base.model, encoder=dataclasses.replace(base.model.encoder, depth=0, drop_path=0.0))


def _spared(arm: Arm) -> bool:
    """Whether the encoder is trained as one that knows something: it does, or the arm is there to show what that recipe alone is worth."""
    return arm.kind == "untrained" or (arm.kind in INITIALISED and _taught(arm.init))


def _layer_decay(arm: Arm, study: FewLabelConfig) -> float:
    if _spared(arm):
        return study.finetune.optim.layer_decay
    # Neither of these has layers that could be told apart.
    return 1.0 if arm.kind in ("no_transformer", "resenc", "resenc_time", "anchor") else study.scratch_layer_decay


def _taught(pretraining: str) -> bool:
    """Whether a pretraining took any step, as its card says; where there is none, fine-tuning says so."""
    try:
        training = card_of(pretraining).get("training") or {}
    except InputError:
        return True
    return training.get("steps") != 0
