"""`augment`: all transforms on a batch, each for the samples that draw it. Called inside the jitted training step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxseg.data.augment import intensity, spatial
from jaxseg.data.augment.config import Augment

Batch = dict[str, Array]

_INTENSITY: tuple[tuple[str, int, intensity.Transform], ...] = (
    ("bias", 7, intensity.bias),
    ("noise", 1, intensity.noise),
    ("blur", 2, intensity.blur),
    ("brightness", 3, intensity.brightness),
    ("contrast", 4, intensity.contrast),
    ("coarse", 5, intensity.coarse),
    ("gamma", 6, intensity.gamma),
)
"""In order: name of the probability, number folded into the sample's key (each transform keeps its own, whatever else is on)."""


def augment(batch: Batch, keys: Array, config: Augment) -> Batch:
    """Augment a loader's batch.

    Args:
        batch: `image` (b, x, y, z, c) any float, `mask` (b, x, y, z), `present` (b, c), `spacing` (b, 3) mm, and if there `label`
            (b, x, y, z) integer and `air` (b, c) (0 without it: what lies outside the crop is filled with this); other arrays pass through.
        keys: one random key per sample, (b,).
        config: the strengths; static under jit.

    Returns:
        The batch with `image` in float32, channels that are not `present` at 0, `label` resampled by nearest neighbour with 255 and `mask`
        with 0 where a moved crop reaches outside the old one. Rotation and scaling are in millimetres, so anisotropic voxels stay rigid.
        Rotation, scaling and elastic deformation are one resampling.
    """
    batch = {**batch, "image": batch["image"].astype(jnp.float32)}
    batch = spatial.deform(batch, _own_keys(keys, 0), config)
    for name, number, transform in _INTENSITY:
        probability = getattr(config, name)
        if probability > 0:
            batch = {**batch, "image": _sometimes(batch, _own_keys(keys, number), probability, transform, config)}
    batch = spatial.flip(batch, _own_keys(keys, 100), config)
    return {**batch, "image": batch["image"] * batch["present"][:, None, None, None, :]}


def _own_keys(keys: Array, number: int) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _sometimes(batch: Batch, keys: Array, probability: float, transform: intensity.Transform, config: Augment) -> Array:
    """Apply to the samples that draw it. Under vmap a `cond` per sample computes both branches; one `cond` for the whole batch skips the
    work when no sample drew the transform, and the selection keeps each sample independent of the others."""
    pairs = jax.vmap(jax.random.split)(keys)
    hit = jax.vmap(jax.random.bernoulli, (0, None))(pairs[:, 0], probability)
    image = batch["image"]
    air = batch["air"].astype(image.dtype) if "air" in batch else jnp.zeros((image.shape[0], image.shape[-1]), image.dtype)

    def work() -> Array:
        new = jax.vmap(lambda one, beside, key: transform(one, beside, key, config))(image, air, pairs[:, 1])
        return jnp.where(hit.reshape(-1, 1, 1, 1, 1), new, image)

    return jax.lax.cond(hit.any(), work, lambda: image)
