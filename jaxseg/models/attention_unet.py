"""Attention U-Net: a U-Net whose skips are weighted by what comes up from below. Built by name in `jaxseg.zoo`."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv_unit import After, ConvUnit, Noise, check_dtype, check_image, check_levels, total_stride, triple
from jaxseg.models.positions import Triple

_POINT = (1, 1, 1)


@dataclasses.dataclass(frozen=True)
class AttentionUNetConfig:
    """Everything that shapes an Attention U-Net (Oktay et al., arXiv 1804.03999), in the words of MONAI's `AttentionUnet`.

    `channels` of each level, fine to coarse (the first at full resolution, two at least); `strides` (voxels, one number or one an axis)
    between them. Sizes of kernels are odd.

    norm: MONAI has batch norm, whose evaluation by stored statistics is "frozen_batch": what converted weights come with, and what stays
    fixed when they are fine-tuned. Statistics of the training batch are not on offer (see `conv_unit.After`); "instance_affine", which a
    new network has, normalises each sample by itself, in training as in evaluation.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"small": "small", "base": "base"}

    in_channels: int = 1
    num_classes: int = 2
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    strides: tuple[int | Triple, ...] = (2, 2, 2, 2)
    kernel_size: int | Triple = 3
    up_kernel_size: int | Triple = 3
    dropout: float = 0.0
    norm: Literal["instance_affine", "frozen_batch"] = "instance_affine"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def small(cls, **changes) -> "AttentionUNetConfig":
        """1.5 M parameters at one channel: three halvings, 16 to 128 channels; `changes` are fields, here and below."""
        return cls(**{"channels": (16, 32, 64, 128), "strides": (2, 2, 2), **changes})

    @classmethod
    def base(cls, **changes) -> "AttentionUNetConfig":
        """5.9 M parameters at one channel: four halvings, 16 to 256 channels."""
        return cls(**changes)

    def __post_init__(self) -> None:
        check_levels(self.channels, self.strides)
        check_dtype(self.dtype)
        triple(self.kernel_size, "kernel_size", odd=True)
        triple(self.up_kernel_size, "up_kernel_size", odd=True)
        if min(self.in_channels, self.num_classes) < 1 or min(self.channels[:-1]) < 2:
            raise ConfigError(
                f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1, channels {self.channels} at least 2"
            )
        if self.norm not in ("instance_affine", "frozen_batch"):
            raise ConfigError(f"norm is {self.norm!r}; expected one of instance_affine, frozen_batch")
        _ = self.after

    @property
    def after(self) -> After:
        """What follows the encoder's convolutions."""
        return After(self.norm, "relu", self.dropout)


class ConvPair(nnx.Module):
    """Two convolutions, each with norm, dropout and ReLU; the first has the stride."""

    def __init__(self, config: AttentionUNetConfig, inputs: int, outputs: int, stride: Triple = _POINT, *, rngs: nnx.Rngs):
        kernel = triple(config.kernel_size, "kernel_size")
        self.first = ConvUnit(inputs, outputs, kernel, stride, after=config.after, rngs=rngs)
        self.second = ConvUnit(outputs, outputs, kernel, after=config.after, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z i"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        return self.second(self.first(x, noise), noise)


class Gate(nnx.Module):
    """`skip` times a weight per voxel, sigmoid(norm(w · relu(norm(W g) + norm(V skip)))), where `g` comes from below (equation 1 of the paper)."""

    def __init__(self, config: AttentionUNetConfig, channels: int, *, rngs: nnx.Rngs):
        bare = After(config.norm, order="N")
        self.below = ConvUnit(channels, channels // 2, _POINT, after=bare, rngs=rngs)
        self.skip = ConvUnit(channels, channels // 2, _POINT, after=bare, rngs=rngs)
        self.weight = ConvUnit(channels // 2, 1, _POINT, after=bare, rngs=rngs)

    def __call__(self, below: Float[Array, "b x y z c"], skip: Float[Array, "b x y z c"], noise: Noise) -> Float[Array, "b x y z c"]:
        hidden = jax.nn.relu(self.below(below, noise) + self.skip(skip, noise))
        return skip * jax.nn.sigmoid(self.weight(hidden, noise))


class DecoderLevel(nnx.Module):
    """Up by a transposed convolution, gate the skip, merge the two by a convolution with instance norm and PReLU (not batch norm and ReLU: as MONAI)."""

    def __init__(self, config: AttentionUNetConfig, inputs: int, outputs: int, stride: Triple, *, rngs: nnx.Rngs):
        after = After(config.norm, "relu")  # no dropout here, as in MONAI
        self.up = ConvUnit(
            inputs, outputs, triple(config.up_kernel_size, "up_kernel_size"), stride, after=after, transposed=True, rngs=rngs
        )
        self.gate = Gate(config, outputs, rngs=rngs)
        self.merge = ConvUnit(2 * outputs, outputs, (3, 3, 3), after=After(dropout=config.dropout), rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z i"], skip: Float[Array, "b x2 y2 z2 o"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        x = self.up(x, noise)
        return self.merge(jnp.concatenate([self.gate(x, skip, noise), x], -1), noise)


class Encoder(nnx.Module):
    """The way down: `levels`, fine to coarse."""

    def __init__(self, config: AttentionUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        sides = zip((config.in_channels, *config.channels), config.channels, (1, *config.strides), strict=False)
        self.levels = nnx.List([ConvPair(config, i, o, triple(stride, "strides"), rngs=rngs) for i, o, stride in sides])

    def __call__(self, x: Float[Array, "b x y z c"], noise: Noise) -> list[Float[Array, "b x2 y2 z2 o"]]:
        check_image(x, self.config.in_channels, total_stride(self.config.strides))
        x, found = x.astype(self.config.dtype), []
        for level in self.levels:
            x = level(x, noise)
            found.append(x)
        return found


class AttentionUNet(nnx.Module):
    """Equal to MONAI's `AttentionUnet` (1.6.1) in three dimensions and in evaluation, with norm "frozen_batch".

    Takes any size that is a multiple of the product of all strides. Parameters: `encoder.levels` fine to coarse, `decoder` coarse to
    fine, `head`.
    """

    def __init__(self, config: AttentionUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        sides = list(zip(config.channels[1:], config.channels, config.strides, strict=False))
        self.decoder = nnx.List([DecoderLevel(config, i, o, triple(stride, "strides"), rngs=rngs) for i, o, stride in reversed(sides)])
        self.head = ConvUnit(config.channels[0], config.num_classes, _POINT, after=None, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `key` for dropout, `spacing` is not used. ShapeError if `x` does not fit."""
        noise = Noise(key)
        *skips, x = self.encoder(x, noise)
        for level, skip in zip(self.decoder, reversed(skips)):
            x = level(x, skip, noise)
        return self.head(x, noise).astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 o"]]:
        """The output of every level, fine to coarse. ShapeError if `x` does not fit."""
        return self.encoder(x, Noise(key))
