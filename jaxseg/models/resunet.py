"""A U-Net of strided convolutions and residual units: MONAI's `UNet`. Built by name in `jaxseg.zoo`."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv_unit import (
    ActKind,
    After,
    ConvUnit,
    Noise,
    NormKind,
    ResidualUnit,
    check_dtype,
    check_image,
    check_levels,
    total_stride,
    triple,
)
from jaxseg.models.positions import Triple


@dataclasses.dataclass(frozen=True)
class ResUNetConfig:
    """Everything that shapes a ResUNet, in the words of MONAI's `UNet` (see there, and Kerfoot et al. 2019, doi 10.1007/978-3-030-12029-0_40).

    `channels` of each level, fine to coarse; `strides` between them (voxels, one number or one an axis): the first level is already
    strided. With `num_res_units` 0 a level is one convolution, else a residual unit of so many. `norm`, `act`, `dropout` and
    `adn_ordering` are those of `conv_unit.After`. Sizes of kernels are odd.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"small": "small", "base": "base", "large": "large"}

    in_channels: int = 1
    num_classes: int = 2
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    strides: tuple[int | Triple, ...] = (2, 2, 2, 2)
    kernel_size: int | Triple = 3
    up_kernel_size: int | Triple = 3
    num_res_units: int = 0
    act: ActKind = "prelu"
    norm: NormKind = "instance"
    dropout: float = 0.0
    bias: bool = True
    adn_ordering: str = "NDA"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def small(cls, **changes) -> "ResUNetConfig":
        """1.2 M parameters at one channel: three halvings, 16 to 128 channels, two residual units; `changes` are fields, here and below."""
        return cls(**{"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2, **changes})

    @classmethod
    def base(cls, **changes) -> "ResUNetConfig":
        """4.8 M parameters at one channel: the network of MONAI's spleen tutorial (which has batch norm: `norm="frozen_batch"` for its weights)."""
        return cls(**{"num_res_units": 2, **changes})

    @classmethod
    def large(cls, **changes) -> "ResUNetConfig":
        """19.2 M parameters at one channel: twice the channels of `base`."""
        return cls(**{"channels": (32, 64, 128, 256, 512), "num_res_units": 2, **changes})

    def __post_init__(self) -> None:
        check_levels(self.channels, self.strides)
        check_dtype(self.dtype)
        triple(self.kernel_size, "kernel_size", odd=True)
        triple(self.up_kernel_size, "up_kernel_size", odd=True)
        if min(self.in_channels, self.num_classes) < 1 or self.num_res_units < 0:
            raise ConfigError(
                f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1, "
                f"num_res_units {self.num_res_units} at least 0"
            )
        _ = self.after

    @property
    def after(self) -> After:
        """What follows each convolution."""
        return After(self.norm, self.act, self.dropout, self.adn_ordering)


class Encoder(nnx.Module):
    """The way down: `levels`, fine to coarse, the last without a stride."""

    def __init__(self, config: ResUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs = (config.in_channels, *config.channels)
        self.levels = nnx.List(
            [_level(config, i, o, stride, rngs) for i, o, stride in zip(inputs, config.channels, (*config.strides, 1), strict=False)]
        )

    def __call__(self, x: Float[Array, "b x y z c"], noise: Noise) -> list[Float[Array, "b x2 y2 z2 o"]]:
        check_image(x, self.config.in_channels, total_stride(self.config.strides))
        x, found = x.astype(self.config.dtype), []
        for level in self.levels:
            x = level(x, noise)
            found.append(x)
        return found


class DecoderLevel(nnx.Module):
    """A transposed convolution and, with residual units, one of these. The finest (`top`) ends in a convolution: the logits."""

    def __init__(self, config: ResUNetConfig, inputs: int, outputs: int, stride: int | Triple, *, top: bool, rngs: nnx.Rngs):
        residual, after = config.num_res_units > 0, config.after
        self.up = ConvUnit(
            inputs,
            outputs,
            triple(config.up_kernel_size, "up_kernel_size"),
            triple(stride, "strides"),
            after=None if top and not residual else after,
            transposed=True,
            bias=config.bias,
            rngs=rngs,
        )
        kernel = triple(config.kernel_size, "kernel_size")
        self.block = (
            ResidualUnit(outputs, outputs, kernel, after=after, units=1, last_bare=top, bias=config.bias, rngs=rngs) if residual else None
        )

    def __call__(self, x: Float[Array, "b x y z i"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        x = self.up(x, noise)
        return x if self.block is None else self.block(x, noise)


class ResUNet(nnx.Module):
    """Equal to MONAI's `UNet` (1.6.1) in three dimensions. Takes any size that is a multiple of the product of all strides.

    (MONAI takes other sizes too, and answers with more voxels than it was given.) Parameters: `encoder.levels` fine to coarse, `decoder`
    coarse to fine. The finest level of the decoder gives the logits.
    """

    def __init__(self, config: ResUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        c = config.channels
        below = (*c[:-2], c[-1])  # channels that come up to each level but the coarsest
        outputs = (config.num_classes, *c)
        self.decoder = nnx.List(
            [
                DecoderLevel(config, c[i] + below[i], outputs[i], config.strides[i], top=i == 0, rngs=rngs)
                for i in reversed(range(len(c) - 1))
            ]
        )

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `key` for dropout, `spacing` is not used. ShapeError if `x` does not fit."""
        noise = Noise(key)
        *skips, x = self.encoder(x, noise)
        for level, skip in zip(self.decoder, reversed(skips)):
            x = level(jnp.concatenate([skip, x], -1), noise)
        return x.astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 o"]]:
        """The output of every level, fine to coarse (the last two at the same resolution). ShapeError if `x` does not fit."""
        return self.encoder(x, Noise(key))


def _level(config: ResUNetConfig, inputs: int, outputs: int, stride: int | Triple, rngs: nnx.Rngs) -> ConvUnit | ResidualUnit:
    kernel, strides = triple(config.kernel_size, "kernel_size"), triple(stride, "strides")
    if config.num_res_units == 0:
        return ConvUnit(inputs, outputs, kernel, strides, after=config.after, bias=config.bias, rngs=rngs)
    return ResidualUnit(inputs, outputs, kernel, strides, after=config.after, units=config.num_res_units, bias=config.bias, rngs=rngs)
