"""V-Net: residual stages of 5x5x5 convolutions. Built by name in `jaxseg.zoo`."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv import conv3d, kernel_init, upsample_conv
from jaxseg.models.conv_unit import Activation, After, ConvUnit, Noise, Norm, check_dtype, check_image, check_rate

_KERNEL = (5, 5, 5)
_HALVING = (2, 2, 2)
_DOWN = (1, 2, 3, 2)  # convolutions of the stages on the way down, fine to coarse
_UP = (1, 1, 2, 2)  # and on the way up, fine to coarse as well
_SKIP_DROPOUT = 0.5  # of the two finest skips: MONAI's argument does not reach them


@dataclasses.dataclass(frozen=True)
class VNetConfig:
    """Everything that shapes a V-Net (Milletari et al., arXiv 1606.04797), in the words of MONAI's `VNet`.

    `feature` channels at full resolution (16 in the paper and in MONAI), which `in_channels` must divide: the input is repeated to that
    many and added. `dropout_prob_down` is the rate of the two coarsest stages on the way down, `dropout_prob_up` those of what comes up to the
    two coarsest stages on the way up, and of their skips; the two finer skips always have 0.5. None is 0. `dropout_dim` 3 drops whole
    channels, 1 single numbers. `bias` is that of the convolutions, but not of those that go up (always), nor within their stages (never).

    norm: MONAI has batch norm, whose evaluation by stored statistics is "frozen_batch": what converted weights come with, and what stays
    fixed when they are fine-tuned. Statistics of the training batch are not on offer (see `conv_unit.After`); "instance_affine", which a
    new network has, normalises each sample by itself, in training as in evaluation.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"small": "small", "base": "base"}

    in_channels: int = 1
    num_classes: int = 2
    feature: int = 16
    act: Literal["elu", "prelu", "relu", "leakyrelu"] = "elu"
    dropout_prob_down: float | None = 0.5
    dropout_prob_up: tuple[float | None, float] = (0.5, 0.5)
    dropout_dim: Literal[1, 3] = 3
    bias: bool = False
    norm: Literal["instance_affine", "frozen_batch"] = "instance_affine"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def small(cls, **changes) -> "VNetConfig":
        """11.4 M parameters: half the channels of the paper's; `changes` are fields, here and below."""
        return cls(**{"feature": 8, **changes})

    @classmethod
    def base(cls, **changes) -> "VNetConfig":
        """45.6 M parameters: the paper's and MONAI's."""
        return cls(**changes)

    def __post_init__(self) -> None:
        if min(self.in_channels, self.num_classes, self.feature) < 1 or self.feature % self.in_channels or self.feature % 2:
            raise ConfigError(
                f"in_channels {self.in_channels} must divide feature {self.feature} (an even number), and num_classes {self.num_classes} "
                "must be at least 1"
            )
        check_dtype(self.dtype)
        check_rate("dropout_prob_down", self.dropout_prob_down or 0)
        for rate in self.dropout_prob_up:
            check_rate("dropout_prob_up", rate or 0)
        if self.norm not in ("instance_affine", "frozen_batch") or self.dropout_dim not in (1, 3):
            raise ConfigError(
                f"norm is {self.norm!r} and dropout_dim {self.dropout_dim}; expected instance_affine or frozen_batch, and 1 or 3"
            )
        _ = self.after

    @property
    def after(self) -> After:
        """What follows each convolution of 5x5x5; the activation comes once the residual is added, one PReLU factor a channel."""
        return After(self.norm, self.act, order="N")


class Convolutions(nnx.Module):
    """So many times convolution, norm and activation."""

    def __init__(self, config: VNetConfig, channels: int, count: int, *, bias: bool, rngs: nnx.Rngs):
        self.units = nnx.List([ConvUnit(channels, channels, _KERNEL, after=config.after, bias=bias, rngs=rngs) for _ in range(count)])
        self.acts = nnx.List([Activation(config.act, channels) for _ in range(count)])

    def __call__(self, x: Float[Array, "b x y z c"], noise: Noise) -> Float[Array, "b x y z c"]:
        for unit, act in zip(self.units, self.acts):
            x = act(unit(x, noise))
        return x


