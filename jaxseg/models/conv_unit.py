"""A convolution with the normalisation, dropout and activation behind it, and its residual form: what `resunet`, `attention_unet` and `vnet` are
made of, each equal to MONAI's `Convolution` and `ResidualUnit` (1.6.1).
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.conv import conv3d, kernel_init, transposed_conv
from jaxseg.models.instance_norm import EPSILON, instance_norm, leaky_relu
from jaxseg.models.positions import Triple

NormKind = Literal["instance", "instance_affine", "frozen_batch"]
ActKind = Literal["prelu", "relu", "leakyrelu", "elu"]
_ACTIVATIONS = {"relu": jax.nn.relu, "leakyrelu": leaky_relu, "elu": jax.nn.elu}


@dataclasses.dataclass(frozen=True)
class After:
    """What follows a convolution: `order` says which of normalisation (N), dropout (D) and activation (A), and in which order ("NDA").

    norm: "instance" has no parameters, "instance_affine" a scale and a bias a channel. "frozen_batch" is batch normalisation by stored means and
    variances, which training leaves as they are while it moves scale and bias: the form for weights that were trained with batch norm elsewhere.
    The statistics of a batch are never taken: they would make the numbers depend on how a batch is spread over devices. A new network
    of "frozen_batch" therefore normalises by mean 0 and variance 1, that is not at all.
    act: "prelu" learns one factor of negative values, from 0.25 on; "leakyrelu" has 0.01, "elu" exp(x) - 1.
    dropout: rate; every number by itself, with one key per sample.
    """

    norm: NormKind = "instance"
    act: ActKind = "prelu"
    dropout: float = 0.0
    order: str = "NDA"

    def __post_init__(self) -> None:
        check_rate("dropout", self.dropout)
        if self.norm not in ("instance", "instance_affine", "frozen_batch"):
            raise ConfigError(f"norm is {self.norm!r}; expected one of instance, instance_affine, frozen_batch")
        if self.act != "prelu" and self.act not in _ACTIVATIONS:
            raise ConfigError(f"act is {self.act!r}; expected one of prelu, {', '.join(_ACTIVATIONS)}")
        if set(self.order) - set("NDA") or len(set(self.order)) != len(self.order):
            raise ConfigError(f"the order is {self.order!r}; expected each of N (norm), D (dropout) and A (activation) at most once")


def check_rate(field: str, rate: float) -> None:
    """ConfigError if a dropout rate is none."""
    if not 0 <= rate < 1:
        raise ConfigError(f"{field} is {rate}; expected a rate of at least 0 and below 1")


def check_dtype(dtype: str) -> None:
    """ConfigError if numbers of this type are not computed with here."""
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype is {dtype!r}; expected one of float32, bfloat16")


def triple(size: int | Triple, field: str, *, odd: bool = False) -> Triple:
    """One number for all axes as three. ConfigError if they are not three positive (and, if asked, odd) numbers."""
    x, y, z = sizes = (size,) * 3 if isinstance(size, int) else tuple(size) if len(size) == 3 else (0, 0, 0)
    if min(sizes) < 1 or (odd and any(n % 2 == 0 for n in sizes)):
        raise ConfigError(f"{field} is {size}; expected one or three positive {'odd ' if odd else ''}numbers")
    return x, y, z


def check_levels(channels: tuple[int, ...], strides: tuple[int | Triple, ...]) -> None:
    """ConfigError unless there are two levels or more, of positive width, and one stride less than levels."""
    if len(channels) < 2 or min(channels) < 1 or len(strides) != len(channels) - 1:
        raise ConfigError(f"channels {channels} and strides {strides}: expected two levels or more, and a stride between each two of them")
    for stride in strides:
        triple(stride, "strides")


def total_stride(strides: tuple[int | Triple, ...]) -> Triple:
    """What each side of an input must be a multiple of."""
    x, y, z = (math.prod(each) for each in zip(*(triple(stride, "strides") for stride in strides)))
    return x, y, z


def check_image(x: Float[Array, "b x y z c"], channels: int, multiple: Triple) -> None:
    """ShapeError if the channels of `x` are others, or its sides no multiples of `multiple`."""
    if x.ndim != 5 or x.shape[-1] != channels:
        raise ShapeError(f"the input has the shape {tuple(x.shape)}; expected (b, x, y, z, {channels})")
    if any(n == 0 or n % m for n, m in zip(x.shape[1:4], multiple)):
        raise ShapeError(f"an input of {x.shape[1:4]} voxels is no multiple of {multiple} along every axis: pad or crop it")


class Noise:
    """Where one call of a network draws its dropout from: `keys`, one per sample, or None for evaluation, where nothing is dropped."""

    def __init__(self, keys: Key[Array, " b"] | None):
        self.keys, self.draws = keys, 0

    def drop(self, x: Float[Array, "b x y z c"], rate: float, *, channels: bool = False) -> Float[Array, "b x y z c"]:
        """Set numbers (or whole channels) to zero at `rate`, and enlarge what is kept so that the expectation stays."""
        if self.keys is None or not rate:
            return x
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, self.draws)
        self.draws += 1
        shape = (1, 1, 1, x.shape[-1]) if channels else x.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)
        return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Norm(nnx.Module):
    """One of the normalisations of `After`; parameters `scale`, `bias` and, for "frozen_batch", `mean` and `var`."""

    def __init__(self, kind: NormKind, channels: int):
        self.kind = kind
        if kind != "instance":
            self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
            self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        if kind == "frozen_batch":
            self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
            self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        if self.kind == "instance":
            return instance_norm(x)
        if self.kind == "instance_affine":
            return instance_norm(x, self.scale[...], self.bias[...])
        mean, var = jax.lax.stop_gradient((self.mean[...], self.var[...]))
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        return ((x.astype(jnp.float32) - mean) * factor + self.bias[...]).astype(x.dtype)


class Activation(nnx.Module):
    """One of the activations of `After`. PReLU's `scale` (the factor of negative values) is one number, or one a channel with `channels`."""

    def __init__(self, kind: ActKind, channels: int = 1):
        self.kind = kind
        self.scale = nnx.Param(jnp.full((channels,), 0.25, jnp.float32)) if kind == "prelu" else None

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        if self.scale is None:
            return _ACTIVATIONS[self.kind](x)
        return jnp.where(x > 0, x, self.scale[...].astype(x.dtype) * x)


