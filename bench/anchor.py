"""`python -m bench.anchor CONFIG [--field value …]`: the anchor of a few-label study, nnU-Net's own U-Net trained by PyTorch.

Fills in the arm `anchor` of `python -m finetune.few_label` (same CONFIG and fields): dynamic-network-architectures' residual-encoder U-Net as planned
for the arm `resenc`, on the same crops in the same order with the same augmentation, loss, optimizer and steps. What PyTorch learned is
converted by the zoo, and segmented and scored as every other arm. It lives here because the library never imports torch.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.measure import budget_of, score
from finetune.few_label.study import run_study
from finetune.objective import IGNORED, PRIOR
from finetune.train import adapt
from jaxseg.config import as_json, load_config
from jaxseg.data.augment import augment
from jaxseg.data.cases import Case
from jaxseg.data.catalog import Store, open_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.recipe import Recipe
from jaxseg.errors import ConfigError, JaxsegError
from jaxseg.models.unet import UNetConfig
from jaxseg.train import learning_rate
from jaxseg.train.log import RunLog, read_log
from jaxseg.zoo import Model, save_model
from jaxseg.zoo.pretrained import load_pretrained

SMOOTH = 1e-5  # of the Dice loss, as jaxseg.losses has it
WEIGHTS = "anchor.pt"


def measure_anchor(
    settings: FinetuneConfig, names: tuple[str, ...], tests: Sequence[Case], recipe: Recipe, *, overlap: float
) -> dict[str, Any]:
    """What `finetune.few_label.measure` returns, of a U-Net that PyTorch trained. An interrupted cell begins anew.

    Raises ConfigError where PyTorch or dynamic-network-architectures is not installed, or for overlapping regions.
    """
    out, store = Path(settings.out), open_store(settings.store)
    model = train(settings, names, store, out)
    return score(model, tests, recipe, out, overlap=overlap) | {
        "budget": budget_of(settings, model.network, model.card["crop"], out),
        "curve": [[line["step"], line["loss"]] for line in read_log(out / "log.jsonl")],
        "monitored": [],
    }


def train(settings: FinetuneConfig, names: tuple[str, ...], store: Store, out: Path) -> Model:
    """Train in PyTorch; the model, converted, is left in `OUT/model` and PyTorch's weights beside it."""
    torch, config, classes = _torch(), adapt(settings.model, store), Classes.of(store.recipe)
    if classes.regions is not None or not isinstance(config, UNetConfig):
        raise ConfigError("the anchor is a U-Net for exclusive classes; this store has overlapping regions, or the arm is not `anchor`")
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.jsonl").unlink(missing_ok=True)  # of a cell that was interrupted
    torch.manual_seed(settings.seed)
    net = peer_network(config)
    optimizers, rate = _optimizers(net, settings)
    log, started, window = RunLog(out / "log.jsonl"), time.monotonic(), []
    for step, (image, label) in enumerate(crops(settings, names, store, config), 1):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = float(rate(step - 1))
        net.zero_grad()
        terms = dice_ce(net(_channels_first(image)), torch.from_numpy(label.astype(np.int64)), batch=settings.loss.batch_dice)
        loss = settings.loss.dice * terms[0] + settings.loss.cross_entropy * terms[1]
        loss.backward()
        if settings.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), settings.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
        window.append(loss.item())
        if step % settings.loop.log_every == 0 or step == settings.loop.steps:
            log.append({"step": step, "loss": float(np.mean(window)), "seconds": round(time.monotonic() - started, 3)})
            window = []
    torch.save(net.state_dict(), out / WEIGHTS)
    card = {
        "channels": list(store.recipe.channels),
        "recipe": as_json(store.recipe),
        "labels": store.recipe.labels,
        "crop": list(config.crop),
    }
    model = load_pretrained(out / WEIGHTS, settings={"crop": config.crop}, say=lambda table: None)
    model = Model(model.network, {**model.card, **card, "regions": False})
    save_model(out / "model", model.network, model.card)
    return model


