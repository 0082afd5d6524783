"""Artificial lesions drawn into scans on the device, with their outline: the data of the "lesions" objective.

A lesion grows from a random place of the body, sooner through tissue like that at its centre than through other tissue, and has up to three parts: a margin
(such as oedema) around a core, and in the core a living part around a dead one. Each part has a signal of its own in every channel. The idea is
that of Zhang et al. 2021 (arXiv 2109.03230) and of synthetic tumours (Hu et al. 2023, arXiv 2303.14869): what a tumour looks like depends little
on what it grows in, so a network that learns to outline artificial ones of many shapes, sizes and signals has learnt much of what a few contoured
real ones have to teach.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxseg.errors import ConfigError
from pretrain.decoded import Decoder, check_decoder

PARTS = ("margin", "living", "dead")
LAYERS = ("whole", "core", "living")
"""What is outlined: all three parts, the core (living and dead), and the living part alone. Later ones lie inside earlier ones."""

# How much of a core's voxel is lesion; of the margin it is drawn, since oedema lets the anatomy shine through.
_DENSE, _SHEER = 0.92, (0.5, 0.95)
# Deviations between smoothed voxels and the centre's that growth does not notice: in the core, in the margin.
_ALIKE = (0.7, 0.5)
_NEAR_MM = 6.0


@dataclass(frozen=True)
class Lesions:
    """How artificial lesions look, and the decoder that learns to outline them.

    Attributes:
        radius: smallest and largest mean half axis in mm, drawn evenly on a log scale. The default is balls of 0.3 to 65 ml.
        core: smallest and largest share of the volume that is core, drawn evenly; a share above 0.9 leaves no margin.
        signal: what is known beforehand of the signal of such lesions, by channel: how far margin, living and dead part lie above the tissue
            around, in units of the prepared image (standard deviations of the body, in the usual recipes). 0 for a channel that is not named.
        spread: the standard deviation around `signal` of what each lesion draws, in the same units.
        tissue: how much sooner a lesion grows through tissue like that at its centre; 0 for balls with bumps.
        near: the loss counts voxels within so many radii of the lesion's centre and 6 mm more, so that lesions that the scan already has are
            not learnt to be background.
        decoder: of the network that is trained: "unetr", which is also None, or "unetr_plus" with its convolutional stem.
        feature, stride: see `UNETRConfig` and `UNETRPlusConfig`; fine-tuning takes all of it where its own family and sizes are the same.
    """

    radius: tuple[float, float] = (4.2, 25.0)
    core: tuple[float, float] = (0.15, 1.0)
    signal: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    spread: float = 1.3
    tissue: float = 1.0
    near: float = 2.5
    decoder: Decoder | None = None
    feature: int = 16
    stride: int = 2

    def __post_init__(self) -> None:
        check_decoder("lesions.decoder", self.decoder)
        low, high = self.radius
        if not 0 < low <= high:
            raise ConfigError(f"lesions.radius is {self.radius}; expected the smallest and the largest radius in mm, both above 0")
        if not 0 < self.core[0] <= self.core[1] <= 1:
            raise ConfigError(
                f"lesions.core is {self.core}; expected the smallest and the largest share of the volume, above 0 and up to 1"
            )
        if not (self.spread >= 0 and self.tissue >= 0 and self.near > 0):
            raise ConfigError(
                f"lesions.spread is {self.spread}, lesions.tissue is {self.tissue} and lesions.near is {self.near}; "
                "the first two must not be below 0, the third above"
            )
        for name, parts in self.signal.items():
            if len(parts) != len(PARTS):
                raise ConfigError(f"lesions.signal of {name} has {len(parts)} numbers; expected {len(PARTS)}: {', '.join(PARTS)}")

    def expected(self, channels: tuple[str, ...]) -> tuple[tuple[float, ...], ...]:
        """`signal` as (part, channel) for the channels of a store. ConfigError if it names a channel that the store does not have."""
        unknown = sorted(set(self.signal) - set(channels))
        if unknown:
            raise ConfigError(f"lesions.signal names {', '.join(unknown)}; the store's channels are {', '.join(channels)}")
        columns = [self.signal.get(name, (0.0,) * len(PARTS)) for name in channels]
        return tuple(tuple(column[part] for column in columns) for part in range(len(PARTS)))


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
        lesions: sizes, shapes and spread.
        expected: the signal above the tissue around, by part and channel.

    Returns:
        The crop with its lesion; `LAYERS`; and the voxels near the lesion, which are those to learn from.
    """
    grown, looks = jax.random.split(key)
    layers, near = _grow(image, body, spacing, grown, lesions)
    whole, core, living = jnp.moveaxis(layers, -1, 0)
    parts = jnp.stack([whole & ~core, living, core & ~living], -1)
    return _shown(image, parts, looks, lesions, expected), layers, near


