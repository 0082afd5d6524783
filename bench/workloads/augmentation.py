"""Random augmentation of labelled crops: MONAI's dictionary transforms on the host, and ours on the device, at nnU-Net's strengths."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import OUR_RECIPE, Case, Setting, Work
from bench.torch_side import import_or_absent


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`batch` crops of `side` voxels a side and `channels`, augmented `draws` times in a run: what a run takes depends on what it draws."""

    side: int
    batch: int
    channels: int = 4
    draws: int = 1


# The flip of every axis is the one transform without a random number in it; the others are tested in tests/data.
CASES = tuple(
    Case(
        f"{side}_batch{batch}",
        "MONAI transforms",
        OUR_RECIPE,
        Sizes(side, batch, draws=draws),
        Sizes(16, 2),
        lambda sizes: sizes.batch * sizes.draws,
        "samples",
        voxels=lambda sizes: sizes.batch * sizes.draws * sizes.side**3,
    )
    for side, batch, draws in ((96, 1, 32), (96, 4, 8), (64, 8, 8))
)


def _batch(sizes: Sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (sizes.batch, *(sizes.side,) * 3)
    return {"image": rng.standard_normal((*shape, sizes.channels), np.float32), "label": rng.integers(0, 4, shape, np.uint8)}


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's transforms of the kinds, probabilities and strengths of `Augment.default`, one crop after the other, as a worker does."""
    t, torch = import_or_absent(setting, "monai.transforms"), import_or_absent(setting, "torch")
    batch, both = _batch(sizes), ("image", "label")
    samples = [
        {
            "image": torch.from_numpy(np.ascontiguousarray(np.moveaxis(batch["image"][i], -1, 0))),
            "label": torch.from_numpy(batch["label"][i][None]),
        }
        for i in range(sizes.batch)
    ]
    angle = (np.pi / 6,) * 3
    work = t.Compose(
        [
            t.RandAffined(
                both, prob=0.3, rotate_range=angle, scale_range=[(-0.3, 0.4)] * 3, mode=("bilinear", "nearest"), padding_mode="zeros"
            ),
            t.RandGaussianNoised("image", 0.1, std=0.1),
            t.RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            t.RandScaleIntensityd("image", 0.25, prob=0.15),
            t.RandAdjustContrastd("image", 0.15, gamma=(0.75, 1.25)),
            t.RandSimulateLowResolutiond("image", 0.25, zoom_range=(0.5, 1.0)),
            t.RandAdjustContrastd("image", 0.3, gamma=(0.7, 1.5)),
            *(t.RandFlipd(both, 0.5, axis) for axis in range(3)),
        ]
    )
    work.set_random_state(0)
    flips = t.Compose([t.RandFlipd(both, 1.0, axis) for axis in range(3)])

    def check() -> dict[str, np.ndarray]:
        flipped = [flips(dict(sample)) for sample in samples]
        image = np.stack([np.moveaxis(each["image"].numpy(), 0, -1) for each in flipped])
        return {"image": image, "label": np.stack([each["label"].numpy()[0] for each in flipped])}

    def run() -> None:
        for _ in range(sizes.draws):
            for sample in samples:
                work(dict(sample))

    return Work(check, run)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """`data.augment` of the whole batch, with new keys at every run."""
    import jax
    import jax.numpy as jnp

    from bench.jax_side import compile_timed
    from jaxseg.data.augment import Augment, augment

    host = _batch(sizes)
    batch: dict[str, Any] = {name: jnp.asarray(array) for name, array in host.items()}
    batch |= {
        "mask": jnp.ones(host["label"].shape, jnp.uint8),
        "present": jnp.ones((sizes.batch, sizes.channels)),
        "spacing": jnp.ones((sizes.batch, 3)),
    }

    def work(batch: Any, key: Any, config: Augment) -> Any:
        return augment(batch, jax.random.split(key, sizes.batch), config)

    default = Augment.default()
    compiled, seconds = compile_timed(jax.jit(lambda batch, key: work(batch, key, default)), batch, jax.random.key(0))
    keys = [jax.random.key(0)]

    def run() -> None:
        for _ in range(sizes.draws):
            keys[0], now = jax.random.split(keys[0])
            jax.block_until_ready(compiled(batch, now))

    def check() -> dict[str, np.ndarray]:
        flip = dataclasses.replace(Augment.none(), flip=(1.0, 1.0, 1.0))
        found = jax.jit(lambda batch, key: work(batch, key, flip))(batch, keys[0])
        return {name: np.asarray(found[name]) for name in ("image", "label")}

    return Work(check, run, compile_s=seconds)