def crops(settings: FinetuneConfig, names: tuple[str, ...], store: Store, config: UNetConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(image (b, x, y, z, c) float32, label (b, x, y, z)) of every step: those that `finetune.train` draws, augmented by the same keys."""
    loader = CropLoader(
        store, names, crop=config.crop, batch=settings.batch, seed=settings.seed, foreground=settings.foreground, labelled=True
    )
    key = jax.random.key(settings.loop.seed)

    @jax.jit
    def changed(batch: dict[str, Any]) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
        made = augment(batch, jax.vmap(jax.random.fold_in, (0, None))(keys, 0), settings.augment)
        return made["image"], made["label"]

    for _ in range(settings.loop.steps):
        image, label = changed(next(loader))
        yield np.array(image), np.array(label)
    loader.close()


def peer_network(config: UNetConfig) -> Any:
    """dynamic-network-architectures' `ResidualEncoderUNet` of this plan with nnU-Net's norm, non-linearity and initialisation.

    The head starts where ours does: every label at a probability of 1 %.
    """
    torch, unet = _torch(), _module("dynamic_network_architectures.architectures.unet")
    net = unet.ResidualEncoderUNet(
        config.in_channels,
        len(config.features),
        config.features,
        torch.nn.Conv3d,
        config.kernels,
        config.strides,
        config.blocks,
        config.num_classes,
        config.decoder_convs,
        conv_bias=config.conv_bias,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    net.apply(net.initialize)
    with torch.no_grad():
        bias = net.decoder.seg_layers[-1].bias
        bias.fill_(float(np.log(PRIOR / (1 - PRIOR))))
        bias[0] = 0.0
    return net


def dice_ce(logits: Any, label: Any, *, batch: bool) -> tuple[Any, Any]:
    """`jaxseg.losses.dice_ce` for exclusive classes in PyTorch: (Dice without the background, cross-entropy), voxels of 255 left out.

    `logits` (b, k, x, y, z), `label` (b, x, y, z) int64; `batch` pools the Dice over the batch.
    """
    torch = _torch()
    known = (label != IGNORED)[:, None].float()
    entropy = torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum") / known.sum().clamp(min=1)
    hot = torch.nn.functional.one_hot(torch.where(label == IGNORED, 0, label), logits.shape[1]).movedim(-1, 1) * known
    probability = logits.softmax(1) * known
    over = (0, 2, 3, 4) if batch else (2, 3, 4)
    true, predicted, present = ((part.sum(over)[..., 1:]) for part in (probability * hot, probability, hot))
    lost = 1 - (2 * true + SMOOTH) / (predicted + present + SMOOTH)
    counted = (known.expand_as(probability).sum(over)[..., 1:] > 0).float()
    return (lost * counted).sum() / counted.sum().clamp(min=1), entropy


def _optimizers(net: Any, settings: FinetuneConfig) -> tuple[list[Any], Any]:
    """AdamW that shrinks kernels only, as ours does, or Muon for the kernels that ours takes; and the learning rate by step."""
    torch, optim = _torch(), settings.optim
    kernels = [array for array in net.parameters() if array.ndim > 1]
    others = [array for array in net.parameters() if array.ndim == 1]
    transposed, straight = [], []
    if optim.muon:
        head = {id(array) for array in net.decoder.seg_layers.parameters()}
        transposed = [array for array in net.decoder.transpconvs.parameters() if array.ndim > 1]
        apart = head | {id(array) for array in transposed}
        straight = [array for array in kernels if id(array) not in apart and array.shape[1] > 1]
    taken = {id(array) for array in transposed + straight}
    rest = [array for array in kernels if id(array) not in taken]
    groups = [{"params": rest, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    chosen = [torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)]
    if taken:
        chosen.append(_module("bench.torch_muon").Muon(straight, transposed, lr=optim.lr, weight_decay=optim.weight_decay))
    return chosen, learning_rate(dataclasses.replace(optim, steps=max(1, settings.loop.steps)))


def _channels_first(image: np.ndarray) -> Any:
    return _torch().from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1)))


def _torch() -> Any:
    return _module("torch")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise ConfigError(
            f"the anchor trains nnU-Net's network in PyTorch, and {name} is not installed ({missing}): pip install 'jaxseg[parity]'; the other "
            "arms do not need it"
        ) from None


def main(arguments: list[str]) -> int:
    """Fill in the anchor's cells and print the study's table; exit codes as those of the study."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m bench.anchor CONFIG [--field value …]", file=sys.stderr)
        return 0 if arguments else 2
    try:
        _torch()
        config = load_config(arguments[0], "few_label", FewLabelConfig, arguments[1:])
        if "anchor" not in config.arms:
            raise ConfigError(
                f"this study has no arm anchor: ask for it, --arms {' '.join(config.arms)} anchor (also where the study itself is run)"
            )
        results = run_study(config, measure=measure_anchor, only=("anchor",))
    except JaxsegError as error:
        print(f"bench.anchor: error: {error}", file=sys.stderr)
        return error.exit_code
    print((results.folder / "table.md").read_text(encoding="utf-8"))
    return 3 if results.content["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
