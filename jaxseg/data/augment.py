"""Random augmentation on the device: pure functions of a batch and one key per sample. Called inside the jitted training step.

A sample's result depends on its own key alone, never on its neighbours in the batch, so that devices and processes agree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.data.resample import affine_coordinates, blur_matrix, coarse_matrix, sample_linear, sample_nearest, separable
from jaxseg.errors import ConfigError

Batch = dict[str, Array]
Range = tuple[float, float]
IGNORE = 255


@dataclass(frozen=True)
class Augment:
    """How often (probability per sample) and how strongly each transform acts; a probability of 0 leaves it out of the program.

    The defaults are those of nnU-Net v2's trainer (Isensee et al., Nat. Methods 2021), with rotation and scaling drawn together.
    `flip` is the probability per axis: set it to 0 along x where labels tell left from right. `rotation` is in degrees about each axis,
    `blur_sigma` in voxels, `noise_std` in units of the prepared image; `coarse_zoom` is the resolution kept, 0.5 being every second voxel.
    """

    flip: tuple[float, float, float] = (0.5, 0.5, 0.5)
    affine: float = 0.3
    rotation: tuple[float, float, float] = (30.0, 30.0, 30.0)
    scale: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_std: Range = (0.0, 0.1)
    blur: float = 0.2
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    coarse: float = 0.25
    coarse_zoom: Range = (0.5, 1.0)
    gamma: float = 0.3
    gamma_power: Range = (0.7, 1.5)

    def __post_init__(self) -> None:
        for name in ("affine", "noise", "blur", "brightness", "contrast", "coarse", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Augment.{name} is {getattr(self, name)}: it is a probability, between 0 and 1")
        if len(self.flip) != 3 or not all(0 <= p <= 1 for p in self.flip):
            raise ConfigError(f"Augment.flip is {self.flip}: expected one probability per axis, between 0 and 1")
        for name in ("scale", "noise_std", "blur_sigma", "brightness_factor", "contrast_factor", "coarse_zoom", "gamma_power"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (low == 0 and name != "noise_std"):
                raise ConfigError(f"Augment.{name} is {(low, high)}: expected (lowest, highest), both above 0")

    @classmethod
    def none(cls) -> "Augment":
        """Nothing but the cast to float32."""
        return cls(flip=(0.0, 0.0, 0.0), affine=0.0, noise=0.0, blur=0.0, brightness=0.0, contrast=0.0, coarse=0.0, gamma=0.0)

    @classmethod
    def light(cls) -> "Augment":
        """For pretraining by reconstruction: geometry and brightness, nothing that the target could not be told from."""
        return cls(affine=0.3, rotation=(15.0, 15.0, 15.0), scale=(0.85, 1.2), noise=0.0, blur=0.0, coarse=0.0, gamma=0.0)

    @classmethod
    def default(cls) -> "Augment":
        """For supervised training: nnU-Net's strengths."""
        return cls()


def augment(batch: Batch, keys: Array, config: Augment) -> Batch:
    """Augment a loader's batch.

    Args:
        batch: `image` (b, x, y, z, c) any float, `mask` (b, x, y, z), `present` (b, c), `spacing` (b, 3) mm, and if there `label`
            (b, x, y, z) integer and `air` (b, c) (0 without it: what lies outside the crop is filled with this); other arrays pass through.
        keys: one random key per sample, (b,).
        config: the strengths; static under jit.

    Returns:
        The batch with `image` in float32, channels that are not `present` at 0, `label` resampled by nearest neighbour with 255 and `mask`
        with 0 where a rotated crop reaches outside the old one. Rotation and scaling are in millimetres, so anisotropic voxels stay rigid.
    """
    batch = {**batch, "image": batch["image"].astype(jnp.float32)}
    spatial: list[tuple[float, Transform]] = [(config.affine, _affine)]
    intensity: list[tuple[float, Transform]] = [
        (config.noise, _noise),
        (config.blur, _blur),
        (config.brightness, _brightness),
        (config.contrast, _contrast),
        (config.coarse, _coarse),
        (config.gamma, _gamma),
    ]
    for number, (probability, transform) in enumerate(spatial + intensity):
        if probability > 0:
            batch = _sometimes(batch, jax.vmap(jax.random.fold_in, (0, None))(keys, number), probability, transform, config)
    batch = _flip(batch, jax.vmap(jax.random.fold_in, (0, None))(keys, 100), config.flip)
    return {**batch, "image": batch["image"] * batch["present"][:, None, None, None, :]}


Transform = Callable[[Batch, Array, Augment], Batch]


