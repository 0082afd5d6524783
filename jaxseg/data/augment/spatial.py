"""Spatial augmentation: rotation, scaling, elastic deformation and another voxel size in one resampling of image, label and mask, and
flips. Called by `augment`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxseg.data.augment.config import Augment
from jaxseg.data.augment.field import smooth_field
from jaxseg.data.resample import affine_coordinates, sample_linear, sample_nearest

Batch = dict[str, Array]
IGNORE = 255
MOVED = ("image", "label", "mask")


def deform(batch: Batch, keys: Array, config: Augment) -> Batch:
    """Rotate, scale and bend the samples that draw it. The work is skipped where no sample of the batch does."""
    if not _deforms(config):
        return batch
    motion = jax.vmap(lambda key: draw_motion(key, config))(keys)
    old = {name: batch[name] for name in MOVED if name in batch}

    def work() -> Batch:
        new = jax.vmap(lambda sample, drawn: _move(sample, drawn, config))(batch, motion)
        return {name: jnp.where(_per_sample(motion["hit"], array), new[name], array) for name, array in old.items()}

    moved = jax.lax.cond(motion["hit"].any(), work, lambda: old)
    return {**batch, **moved, "spacing": _spacing(batch, motion)}


def deform_one(sample: Batch, key: Array, config: Augment) -> Batch:
    """The same of a sample alone, its arrays without the batch's axis."""
    if not _deforms(config):
        return sample
    motion = draw_motion(key, config)
    moved = jax.lax.cond(motion["hit"], lambda: _move(sample, motion, config), lambda: sample)
    return {**moved, "spacing": _spacing(sample, motion)}


def _deforms(config: Augment) -> bool:
    return any((config.affine, config.rotate, config.rescale, config.elastic)) or config.spacing_jitter is not None


def _spacing(batch: Batch, motion: Batch) -> Array:
    """The voxel size in mm after a motion."""
    return batch["spacing"] * motion["voxel"] if "voxel" in motion else batch["spacing"]


def flip(batch: Batch, keys: Array, config: Augment) -> Batch:
    """Mirror each sample along each axis by its own draw: a copy, no resampling."""
    hits = jax.vmap(lambda key: _draw_flip(key, config))(keys)
    for axis in range(3):
        if config.flip[axis] > 0:
            for name in MOVED:
                if name in batch:
                    array = batch[name]
                    batch = {**batch, name: jnp.where(_per_sample(hits[:, axis], array), jnp.flip(array, axis + 1), array)}
    return batch


def flip_one(sample: Batch, key: Array, config: Augment) -> Batch:
    """The same of a sample alone: the one copy that was drawn, of the up to eight there may be."""
    axes = [axis for axis in range(3) if config.flip[axis] > 0]
    if not axes:
        return sample
    hit = _draw_flip(key, config)

    def mirrored(along: list[int]) -> Callable[[Batch], Batch]:
        return lambda arrays: {name: jnp.flip(array, along) for name, array in arrays.items()}

    # The bits of a copy's number say along which axes it is mirrored.
    copies = [mirrored([axis for bit, axis in enumerate(axes) if number >> bit & 1]) for number in range(2 ** len(axes))]
    number = sum(hit[axis].astype(jnp.int32) << bit for bit, axis in enumerate(axes))
    return {**sample, **jax.lax.switch(number, copies, {name: sample[name] for name in MOVED if name in sample})}


def _draw_flip(key: Array, config: Augment) -> Array:
    return jax.random.bernoulli(key, jnp.asarray(config.flip))


def _per_sample(hit: Array, array: Array) -> Array:
    return hit.reshape(-1, *[1] * (array.ndim - 1))


def draw_motion(key: Array, config: Augment) -> Batch:
    """One sample's motion, of those that `config` has: `hit`; `angles` (3,) radians and magnification `scale` (3,), both neutral where
    they were not drawn; with elastic deformation `amplitude` and `width` (parts of the crop's edge) and the key `noise`; and with another
    voxel size `voxel` (3,), by how much larger it is."""
    first, second = jax.random.split(key)
    turn, size = jax.random.split(second)
    both = jax.random.bernoulli(first, config.affine)
    # A split key counts as folded with 0, 1, …: `first` is spent where `affine` is drawn.
    coin = jax.random.fold_in(key, 6) if config.affine > 0 else first
    turned = both | jax.random.bernoulli(coin, config.rotate) if config.rotate > 0 else both
    scaled = both | jax.random.bernoulli(jax.random.fold_in(key, 1), config.rescale) if config.rescale > 0 else both
    limit = jnp.deg2rad(jnp.asarray(config.rotation))
    angles = jax.random.uniform(turn, (3,), minval=-limit, maxval=limit)
    motion = {
        "hit": turned | scaled,
        "angles": jnp.where(turned, angles, 0.0),
        "scale": jnp.where(scaled, _draw_scale(size, jax.random.fold_in(key, 2), config), jnp.ones(3)),
    }
    if config.spacing_jitter is not None:
        low, high = (math.log(limit) for limit in config.spacing_jitter)
        voxel = jnp.exp(jax.random.uniform(jax.random.fold_in(key, 5), (3,), minval=low, maxval=high))
        motion |= {"hit": jnp.ones((), bool), "voxel": voxel}
    if config.elastic == 0:
        return motion
    bent = jax.random.bernoulli(jax.random.fold_in(key, 3), config.elastic)
    amplitude, width, noise = _draw_elastic(jax.random.fold_in(key, 4), config)
    return motion | {"hit": motion["hit"] | bent, "amplitude": jnp.where(bent, amplitude, 0.0), "width": width, "noise": noise}


def _draw_scale(size: Array, apart: Array, config: Augment) -> Array:
    # Uniform in the logarithm: enlarging and shrinking by the same factor are equally likely.
    low, high = (math.log(limit) for limit in config.scale)
    common = jax.random.uniform(size, minval=low, maxval=high)
    if config.scale_each_axis == 0:
        return jnp.exp(common)
    each = jax.random.uniform(jax.random.fold_in(apart, 1), (3,), minval=low, maxval=high)
    return jnp.exp(jnp.where(jax.random.bernoulli(apart, config.scale_each_axis), each, common))


def _draw_elastic(key: Array, config: Augment) -> tuple[Array, Array, Array]:
    strain, width, noise = jax.random.split(key, 3)
    width = jax.random.uniform(width, minval=config.elastic_width[0], maxval=config.elastic_width[1])
    strain = jax.random.uniform(strain, minval=config.elastic_strain[0], maxval=config.elastic_strain[1])
    return strain * math.sqrt(2) * width, width, noise


def _move(sample: Batch, motion: Batch, config: Augment) -> Batch:
    image = sample["image"]
    shape = image.shape[:3]
    shift = None
    if config.elastic > 0:
        field = smooth_field(motion["noise"], shape, 3, motion["width"], config.elastic_width[0])
        shift = motion["amplitude"] * field * jnp.asarray(shape, jnp.float32)
    # What is seen in larger voxels is that much smaller in voxels.
    scale = motion["scale"] / motion["voxel"] if "voxel" in motion else motion["scale"]
    where, inside = affine_coordinates(shape, sample["spacing"], motion["angles"], scale, shift)
    out = {**sample, "image": jnp.where(inside[..., None], sample_linear(image, where), sample["air"])}
    for name, fill in (("mask", 0), ("label", IGNORE)):
        if name in sample:
            array = sample[name]
            out[name] = jnp.where(inside, sample_nearest(array, where), jnp.asarray(fill, array.dtype))
    return out