class ConvUnit(nnx.Module):
    """A convolution with torch's symmetric padding (or, `transposed`, from n to n * stride voxels) and what comes `after` it; None: nothing."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        *,
        after: After | None,
        transposed: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.stride, self.transposed, self.after = stride, transposed, after
        # Of a transposed convolution's taps, one in prod(stride) meets a given output voxel.
        fan_in = max(1, inputs * math.prod(kernel) // (math.prod(stride) if transposed else 1))
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*kernel, inputs, outputs), fan_in=fan_in))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        order = "" if after is None else after.order
        self.norm = Norm(after.norm, outputs) if after is not None and "N" in order else None
        self.act = Activation(after.act) if after is not None and "A" in order else None

    def __call__(self, x: Float[Array, "b x y z i"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        x = self._convolve(x)
        for letter in "" if self.after is None else self.after.order:
            if letter == "N" and self.norm is not None:
                x = self.norm(x)
            elif letter == "A" and self.act is not None:
                x = self.act(x)
            elif letter == "D" and self.after is not None:
                x = noise.drop(x, self.after.dropout)
        return x

    def _convolve(self, x: Array) -> Array:
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if self.transposed:
            return transposed_conv(x, kernel, bias, stride=self.stride)
        kx, ky, kz = kernel.shape[:3]
        return conv3d(x, kernel, bias, stride=self.stride, padding=(kx // 2, ky // 2, kz // 2))


class ResidualUnit(nnx.Module):
    """`units` convolutions, the first with the stride, plus the input: as it is, or through one convolution where its shape would not fit.

    That convolution has the same kernel where there is a stride, and 1x1x1 where only the channels change. With `last_bare` the last one
    stands alone, without norm and activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        *,
        after: After,
        units: int,
        last_bare: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.units = nnx.List(
            [
                ConvUnit(
                    inputs if i == 0 else outputs,
                    outputs,
                    kernel,
                    stride if i == 0 else (1, 1, 1),
                    after=None if last_bare and i == units - 1 else after,
                    bias=bias,
                    rngs=rngs,
                )
                for i in range(units)
            ]
        )
        strided = stride != (1, 1, 1)
        self.shortcut = (
            ConvUnit(inputs, outputs, kernel if strided else (1, 1, 1), stride, after=None, bias=bias, rngs=rngs)
            if strided or inputs != outputs
            else None
        )

    def __call__(self, x: Float[Array, "b x y z i"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        y = x
        for unit in self.units:
            y = unit(y, noise)
        return y + (x if self.shortcut is None else self.shortcut(x, noise))