def _grow(image: Array, body: Array, spacing: Array, key: Array, lesions: Lesions) -> tuple[Array, Array]:
    """(x, y, z, layer) and the voxels near the lesion."""
    place, size, axes, share, rough, kind, depth, *bumps = jax.random.split(key, 11)
    shape = image.shape[:3]
    indices = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape), indexing="ij"), -1)
    chosen = jnp.argmax(jnp.where(body, jax.random.uniform(place, shape, minval=0.1), 0.0))
    away = (indices - indices.reshape(-1, 3)[chosen]) * spacing
    distance = jnp.sqrt(jnp.sum((away / jnp.exp(0.2 * jax.random.normal(axes, (3,)))) ** 2, -1))
    low, high = lesions.radius
    radius = jnp.exp(jax.random.uniform(size, minval=jnp.log(low), maxval=jnp.log(high)))
    part = jax.random.uniform(share, minval=lesions.core[0], maxval=lesions.core[1])
    inner = radius * jnp.cbrt(part)
    smooth = _mean_around(image, 3)
    unlike = jnp.sqrt(jnp.mean((smooth - smooth.reshape(-1, image.shape[-1])[chosen]) ** 2, -1))
    in_core, in_margin = (lesions.tissue * radius * jnp.maximum(unlike - alike, 0) for alike in _ALIKE)
    roughness = jax.random.uniform(rough, minval=0.1, maxval=0.4)
    level = distance + inner * roughness * (_lumps(bumps[0], shape, 4) + 0.5 * _lumps(bumps[1], shape, 2)) + 0.3 * in_core
    core = (level < inner) & body
    beyond = jnp.maximum(level - inner, 0) + 0.35 * radius * _lumps(bumps[2], shape, 5) + 0.8 * in_margin
    whole = jnp.where(part > 0.9, core, core | ((beyond < radius - inner) & (distance < 2.5 * radius) & body))
    # A fifth of the lesions has no dead part, some have no living one.
    drawn = jax.random.uniform(kind)
    dead = jnp.where(drawn < 0.2, -jnp.inf, jnp.where(drawn > 0.85, jnp.inf, inner * jax.random.uniform(depth, minval=0.5, maxval=0.9)))
    living = core & (level + 0.6 * inner * roughness * _lumps(bumps[3], shape, 3) >= dead)
    return jnp.stack([whole, core, living], -1), (distance < lesions.near * radius + _NEAR_MM) & body


def _shown(image: Array, parts: Array, key: Array, lesions: Lesions, expected: Array) -> Array:
    """The image with each part's signal in place of the tissue's, as far as the part is dense."""
    signal, texture, sheer = jax.random.split(key, 3)
    density = jnp.array([jax.random.uniform(sheer, minval=_SHEER[0], maxval=_SHEER[1]), _DENSE, _DENSE])
    share = _mean_around(parts.astype(jnp.float32), 3) * density  # partial volume at the edges
    level = expected + lesions.spread * jax.random.normal(signal, expected.shape)
    grain = jnp.stack([1 + 0.3 * _lumps(each, image.shape[:3], 3) for each in jax.random.split(texture, len(PARTS))], -1)
    all_of_it = jnp.sum(share, -1, keepdims=True)
    return image * (1 - all_of_it) + all_of_it * _mean_around(image, 9) + jnp.einsum("xyzp,pc->xyzc", share * grain, level)


def _lumps(key: Array, shape: tuple[int, ...], width: int) -> Float[Array, "x y z"]:
    """Smooth noise with a lump every `width` voxels, of about unit variance at the lumps."""
    coarse = tuple(max(2, n // width) for n in shape)
    return jax.image.resize(jax.random.normal(key, coarse), shape, "cubic")


def _mean_around(x: Float[Array, "x y z c"], width: int) -> Float[Array, "x y z c"]:
    """The mean of the cube of `width` voxels (odd) around each voxel, of those of them that exist."""
    for axis in range(3):
        places = np.arange(x.shape[axis])
        near = np.abs(places[:, None] - places) <= width // 2
        weights = jnp.asarray(near / near.sum(1, keepdims=True), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(weights, x, ((1,), (axis,))), 0, axis)
    return x