def _sometimes(batch: Batch, keys: Array, probability: float, transform: Transform, config: Augment) -> Batch:
    """Apply to the samples that draw it. Under vmap a `cond` per sample computes both branches; one `cond` for the whole batch skips the
    work when no sample drew the transform, and the selection keeps each sample independent of the others."""
    pairs = jax.vmap(jax.random.split)(keys)
    hit = jax.vmap(jax.random.bernoulli, (0, None))(pairs[:, 0], probability)
    changed = {name: batch[name] for name in ("image", "label", "mask") if name in batch}

    def work() -> Batch:
        new = jax.vmap(lambda sample, key: transform(sample, key, config))(batch, pairs[:, 1])
        return {name: jnp.where(hit.reshape(-1, *[1] * (old.ndim - 1)), new[name], old) for name, old in changed.items()}

    return {**batch, **jax.lax.cond(hit.any(), work, lambda: changed)}


def _flip(batch: Batch, keys: Array, probability: tuple[float, float, float]) -> Batch:
    hits = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.asarray(probability)))(keys)
    for axis in range(3):
        if probability[axis] > 0:
            for name in ("image", "label", "mask"):
                if name in batch:
                    array = batch[name]
                    hit = hits[:, axis].reshape(-1, *[1] * (array.ndim - 1))
                    batch = {**batch, name: jnp.where(hit, jnp.flip(array, axis + 1), array)}
    return batch


def _uniform(key: Array, limits: Range, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=limits[0], maxval=limits[1])


def _with_image(sample: Batch, image: Array) -> Batch:
    return {**sample, "image": image}


def _affine(sample: Batch, key: Array, config: Augment) -> Batch:
    turn, size = jax.random.split(key)
    limit = jnp.deg2rad(jnp.asarray(config.rotation))
    angles = jax.random.uniform(turn, (3,), minval=-limit, maxval=limit)
    image = sample["image"]
    # Uniform in the logarithm: enlarging and shrinking by the same factor are equally likely.
    scale = jnp.exp(_uniform(size, (math.log(config.scale[0]), math.log(config.scale[1]))))
    where, inside = affine_coordinates(image.shape[:3], sample["spacing"], angles, scale)
    air = sample["air"] if "air" in sample else jnp.zeros(image.shape[-1])
    out = {**sample, "image": jnp.where(inside[..., None], sample_linear(image, where), air)}
    for name, fill in (("mask", 0), ("label", IGNORE)):
        if name in sample:
            array = sample[name]
            out[name] = jnp.where(inside, sample_nearest(array, where), jnp.asarray(fill, array.dtype))
    return out


def _noise(sample: Batch, key: Array, config: Augment) -> Batch:
    strength, draw = jax.random.split(key)
    image = sample["image"]
    return _with_image(sample, image + _uniform(strength, config.noise_std) * jax.random.normal(draw, image.shape))


def _blur(sample: Batch, key: Array, config: Augment) -> Batch:
    sigma = _uniform(key, config.blur_sigma)
    image = sample["image"]
    return _with_image(sample, separable(image, [blur_matrix(n, sigma) for n in image.shape[:3]]))


def _coarse(sample: Batch, key: Array, config: Augment) -> Batch:
    zoom = _uniform(key, config.coarse_zoom)
    image = sample["image"]
    return _with_image(sample, separable(image, [coarse_matrix(n, zoom) for n in image.shape[:3]]))


def _brightness(sample: Batch, key: Array, config: Augment) -> Batch:
    image = sample["image"]
    return _with_image(sample, image * _uniform(key, config.brightness_factor, image.shape[-1:]))


def _contrast(sample: Batch, key: Array, config: Augment) -> Batch:
    image = sample["image"]
    mean, low, high = _statistics(image)
    factor = _uniform(key, config.contrast_factor, image.shape[-1:])
    return _with_image(sample, jnp.clip(mean + factor * (image - mean), low, high))


def _gamma(sample: Batch, key: Array, config: Augment) -> Batch:
    """x → x^g on the channel's range, or on the inverted range for one sample in four; mean and deviation are put back."""
    draw, turn = jax.random.split(key)
    image = sample["image"]
    power = _uniform(draw, config.gamma_power, image.shape[-1:])
    sign = jnp.where(jax.random.bernoulli(turn, 0.25), -1.0, 1.0)
    mean, low, high = _statistics(sign * image)
    width = jnp.maximum(high - low, 1e-6)
    curved = jnp.power(jnp.clip((sign * image - low) / width, 0.0, 1.0), power)
    spread = image.std((0, 1, 2)) / jnp.maximum(curved.std((0, 1, 2)), 1e-6)
    return _with_image(sample, sign * (mean + (curved - curved.mean((0, 1, 2))) * spread))


def _statistics(image: Float[Array, "x y z c"]) -> tuple[Any, Any, Any]:
    return image.mean((0, 1, 2)), image.min((0, 1, 2)), image.max((0, 1, 2))