class Stem(nnx.Module):
    """One convolution and norm, plus the input repeated to as many channels, and the activation."""

    def __init__(self, config: VNetConfig, *, rngs: nnx.Rngs):
        self.unit = ConvUnit(config.in_channels, config.feature, _KERNEL, after=config.after, bias=config.bias, rngs=rngs)
        self.act = Activation(config.act, config.feature)

    def __call__(self, x: Float[Array, "b x y z c"], noise: Noise) -> Float[Array, "b x y z o"]:
        y = self.unit(x, noise)
        return self.act(y + jnp.tile(x, y.shape[-1] // x.shape[-1]))


class Down(nnx.Module):
    """A convolution of kernel 2 and stride 2 to twice the channels, then convolutions with a residual around them."""

    def __init__(self, config: VNetConfig, inputs: int, count: int, dropout: float, *, rngs: nnx.Rngs):
        outputs = 2 * inputs
        self.dropout, self.channels_drop = dropout, config.dropout_dim == 3
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*_HALVING, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if config.bias else None
        self.norm = Norm(config.norm, outputs)
        self.act = Activation(config.act, outputs)
        self.stage = Convolutions(config, outputs, count, bias=config.bias, rngs=rngs)
        self.last_act = Activation(config.act, outputs)

    def __call__(self, x: Float[Array, "b x y z i"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        bias = None if self.bias is None else self.bias[...]
        x = self.act(self.norm(conv3d(x, self.kernel[...], bias, stride=_HALVING, padding="VALID")))
        return self.last_act(self.stage(noise.drop(x, self.dropout, channels=self.channels_drop), noise) + x)


class Up(nnx.Module):
    """A transposed convolution to half of `outputs` channels, the skip behind it, then convolutions with a residual around them."""

    def __init__(self, config: VNetConfig, inputs: int, outputs: int, count: int, dropout: tuple[float, float], *, rngs: nnx.Rngs):
        self.dropout, self.channels_drop = dropout, config.dropout_dim == 3
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*_HALVING, inputs, outputs // 2), fan_in=inputs))
        self.bias = nnx.Param(jnp.zeros((outputs // 2,), jnp.float32))
        self.norm = Norm(config.norm, outputs // 2)
        self.act = Activation(config.act, outputs // 2)
        self.stage = Convolutions(config, outputs, count, bias=False, rngs=rngs)
        self.last_act = Activation(config.act, outputs)

    def __call__(self, x: Float[Array, "b x y z i"], skip: Float[Array, "b x2 y2 z2 s"], noise: Noise) -> Float[Array, "b x2 y2 z2 o"]:
        x = noise.drop(x, self.dropout[0], channels=self.channels_drop)
        skip = noise.drop(skip, self.dropout[1], channels=self.channels_drop)
        x = self.act(self.norm(upsample_conv(x, self.kernel[...], self.bias[...])))
        x = jnp.concatenate([x, skip], -1)
        return self.last_act(self.stage(x, noise) + x)


class Encoder(nnx.Module):
    """The way down: `stem` at full resolution, and `levels`, fine to coarse."""

    def __init__(self, config: VNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        rates = (0.0, 0.0, config.dropout_prob_down or 0.0, config.dropout_prob_down or 0.0)
        self.levels = nnx.List(
            [Down(config, config.feature * 2**i, count, rate, rngs=rngs) for i, (count, rate) in enumerate(zip(_DOWN, rates))]
        )

    def __call__(self, x: Float[Array, "b x y z c"], noise: Noise) -> list[Float[Array, "b x2 y2 z2 o"]]:
        check_image(x, self.config.in_channels, (16, 16, 16))
        found = [self.stem(x.astype(self.config.dtype), noise)]
        for level in self.levels:
            found.append(level(found[-1], noise))
        return found


class VNet(nnx.Module):
    """Equal to MONAI's `VNet` (1.6.1) in three dimensions and in evaluation, with norm "frozen_batch". Sides are multiples of 16.

    Parameters: `encoder.stem` and `encoder.levels` fine to coarse, `decoder` coarse to fine, `last` and `head`.
    """

    def __init__(self, config: VNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        feature = config.feature
        self.encoder = Encoder(config, rngs=rngs)
        inputs = (4 * feature, 8 * feature, 16 * feature, 16 * feature)  # the two coarsest stages have as many channels, on the way up
        given = (config.dropout_prob_up[0] or 0.0, config.dropout_prob_up[1] or 0.0)
        rates = ((0.0, _SKIP_DROPOUT), (0.0, _SKIP_DROPOUT), given, given)
        stages = [
            Up(config, i, 2 * feature * 2**level, count, rate, rngs=rngs) for level, (i, count, rate) in enumerate(zip(inputs, _UP, rates))
        ]
        self.decoder = nnx.List(stages[::-1])
        self.last = ConvUnit(2 * feature, config.num_classes, _KERNEL, after=config.after, bias=config.bias, rngs=rngs)
        self.act = Activation(config.act, config.num_classes)
        self.head = ConvUnit(config.num_classes, config.num_classes, (1, 1, 1), after=None, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `key` for dropout, `spacing` is not used. ShapeError if `x` does not fit."""
        noise = Noise(key)
        *skips, x = self.encoder(x, noise)
        for level, skip in zip(self.decoder, reversed(skips)):
            x = level(x, skip, noise)
        return self.head(self.act(self.last(x, noise)), noise).astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 o"]]:
        """The output of every stage, fine to coarse. ShapeError if `x` does not fit."""
        return self.encoder(x, Noise(key))
