"""The arms of a few-label study: what each changes in the settings that all of them share. Called by `study`."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from finetune.config import FinetuneConfig
from finetune.few_label.config import ArmKind, Labels
from finetune.few_label.resenc import plan_resenc
from finetune.train import crop_of
from jaxseg.errors import ConfigError

ABOUT = {
    "scratch": "the network from scratch",
    "pretrained": "the same network, its encoder from the pretraining",
    "frozen": "the pretrained encoder held still, the rest trained",
    "scratch_x4": "from scratch, with four times the steps",
    "resenc": "a residual-encoder U-Net from scratch, as nnU-Net would plan it for these crops",
}
FEW = 5  # labelled cases up to which no checkpoint is chosen by its score
_NAMED = re.compile(r"(\w+)=(.+)")


@dataclass(frozen=True)
class Arm:
    """One arm: its name in results and folders, what it is (a key of `ABOUT`), and the pretraining that it starts from, if any."""

    name: str
    kind: str
    init: str = ""


def arms_of(kinds: Sequence[ArmKind], pretrained: Sequence[str]) -> tuple[Arm, ...]:
    """The arms of a study, in the order asked for: one for each pretraining where a kind takes one.

    Raises ConfigError for an unknown kind, two arms of one name, or a kind that needs a pretraining where there is none.
    """
    unknown = sorted(set(kinds) - set(get_args(ArmKind)))
    if unknown:
        raise ConfigError(f"unknown arm {', '.join(unknown)}; there are {', '.join(ABOUT)}")
    arms = []
    for kind in kinds:
        if kind not in ("pretrained", "frozen"):
            arms.append(Arm(kind, kind))
            continue
        if not pretrained:
            raise ConfigError(f"the arm {kind} needs --pretrained FOLDER (or NAME=FOLDER …)")
        for given in pretrained:
            named = _NAMED.fullmatch(given)
            arms.append(Arm(f"{kind}_{named[1]}", kind, named[2]) if named else Arm(kind, kind, given))
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ConfigError(f"two arms have one name ({', '.join(names)}): name the pretrainings, --pretrained NAME=FOLDER NAME=FOLDER")
    return tuple(arms)


def settings_of(arm: Arm, base: FinetuneConfig, *, labels: Labels, seed: int, spacing: Sequence[float]) -> FinetuneConfig:
    """The fine-tuning of one cell: crops, augmentation, learning rate and, but for scratch_x4, steps are those of `base`.

    Up to `FEW` labels the last checkpoint counts, whatever `base.keep` says: there is nothing to choose a better one by without peeking.
    `spacing` (mm, of the store) is what the U-Net is planned for; it has no layer decay, which is for pretrained encoders.
    """
    times = 4 if arm.kind == "scratch_x4" else 1
    if arm.kind == "resenc":
        optim = dataclasses.replace(base.optim, layer_decay=1.0, freeze=())
        base = dataclasses.replace(base, model=plan_resenc(crop_of(base.model), spacing), optim=optim)
    few = labels != "all" and labels <= FEW
    return dataclasses.replace(
        base,
        init=arm.init,
        split="",
        labels=None,
        loop=dataclasses.replace(base.loop, steps=times * base.loop.steps, seed=base.seed + seed),
        optim=dataclasses.replace(
            base.optim,
            warmup=times * base.optim.warmup,
            freeze=(*base.optim.freeze, "encoder") if arm.kind == "frozen" else base.optim.freeze,
        ),
        keep="last" if few else base.keep,
        seed=base.seed + seed,
    )
