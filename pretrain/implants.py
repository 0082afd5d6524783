"""Artificial lesions drawn into scans on the device, with their outline: the data of the "lesions" objective.

A lesion is a lump of three layers, one inside the other (rim, solid part, core), each of which changes the signal of every channel. The idea is
that of Zhang et al. 2021 (arXiv 2109.03230): what a tumour looks like depends little on what it grows in, so a network that learns to outline
artificial ones of many shapes, sizes and signals has learnt most of what a few contoured real ones have to teach.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxseg.errors import ConfigError

LAYERS = 3
# Voxels that one lump of the outline, and one of the texture, is wide.
_LUMP, _GRAIN = 4, 3


@dataclass(frozen=True)
class Lesions:
    """How artificial lesions look, and the decoder that learns to outline them.

    Attributes:
        radius: smallest and largest mean half axis in mm, drawn evenly on a log scale.
        spread: of the change of signal that each layer draws for each channel: the standard deviation of a normal around `signal`, in units of the
            prepared image (standard deviations of the body, in the usual recipes).
        signal: what is known beforehand of the signal of such lesions, by channel: the expected change in the outermost layer, and what the middle
            one and the core add to it, in the same units. 0 for a channel that is not named.
        near: the loss counts voxels within so many radii of the lesion's centre, so that lesions that the scan already has are not learnt to be
            background.
        feature, stride: of the UNETR that is trained, see `UNETRConfig`; fine-tuning takes all of it but its head where its own are the same.
    """

    radius: tuple[float, float] = (6.0, 27.0)
    spread: float = 1.3
    signal: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    near: float = 2.5
    feature: int = 16
    stride: int = 2

    def __post_init__(self) -> None:
        low, high = self.radius
        if not 0 < low <= high:
            raise ConfigError(f"lesions.radius is {self.radius}; expected the smallest and the largest radius in mm, both above 0")
        if not (self.spread >= 0 and self.near > 0):
            raise ConfigError(
                f"lesions.spread is {self.spread} and lesions.near is {self.near}; the first must not be below 0, the second above"
            )
        for name, layers in self.signal.items():
            if len(layers) != LAYERS:
                raise ConfigError(f"lesions.signal of {name} has {len(layers)} numbers; expected {LAYERS}: outermost layer, middle, core")

    def expected(self, channels: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
        """`signal` as (layer, channel) for the channels of a store. ConfigError if it names a channel that the store does not have."""
        unknown = sorted(set(self.signal) - set(channels))
        if unknown:
            raise ConfigError(f"lesions.signal names {', '.join(unknown)}; the store's channels are {', '.join(channels)}")
        columns = [self.signal.get(name, (0.0,) * LAYERS) for name in channels]
        return tuple(tuple(column[layer] for column in columns) for layer in range(LAYERS))


def implant(
    image: Float[Array, "x y z c"],
    body: Bool[Array, "x y z"],
    spacing: Float[Array, "3"],
    key: Key[Array, ""],
    lesions: Lesions,
    expected: Float[Array, "3 c"],
) -> tuple[Float[Array, "x y z c"], Bool[Array, "x y z 3"], Bool[Array, "x y z"]]:
    """One artificial lesion in one crop.

    Args:
        image: the crop, float32.
        body: where a lesion may lie; its centre is one of these voxels. Without any the crop stays as it is.
        spacing: mm a voxel.
        key: of this crop alone.
        lesions: sizes and spread.
        expected: of the signal's change, by layer and channel.

    Returns:
        The crop with its lesion; the layers with what lies inside them, outermost first (whole, whole without rim, core); and the voxels near
        the lesion, which are those to learn from.
    """
    place, size, axes, shift, outline, inner, middle, core, signal, texture = jax.random.split(key, 10)
    shape = image.shape[:3]
    indices = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape), indexing="ij"), -1)
    chosen = jnp.argmax(jnp.where(body, jax.random.uniform(place, shape, minval=0.1), 0.0))
    away = (indices - indices.reshape(-1, 3)[chosen]) * spacing
    low, high = lesions.radius
    mean = jnp.exp(jax.random.uniform(size, minval=jnp.log(low), maxval=jnp.log(high)))
    half_axes = mean * jnp.exp(0.25 * jax.random.normal(axes, (3,)))
    distance = jnp.sqrt(jnp.sum((away / half_axes) ** 2, -1))
    # Size of the second layer, and of the third within the second.
    second, third = (jax.random.uniform(each, minval=0.4, maxval=0.95) for each in (middle, core))
    aside = away - 0.2 * half_axes * jax.random.normal(shift, (3,))
    within = jnp.sqrt(jnp.sum((aside / (half_axes * second)) ** 2, -1)) + 0.25 * _lumps(inner, shape, _LUMP)
    whole = (distance + 0.25 * _lumps(outline, shape, _LUMP) < 1) & body
    solid = whole & (within < 1)
    layers = jnp.stack([whole, solid, solid & (within < third)], -1)
    change = expected + lesions.spread * jax.random.normal(signal, expected.shape)
    grain = jnp.stack([1 + 0.3 * _lumps(each, shape, _GRAIN) for each in jax.random.split(texture, LAYERS)], -1)
    changed = image + jnp.einsum("xyzl,lc->xyzc", _softened(layers.astype(jnp.float32)) * grain, change)
    return changed, layers, (distance < lesions.near) & body


def _lumps(key: Key[Array, ""], shape: tuple[int, ...], width: int) -> Float[Array, "x y z"]:
    """Smooth noise with a lump every `width` voxels, of about unit variance at the lumps."""
    coarse = tuple(max(2, n // width) for n in shape)
    return jax.image.resize(jax.random.normal(key, coarse), shape, "cubic")


def _softened(layers: Float[Array, "x y z l"]) -> Float[Array, "x y z l"]:
    """The mean over 3 x 3 x 3 voxels (zeros outside): partial volume at the layers' edges."""
    window = (3, 3, 3, 1)
    return jax.lax.reduce_window(layers, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME") / 27
