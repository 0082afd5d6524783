"""`augment`: all transforms on a batch, each for the samples that draw it. Called inside the jitted training step."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxseg.data.augment import intensity, spatial
from jaxseg.data.augment.config import Augment
from jaxseg.errors import ShapeError

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


_MADE_OF = (*spatial.MOVED, "present", "spacing", "air")


def augment(batch: Batch, keys: Array, config: Augment, *, one_by_one: bool | None = None) -> Batch:
    """Augment a loader's batch.

    Args:
        batch: `image` (b, x, y, z, c) any float, `mask` (b, x, y, z), `present` (b, c), `spacing` (b, 3) mm, and if there `label`
            (b, x, y, z) integer and `air` (b, c) (0 without it: what lies outside the crop is filled with this); other arrays pass through.
        keys: one random key per sample, (b,).
        config: the strengths; static under jit.
        one_by_one: sample after sample, each computing the transforms that it draws and no others, instead of all at once, where a
            transform that one sample draws is computed for the whole batch. The numbers are the same up to rounding. By default, on a CPU
            that is the only device: on several, a loop over samples would have the devices wait for each other at every one.

    Returns:
        The batch with `image` in float32, channels that are not `present` at 0, `label` resampled by nearest neighbour with 255 and `mask`
        with 0 where a moved crop reaches outside the old one, and `spacing` the new voxel size where `spacing_jitter` draws one. Rotation
        and scaling are in millimetres, so anisotropic voxels stay rigid. Rotation, scaling, elastic deformation and another voxel size
        are one resampling.

    Raises ShapeError where `present` has other channels than `image`, or `label` a type that cannot hold 255.
    """
    channels, known = batch["image"].shape[-1], batch["present"].shape[-1]
    if channels != known:
        raise ShapeError(f"the image has {channels} channel{'s' * (channels != 1)} and `present` {known}: expected (b, c) of the same c")
    if "label" in batch and not (
        jnp.issubdtype(batch["label"].dtype, jnp.integer) and jnp.iinfo(batch["label"].dtype).max >= spatial.IGNORE
    ):
        raise ShapeError(f"labels are {batch['label'].dtype}: expected integers that can hold {spatial.IGNORE} (uint8 or larger)")
    arrays = {name: batch[name] for name in _MADE_OF if name in batch}
    air = batch["air"].astype(jnp.float32) if "air" in batch else jnp.zeros((len(keys), batch["image"].shape[-1]))
    arrays |= {"image": batch["image"].astype(jnp.float32), "air": air}
    if one_by_one is None and jax.device_count() == 1:
        forms = {"cpu": partial(_in_turn, config=config), "default": partial(_at_once, config=config)}
        new = jax.lax.platform_dependent(arrays, keys, **forms)
    else:
        new = (_in_turn if one_by_one else _at_once)(arrays, keys, config)
    return {**batch, **{name: new[name] for name in (*spatial.MOVED, "spacing") if name in new}}


def _in_turn(batch: Batch, keys: Array, config: Augment) -> Batch:
    return jax.lax.map(lambda each: _augment_one(each[0], each[1], config), (batch, keys))


def _augment_one(sample: Batch, key: Array, config: Augment) -> Batch:
    sample = spatial.deform_one(sample, jax.random.fold_in(key, 0), config)
    for probability, number, transform in _wanted(config):
        sample = {**sample, "image": _maybe(sample, jax.random.fold_in(key, number), probability, transform, config)}
    sample = spatial.flip_one(sample, jax.random.fold_in(key, 100), config)
    return {**sample, "image": _only_present(sample["image"], sample["present"])}


def _maybe(sample: Batch, key: Array, probability: float, transform: intensity.Transform, config: Augment) -> Array:
    hit, draw = _drawn(key, probability)
    image, air = sample["image"], sample["air"]
    return jax.lax.cond(hit, lambda: transform(image, air, draw, config), lambda: image)


def _at_once(batch: Batch, keys: Array, config: Augment) -> Batch:
    batch = spatial.deform(batch, _own_keys(keys, 0), config)
    for probability, number, transform in _wanted(config):
        batch = {**batch, "image": _sometimes(batch, _own_keys(keys, number), probability, transform, config)}
    batch = spatial.flip(batch, _own_keys(keys, 100), config)
    return {**batch, "image": _only_present(batch["image"], batch["present"][:, None, None, None, :])}


def _only_present(image: Array, present: Array) -> Array:
    """0 in channels that are not there, whatever they hold: not a product, which NaN would survive."""
    return jnp.where(present > 0, image, 0)


def _wanted(config: Augment) -> list[tuple[float, int, intensity.Transform]]:
    drawn = [(getattr(config, name), number, transform) for name, number, transform in _INTENSITY]
    return [each for each in drawn if each[0] > 0]


def _own_keys(keys: Array, number: int) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _drawn(key: Array, probability: float) -> tuple[Array, Array]:
    """Whether a sample draws a transform, and the key of the transform."""
    first, second = jax.random.split(key)
    return jax.random.bernoulli(first, probability), second


def _sometimes(batch: Batch, keys: Array, probability: float, transform: intensity.Transform, config: Augment) -> Array:
    """Apply to the samples that draw it. Under vmap a `cond` per sample computes both branches; one `cond` for the whole batch skips the
    work when no sample drew the transform, and the selection keeps each sample independent of the others."""
    hit, draws = jax.vmap(lambda key: _drawn(key, probability))(keys)
    image, air = batch["image"], batch["air"]

    def work() -> Array:
        new = jax.vmap(lambda one, beside, key: transform(one, beside, key, config))(image, air, draws)
        return jnp.where(hit.reshape(-1, 1, 1, 1, 1), new, image)

    return jax.lax.cond(hit.any(), work, lambda: image)
