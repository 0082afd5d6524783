"""Feature maps of any network: what other heads, probes and detectors are built on. Made by `zoo.create_model(name, features_only=True)`.

A network (or its encoder) takes part by a method `features(x, spacing=None, key=None)`: a list of maps `(b, x', y', z', c)`, fine to coarse, or of
a transformer early to late. Where the method needs more of the network than its `encoder`, `FEATURE_PARTS` names those attributes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv_unit import total_stride
from jaxseg.models.positions import Triple


class FeatureInfo(NamedTuple):
    """One feature map: its channels, and the voxels of the input along each axis in one of its places."""

    channels: int
    reduction: Triple


class FeatureMaps(nnx.Module):
    """The feature maps of a network, without the arrays of its decoder. Its arrays keep their names below `encoder`.

    Args:
        network: any network of `jaxseg.models`, with its weights; it is not changed, and shares them.
        indices: which of its maps, from 0 or, from the last one on, from -1; None for all.

    Raises ConfigError if the network gives no feature maps, or has no map of such an index.
    """

    def __init__(self, network: nnx.Module, indices: Sequence[int] | None = None):
        self.config: Any = getattr(network, "config", None)
        self.encoder: Any = _stripped(network)
        shapes = nnx.eval_shape(lambda encoder: _probe(encoder, self.config), self.encoder)
        count = len(shapes)
        indices = range(count) if indices is None else indices
        if wrong := [index for index in indices if not -count <= index < count]:
            raise ConfigError(f"there is no feature map {wrong[0]}: {type(network).__name__} gives {count}, numbered from 0")
        self.indices = tuple(index % count for index in indices)
        sides = _sides(self.config)
        self.feature_info = tuple(_info(sides, shapes[index].shape) for index in self.indices)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """The maps of `indices`, each with the channels and at the reduction of `feature_info`. ShapeError if `x` does not fit."""
        maps = self.encoder.features(x, spacing=spacing, key=key)
        return [maps[index] for index in self.indices]


def _stripped(network: Any) -> nnx.Module:
    """The part of `network` that its feature maps need, as a module of its own."""
    if not hasattr(network, "features"):
        if not hasattr(getattr(network, "encoder", None), "features"):
            raise ConfigError(f"a {type(network).__name__} gives no feature maps: it has no method `features`, nor has its encoder")
        return network.encoder
    if not hasattr(network, "encoder"):
        return network
    network = nnx.merge(*nnx.split(network))
    needed = getattr(network, "FEATURE_PARTS", ("encoder",))
    for name, value in list(vars(network).items()):
        if name not in needed and isinstance(value, nnx.Pytree | nnx.Variable):
            delattr(network, name)
    return network


def _probe(encoder: Any, config: Any) -> list[Array]:
    channels = getattr(config, "encoder", config).in_channels
    return encoder.features(jnp.zeros((1, *_sides(config), channels)), spacing=jnp.ones((1, 3)))


def _sides(config: Any) -> Triple:
    """A size that the network takes: its crop, or for those of any size 96 voxels, rounded up to what its strides divide."""
    encoder = getattr(config, "encoder", config)
    crop = getattr(config, "crop", None) or getattr(encoder, "crop", None) or (96, 96, 96)
    strides = getattr(config, "strides", ()) or ((encoder.patch, 2, 2, 2, 2) if hasattr(encoder, "window") else (1,))
    x, y, z = (math.ceil(side / step) * step for side, step in zip(crop, total_stride(strides)))
    return x, y, z


def _info(sides: Triple, shape: tuple[int, ...]) -> FeatureInfo:
    x, y, z = (round(side / places) for side, places in zip(sides, shape[1:4]))
    return FeatureInfo(shape[-1], (x, y, z))
