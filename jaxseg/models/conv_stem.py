"""Residual convolutions from voxels to a grid of tokens: the stems of Primus V2 and V3. Called by `eva`."""

import dataclasses
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxseg.errors import ConfigError
from jaxseg.models.conv import average_pool, conv3d, space_to_depth
from jaxseg.models.instance_norm import leaky_relu
from jaxseg.models.positions import Triple
from jaxseg.models.unet_blocks import ConvNorm, he_normal

_SKIP_SCALE = 1e-5  # first value of the factor of a level's shortcut to the tokens


@dataclasses.dataclass(frozen=True)
class ConvStemConfig:
    """A level at full resolution and then one per entry of `depths` (residual blocks), each at half the resolution of the one before.

    `widths` are the channels of all levels, one more than `depths`. With `skips`, every level but the last also reaches the tokens directly,
    through a convolution with kernel = stride and a learned factor.
    """

    widths: tuple[int, ...] = (32, 32, 64, 128)
    depths: tuple[int, ...] = (1, 1, 1)
    activation: Literal["relu", "leaky_relu"] = "relu"
    skips: bool = False

    @property
    def reduction(self) -> int:
        """Voxels of a token along each axis."""
        return 2 ** len(self.depths)

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) + 1 or not self.depths or min(*self.widths, *self.depths) < 1:
            raise ConfigError(f"widths {self.widths} and depths {self.depths}: expected at least one level, and one width more than depths")
        if self.activation not in ("relu", "leaky_relu"):
            raise ConfigError(f"activation is {self.activation!r}; expected one of relu, leaky_relu")


class StemBlock(nnx.Module):
    """conv - norm - activation - conv - norm, plus a shortcut that averages over the stride before its convolution, activation.

    Equal to dynamic-network-architectures' `BasicBlockD` with instance norm; unlike in the U-Nets all norms begin at 1.
    """

    def __init__(self, inputs: int, outputs: int, activation: str, *, stride: Triple = (1, 1, 1), bias: bool = False, rngs: nnx.Rngs):
        self.stride, self.activation = stride, activation
        self.conv1 = ConvNorm(inputs, outputs, (3, 3, 3), stride, bias=bias, rngs=rngs)
        self.conv2 = ConvNorm(outputs, outputs, (3, 3, 3), bias=bias, rngs=rngs)
        self.shortcut = ConvNorm(inputs, outputs, (1, 1, 1), bias=False, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        activate = jax.nn.relu if self.activation == "relu" else leaky_relu
        y = self.conv2(activate(self.conv1(x)))
        x = average_pool(x, self.stride)
        return activate(y + (x if self.shortcut is None else self.shortcut(x)))


class Projection(nnx.Module):
    """A convolution with kernel = stride = `reduction`, one matrix over the voxels of a block; times a learned factor `gamma` if it has a first value."""

    def __init__(self, inputs: int, outputs: int, reduction: int, *, gamma: float | None = None, rngs: nnx.Rngs):
        self.reduction = reduction
        self.kernel = nnx.Param(he_normal(rngs.params(), (reduction, reduction, reduction, inputs, outputs), reduction**3 * inputs))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.gamma = None if gamma is None else nnx.Param(jnp.asarray(gamma, jnp.float32))

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        side = self.reduction
        kernel = self.kernel[...].reshape(1, 1, 1, -1, self.kernel.shape[-1])
        y = conv3d(space_to_depth(x, (side, side, side)), kernel, self.bias[...])
        return y if self.gamma is None else y * self.gamma[...].astype(y.dtype)


class ConvStem(nnx.Module):
    """Voxels to a grid of tokens, `(b, gx, gy, gz, width)`. Parameters: `first`, `levels`, `project` and, if configured, `skips`."""

    def __init__(self, config: ConvStemConfig, in_channels: int, width: int, dtype: str, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.first = StemBlock(in_channels, config.widths[0], config.activation, bias=True, rngs=rngs)
        self.levels = nnx.List(
            [
                nnx.List(
                    [StemBlock(o if i else n, o, config.activation, stride=(1, 1, 1) if i else (2, 2, 2), rngs=rngs) for i in range(depth)]
                )
                for (n, o), depth in zip(pairwise(config.widths), config.depths)
            ]
        )
        self.project = Projection(config.widths[-1], width, 1, rngs=rngs)
        if config.skips:
            below = enumerate(config.widths[:-1])
            self.skips = nnx.List([Projection(n, width, config.reduction // 2**i, gamma=_SKIP_SCALE, rngs=rngs) for i, n in below])

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b gx gy gz w"]:
        x = self.first(x.astype(jnp.dtype(self.dtype)))
        passed = []
        for level in self.levels:
            passed.append(x)
            for block in level:
                x = block(x)
        tokens = self.project(x)
        if self.config.skips:
            for skip, y in zip(self.skips, passed):
                tokens = tokens + skip(y)
        return tokens
