"""UNETR: a Vision Transformer whose hidden states feed a convolutional decoder. Built by name in `jaxseg.zoo`, trained by `finetune`."""

import dataclasses
import math
from itertools import pairwise
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv import conv3d, depth_to_space, kernel_init, space_to_depth, upsample_conv
from jaxseg.models.instance_norm import instance_norm, leaky_relu
from jaxseg.models.positions import Triple
from jaxseg.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class UNETRConfig:
    """Everything that shapes a UNETR; JSON by `dataclasses.asdict`.

    `feature` is the number of channels of the finest level, doubled at each coarser one. With `stride` (voxels, a power of two, one number
    or one an axis) the finest level lies at 1/stride of the input's resolution: the image is folded into channels on its way in, and the
    logits are unfolded by pixel shuffle on their way out. An axis whose token is smaller than its stride uses the token's size. The
    published network (Hatamizadeh et al., arXiv 2103.10504) is stride 1 with `ViTConfig.classic()`.

    An encoder of depth 0 takes the transformer away and leaves the convolutional network around it: embedded patches (a strided
    convolution) below the same decoder and beside the same stem, without the paths of hidden states that no longer exist.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"tiny": "tiny", "small": "small", "base": "base", "large": "large"}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    num_classes: int = 2
    feature: int = 16
    stride: int | Triple = 1

    def __post_init__(self) -> None:
        for name, sizes in (("encoder.token", self.encoder.token), ("stride", self._strides)):
            if len(sizes) != 3 or any(size < 1 or size & (size - 1) for size in sizes):
                raise ConfigError(f"{name} is {sizes}; UNETR doubles its resolution level by level, so use three powers of two")
        if self.num_classes < 1 or self.feature < 1:
            raise ConfigError(f"num_classes is {self.num_classes} and feature is {self.feature}; both must be at least 1")
        if 0 < self.encoder.depth < len(self.factors):
            raise ConfigError(
                f"a token of {self.encoder.token} voxels at stride {self.stride} is doubled {len(self.factors)} times, each from its own "
                f"block of the encoder, which has {self.encoder.depth}: use a deeper encoder, a smaller token or a larger stride"
            )

    @classmethod
    def tiny(cls, **changes) -> "UNETRConfig":
        """ViTConfig.tiny, 16 features at half resolution; `changes` are fields, here and below."""
        return cls(**{"encoder": ViTConfig.tiny(), "feature": 16, "stride": 2, **changes})

    @classmethod
    def small(cls, **changes) -> "UNETRConfig":
        """ViTConfig.small, 16 features at half resolution."""
        return cls(**{"encoder": ViTConfig.small(), "feature": 16, "stride": 2, **changes})

    @classmethod
    def base(cls, **changes) -> "UNETRConfig":
        """ViTConfig.base, 32 features at half resolution."""
        return cls(**{"encoder": ViTConfig.base(), "feature": 32, "stride": 2, **changes})

    @classmethod
    def large(cls, **changes) -> "UNETRConfig":
        """ViTConfig.large, 32 features at half resolution."""
        return cls(**{"encoder": ViTConfig.large(), "feature": 32, "stride": 2, **changes})

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.encoder.in_channels

    @property
    def fold(self) -> Triple:
        """Voxels along each axis that share one place of the decoder's finest level."""
        x, y, z = (min(s, t) for s, t in zip(self._strides, self.encoder.token))
        return x, y, z

    @property
    def factors(self) -> tuple[Triple, ...]:
        """The decoder's up-samplings from the token grid on; an axis at full resolution stops there (factor 1)."""
        doublings = [(t // f).bit_length() - 1 for t, f in zip(self.encoder.token, self.fold)]
        nx, ny, nz = doublings
        return tuple((1 + (i < nx), 1 + (i < ny), 1 + (i < nz)) for i in range(max(1, *doublings)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each up-sampling, coarse to fine."""
        return tuple(self.feature * 2**i for i in reversed(range(len(self.factors))))

    @property
    def taps(self) -> tuple[int, ...]:
        """After how many of the encoder's blocks a hidden state feeds each level but the finest, fine to coarse: (4, 7, 10) of 12; () of 0."""
        levels = len(self.factors) if self.encoder.depth else 1
        return tuple(k * self.encoder.depth // levels + 1 for k in range(1, levels))

    @property
    def _strides(self) -> tuple[int, ...]:
        return (self.stride,) * 3 if isinstance(self.stride, int) else tuple(self.stride)


class Conv(nnx.Module):
    """A convolution of stride 1; kernel (kx, ky, kz, in, out), with a bias if asked."""

    def __init__(self, inputs: int, outputs: int, size: int, *, bias: bool = False, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, size, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        return conv3d(x, self.kernel[...], None if self.bias is None else self.bias[...])


class Upsampling(nnx.Module):
    """A transposed convolution with kernel = stride = `factors`, without bias."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, *, rngs: nnx.Rngs):
        # Blocks do not overlap, so each output voxel sees one input voxel: the kernel's own axes do not count in the fan in.
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*factors, inputs, outputs), fan_in=inputs))

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return upsample_conv(x, self.kernel[...])


class ResidualBlock(nnx.Module):
    """conv 3 - norm - LeakyReLU - conv 3 - norm, plus the input (through conv 1 - norm where channels change), LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(inputs, outputs, 3, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, 3, rngs=rngs)
        self.shortcut = Conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        y = leaky_relu(instance_norm(self.conv1(x)))
        y = instance_norm(self.conv2(y))
        return leaky_relu(y + (x if self.shortcut is None else instance_norm(self.shortcut(x))))


class SkipPath(nnx.Module):
    """A hidden state on its way to a decoder level: an up-sampling, then (up-sampling, residual block) for each further factor."""

    def __init__(self, inputs: int, outputs: int, factors: tuple[Triple, ...], *, rngs: nnx.Rngs):
        self.first = Upsampling(inputs, outputs, factors[0], rngs=rngs)
        self.further = nnx.List([Upsampling(outputs, outputs, factor, rngs=rngs) for factor in factors[1:]])
        self.residual = nnx.List([ResidualBlock(outputs, outputs, rngs=rngs) for _ in factors[1:]])

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        x = self.first(x)
        for up, block in zip(self.further, self.residual):
            x = block(up(x))
        return x


class DecoderLevel(nnx.Module):
    """Up-sample, put the skip's channels (where the level has one) behind, residual block."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, *, skip: bool = True, rngs: nnx.Rngs):
        self.up = Upsampling(inputs, outputs, factors, rngs=rngs)
        self.block = ResidualBlock((1 + skip) * outputs, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z i"], skip: Float[Array, "b x2 y2 z2 o"] | None) -> Float[Array, "b x2 y2 z2 o"]:
        x = self.up(x)
        return self.block(x if skip is None else jnp.concatenate([x, skip], -1))


class UNETR(nnx.Module):
    """UNETR for any power-of-two token, isotropic or not. Equal to MONAI's `UNETR` where that one exists: token 16, depth 12, stride 1.

    Parameters: `encoder` (a ViT, as pretraining leaves it), `stem`, `skips` and `decoder` (coarse to fine) and `head`.
    """

    def __init__(self, config: UNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        voxels = math.prod(config.fold)
        factors, widths = config.factors, config.widths
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.stem = ResidualBlock(config.in_channels * voxels, widths[-1], rngs=rngs)
        tapped = widths[: len(config.taps)]
        self.skips = nnx.List([SkipPath(config.encoder.width, w, factors[: i + 1], rngs=rngs) for i, w in enumerate(tapped)])
        sides, last = pairwise((config.encoder.width, *widths)), len(factors) - 1
        self.decoder = nnx.List(
            [
                DecoderLevel(i, o, factor, skip=level < len(tapped) or level == last, rngs=rngs)
                for level, ((i, o), factor) in enumerate(zip(sides, factors))
            ]
        )
        self.head = Conv(widths[-1], config.num_classes * voxels, 1, bias=True, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel. Each side of `x` is a multiple of the token; `spacing` in mm, `key` for drop path.

        Raises ShapeError if channels or size do not fit, or if positions are in mm and there is no `spacing`.
        """
        grid = self.encoder.grid_of(x)
        found = self.encoder(x, spacing=spacing, key=key, taps=self.config.taps)
        tokens, states = found if isinstance(found, tuple) else (found, [])
        image = space_to_depth(x, self.config.fold).astype(tokens.dtype)
        states = [state.reshape(x.shape[0], *grid, -1) for state in reversed(states)]
        tapped = [path(state) for path, state in zip(self.skips, states)]
        skips = [*(tapped or [None] * (len(self.decoder) - 1)), self.stem(image)]
        features = tokens.reshape(x.shape[0], *grid, -1)
        for level, skip in zip(self.decoder, skips):
            features = level(features, skip)
        return depth_to_space(self.head(features).astype(jnp.float32), self.config.fold)
