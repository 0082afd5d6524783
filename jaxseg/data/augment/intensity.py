"""Intensity augmentation: each transform takes one sample's image `(x, y, z, c)`, its air `(c,)`, a key and the strengths, and returns
the image. Called by `augment` for the samples that draw it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.data.augment.config import Augment, Range
from jaxseg.data.augment.field import smooth_field
from jaxseg.data.augment.white_noise import white_noise
from jaxseg.data.resample import blur_matrix, coarse_matrix, separable

Image = Float[Array, "x y z c"]
Transform = Callable[[Image, Array, Array, Augment], Image]


def bias(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """What lies above air times exp of a smooth field, one a channel (a coil's uneven sensitivity)."""
    strength, width, noise = jax.random.split(key, 3)
    field = smooth_field(noise, image.shape[:3], image.shape[-1], _uniform(width, config.bias_width), config.bias_width[0])
    return air + (image - air) * jnp.exp(_uniform(strength, config.bias_strength) * field)


def noise(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """White Gaussian noise of one deviation for all channels."""
    del air
    strength, draw = jax.random.split(key)
    return image + _uniform(strength, config.noise_std) * white_noise(draw, image.shape)


def blur(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """A Gaussian, as wide along every axis."""
    del air
    return _separably(image, key, config.blur_sigma, blur_matrix, config)


def coarse(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """A lower resolution: nearest neighbour down, linear up."""
    del air
    return _separably(image, key, config.coarse_zoom, coarse_matrix, config)


def brightness(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """Times a factor per channel."""
    del air
    return image * _around_one(key, config.brightness_factor, image.shape[-1:])


def contrast(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """Away from the channel's mean by a factor, inside the channel's old range."""
    del air
    mean, low, high = _statistics(image)
    factor = _around_one(key, config.contrast_factor, image.shape[-1:])
    return jnp.clip(mean + factor * (image - mean), low, high)


def gamma(image: Image, air: Float[Array, " c"], key: Array, config: Augment) -> Image:
    """x → x^g on the channel's range, or on the inverted range for one sample in four; mean and deviation are put back."""
    del air
    draw, turn = jax.random.split(key)
    power = _around_one(draw, config.gamma_power, image.shape[-1:])
    sign = jnp.where(jax.random.bernoulli(turn, 0.25), -1.0, 1.0)
    mean, low, high = _statistics(sign * image)
    width = jnp.maximum(high - low, 1e-6)
    # Exponential and logarithm rather than `power`, which a CPU computes number by number; of 0 they make 0, as it does.
    curved = jnp.exp(power * jnp.log(jnp.clip((sign * image - low) / width, 0.0, 1.0)))
    centre = _mean(curved)
    spread = _deviation(sign * image, mean) / jnp.maximum(_deviation(curved, centre), 1e-6)
    return sign * (mean + (curved - centre) * spread)


def _separably(image: Image, key: Array, limits: Range, matrix: Callable[[int, Array], Array], config: Augment) -> Image:
    """The separable operator of one drawn strength; below a `channel_share` of 1, of one a channel, on the channels that draw it."""
    if config.channel_share == 1:
        strength = _uniform(key, limits)
        return separable(image, [matrix(n, strength) for n in image.shape[:3]])
    draw, choose = jax.random.split(key)
    channels = image.shape[-1]
    hit = jax.random.bernoulli(choose, config.channel_share, (channels,))

    def one(channel: Array, strength: Array) -> Array:
        return separable(channel[..., None], [matrix(n, strength) for n in channel.shape])[..., 0]

    changed = jax.vmap(one, in_axes=(-1, 0), out_axes=-1)(image, _uniform(draw, limits, (channels,)))
    return jnp.where(hit, changed, image)


def _uniform(key: Array, limits: Range, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=limits[0], maxval=limits[1])


def _around_one(key: Array, limits: Range, shape: tuple[int, ...]) -> Array:
    """Uniform below 1 or uniform above it, each as often, as nnU-Net draws factors and powers; limits on one side of 1: uniform."""
    low, high = limits
    if not low < 1 < high:
        return _uniform(key, limits, shape)
    place = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    return 1 + place * jnp.where(place < 0, 1 - low, high - 1)


def _statistics(image: Image) -> tuple[Array, Array, Array]:
    return _mean(image), _per_channel(jnp.min, image), _per_channel(jnp.max, image)


def _mean(image: Image) -> Float[Array, " c"]:
    # As a product: what is summed is then written once, not computed again number by number inside the sum.
    _, _, z, c = image.shape
    rows = image.reshape(-1, z * c)
    return jnp.matmul(jnp.full(len(rows), 1 / len(rows)), rows, precision="highest").reshape(z, c).mean(0)


def _deviation(image: Image, mean: Float[Array, " c"]) -> Float[Array, " c"]:
    return jnp.sqrt(_mean(jnp.square(image - mean)))


def _per_channel(reduce: Callable[..., Array], image: Image) -> Float[Array, " c"]:
    """Over all voxels: first over rows as wide as z and the channels together, then over z, because few channels alone fill no vector."""
    _, _, z, c = image.shape
    return reduce(reduce(image.reshape(-1, z * c), 0).reshape(z, c), 0)
