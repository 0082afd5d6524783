"""Both sides of a segmentation network's forward pass and training step; unetr, swin_unetr and resenc_unet each say which network."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import torch_side
from bench.case import SAME_MATHS, Case, Setting, Work

TOLERANCE = {"logits": 1e-4, "loss": 1e-4, "grad_norm": 1e-2}
"""The gradient's: torch's float32 is 4e-3 from its own float64, where an activation changes sides at LeakyReLU's kink."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A cubic crop of `side` voxels, its channels and classes, how many at once; `network` are the peer's arguments, `settings` what of
    them the arrays do not tell."""

    side: int
    network: Mapping[str, Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: bool = True
    channels: int = 4
    classes: int = 4
    batch: int = 1


def case(variant: str, peer: str, sizes: Sizes, quick: Sizes, *, gpu_only: bool = False) -> Case:
    """A row whose rate is voxels a second."""
    return Case(variant, peer, SAME_MATHS, sizes, quick, lambda sizes: sizes.batch * sizes.side**3, "voxels", TOLERANCE, gpu_only=gpu_only)


def batch_of(sizes: Sizes) -> dict[str, np.ndarray]:
    """Noise (b, x, y, z, c) of mean 0 and deviation 1, and labels (b, x, y, z), the same on both sides."""
    rng = np.random.default_rng(0)
    shape = (sizes.batch, *(sizes.side,) * 3)
    return {
        "image": rng.standard_normal((*shape, sizes.channels), np.float32),
        "label": rng.integers(0, sizes.classes, shape, np.uint8),
    }


def peer_work(net: Any, sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """The peer's network: MONAI's Dice and cross-entropy where it is trained."""
    batch = batch_of(sizes)
    image = torch_side.tensor(batch["image"], setting)
    if not sizes.train:
        return torch_side.forward_work(net, image, setting, folder)
    losses = torch_side.import_or_absent(setting, "monai.losses")
    label, measure = torch_side.tensor(batch["label"][..., None], setting).long(), losses.DiceCELoss(to_onehot_y=True, softmax=True)

    def check(net: Any, image: Any) -> dict[str, Any]:
        logits = net(image)
        return {"logits": logits.moveaxis(1, -1), "loss": measure(logits.float(), label)}

    return torch_side.train_work(net, image, lambda net, image: measure(net(image).float(), label), check, setting, folder)


def our_work(sizes: Sizes, setting: Setting, folder: Path, alone: Callable[[], Any]) -> Work:
    """Ours, from the peer's weights, or of the config `alone()` where there is no peer."""
    import jax.numpy as jnp

    from bench import jax_side
    from jaxseg.losses import dice_ce

    batch = batch_of(sizes)
    graph, params = jax_side.converted(folder, setting, sizes.settings, alone=alone)
    if not sizes.train:
        return jax_side.forward_work(graph, params, batch["image"], setting)

    def loss(network: Any, batch: Any, keys: Any) -> Any:
        return dice_ce(network(batch["image"], key=keys), batch["label"], include_background=True)

    def check(network: Any) -> Any:
        logits = network(batch["image"])
        terms = dice_ce(logits, jnp.asarray(batch["label"]), include_background=True)
        return {"logits": logits, "loss": sum(total / count for total, count in terms.values())}

    return jax_side.train_work(graph, params, batch, loss, check, setting)
