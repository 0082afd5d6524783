"""UNETR+: UNETR's pretrained ViT beside a convolutional stem, and a light decoder that interpolates. Built by name in `jaxseg.zoo`, trained by `finetune`."""

import dataclasses
import math
from itertools import pairwise
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv import depth_to_space, space_to_depth, upsample
from jaxseg.models.instance_norm import instance_norm, leaky_relu
from jaxseg.models.positions import Triple
from jaxseg.models.unetr import Conv, ResidualBlock, UNETRConfig
from jaxseg.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class UNETRPlusConfig:
    """Everything that shapes a UNETR+; JSON by `dataclasses.asdict`.

    `feature` is the number of channels of the finest level, doubled at each coarser one up to `widest`. The finest level lies at 1/`stride` of
    the input's resolution (voxels, a power of two, one number or one an axis; an axis whose token is smaller uses the token's size),
    the coarsest is the grid of tokens, whose sides are powers of two voxels. An encoder of depth 0 takes the transformer away: embedded patches
    join the stem at the grid of tokens, and there are no hidden states to join it elsewhere.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"tiny": "tiny", "small": "small", "base": "base", "large": "large"}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    num_classes: int = 2
    feature: int = 16
    widest: int = 256
    stride: int | Triple = 2

    def __post_init__(self) -> None:
        if self.widest < self.feature:
            raise ConfigError(f"widest is {self.widest} channels, and the finest level has feature = {self.feature}")
        if 0 < self.encoder.depth <= len(self.factors):
            raise ConfigError(
                f"a token of {self.encoder.token} voxels at stride {self.stride} has {len(self.factors)} levels above it, each with a block "
                f"of the encoder before the last, which has {self.encoder.depth}: use a deeper encoder, a smaller token or a larger stride"
            )

    @classmethod
    def tiny(cls, **changes) -> "UNETRPlusConfig":
        """ViTConfig.tiny, 16 features at half resolution; `changes` are fields, here and below."""
        return cls(**{"encoder": ViTConfig.tiny(), **changes})

    @classmethod
    def small(cls, **changes) -> "UNETRPlusConfig":
        """ViTConfig.small, 16 features at half resolution."""
        return cls(**{"encoder": ViTConfig.small(), **changes})

    @classmethod
    def base(cls, **changes) -> "UNETRPlusConfig":
        """ViTConfig.base, 32 features at half resolution."""
        return cls(**{"encoder": ViTConfig.base(), "feature": 32, **changes})

    @classmethod
    def large(cls, **changes) -> "UNETRPlusConfig":
        """ViTConfig.large, 32 features at half resolution."""
        return cls(**{"encoder": ViTConfig.large(), "feature": 32, **changes})

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.encoder.in_channels

    @property
    def fold(self) -> Triple:
        """Voxels along each axis that share one place of the finest level."""
        return self._plain.fold

    @property
    def factors(self) -> tuple[Triple, ...]:
        """The up-samplings from the grid of tokens on; an axis at full resolution stops there (factor 1)."""
        return self._plain.factors

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, from the grid of tokens to the finest."""
        return tuple(min(self.widest, self.feature * 2**i) for i in reversed(range(len(self.factors) + 1)))

    @property
    def taps(self) -> tuple[int, ...]:
        """After how many of the encoder's blocks a hidden state feeds each level, fine to coarse; the grid of tokens gets the last one.

        At equal depths, as UNETR's: (4, 7, 10) of 12 for tokens of 16 at stride 2; () of 0.
        """
        levels = len(self.factors) + 1 if self.encoder.depth else 1
        return tuple(k * self.encoder.depth // levels + 1 for k in range(1, levels))

    @property
    def _plain(self) -> UNETRConfig:
        # Also checks what the two networks share: powers of two, and numbers of at least 1.
        return UNETRConfig(self.encoder, self.num_classes, self.feature, self.stride)


class Downsampling(nnx.Module):
    """A convolution with kernel = stride = `factors`, instance norm and LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, *, rngs: nnx.Rngs):
        self.factors = factors
        self.conv = Conv(inputs * math.prod(factors), outputs, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return leaky_relu(instance_norm(self.conv(space_to_depth(x, self.factors))))


class DecoderLevel(nnx.Module):
    """What comes from below plus a hidden state, interpolated; the stem's features behind it; one convolution, instance norm and LeakyReLU.

    `state` is the hidden state's channels, 0 where there is none. Both are narrowed by a 1x1x1 convolution and added before they are
    interpolated: the steps commute, and so cost an eighth.
    """

    def __init__(self, inputs: int, state: int, outputs: int, *, rngs: nnx.Rngs):
        self.below = Conv(inputs, outputs, 1, rngs=rngs)
        self.state = Conv(state, outputs, 1, rngs=rngs) if state else None
        self.merge = Conv(2 * outputs, outputs, 3, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b x y z i"],
        state: Float[Array, "b gx gy gz w"] | None,
        skip: Float[Array, "b x2 y2 z2 o"],
        factors: Triple,
    ) -> Float[Array, "b x2 y2 z2 o"]:
        y = self.below(x)
        if self.state is not None and state is not None:
            ax, ay, az = (n // g for n, g in zip(x.shape[1:4], state.shape[1:4]))
            y = y + upsample(self.state(state), (ax, ay, az))
        x = upsample(y, factors)
        return leaky_relu(instance_norm(self.merge(jnp.concatenate([x, skip], -1))))


class UNETRPlus(nnx.Module):
    """A ViT's hidden states, at the depths where UNETR takes them, join a pyramid of residual blocks on the image itself.

    No peer: what few labels need (a convolutional stem, for small lesions, and interpolation + convolution instead of transposed
    convolutions, arXiv 2507.01744) around the encoder that pretraining leaves. Logits are unfolded by pixel shuffle; voxels that share a
    place start with equal weights (arXiv 1707.02937), so that a new network draws no checkerboard.

    Parameters: `encoder` (a ViT), `stem` and `down` fine to coarse, `entry`, `decoder` coarse to fine, and `head`.
    """

    FEATURE_PARTS = ("encoder", "stem", "down")

    def __init__(self, config: UNETRPlusConfig, *, rngs: nnx.Rngs):
        self.config = config
        voxels, width, widths = math.prod(config.fold), config.encoder.width, config.widths
        fine_to_coarse = list(zip(pairwise(widths[::-1]), config.factors[::-1]))
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.stem = nnx.List(
            [ResidualBlock(config.in_channels * voxels, widths[-1], rngs=rngs), *(ResidualBlock(w, w, rngs=rngs) for w in widths[-2::-1])]
        )
        self.down = nnx.List([Downsampling(i, o, factors, rngs=rngs) for (i, o), factors in fine_to_coarse])
        self.entry = Conv(width, widths[0], 1, rngs=rngs)
        state = width if config.taps else 0
        self.decoder = nnx.List([DecoderLevel(i, state, o, rngs=rngs) for i, o in pairwise(widths)])
        self.head = Conv(widths[-1], config.num_classes * voxels, 1, bias=True, rngs=rngs)
        self.head.kernel[...] = jnp.tile(self.head.kernel[..., : config.num_classes], voxels)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel. Each side of `x` is a multiple of the token; `spacing` in mm, `key` for drop path.

        Raises ShapeError if channels or size do not fit, or if positions are in mm and there is no `spacing`.
        """
        config = self.config
        grid = self.encoder.grid_of(x)
        tokens, states = self.encoder(x, spacing=spacing, key=key, taps=config.taps)
        tokens, *states = (each.reshape(x.shape[0], *grid, -1) for each in (tokens, *states))
        *skips, bottom = self._pyramid(x.astype(tokens.dtype))
        y = leaky_relu(instance_norm(bottom + self.entry(tokens)))
        below = states[::-1] or [None] * len(self.decoder)
        for level, state, skip, factors in zip(self.decoder, below, reversed(skips), config.factors):
            y = level(y, state, skip, factors)
        return depth_to_space(self.head(y).astype(jnp.float32), config.fold)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 f"]]:
        """The stem's levels but the coarsest, fine to coarse, and the encoder's tokens on their grid."""
        grid = self.encoder.grid_of(x)
        tokens = self.encoder(x, spacing=spacing, key=key, taps=())[0]
        return [*self._pyramid(x.astype(tokens.dtype))[:-1], tokens.reshape(x.shape[0], *grid, -1)]

    def _pyramid(self, x: Float[Array, "b x y z c"]) -> list[Float[Array, "b x2 y2 z2 o"]]:
        first, *further = self.stem
        found = [first(space_to_depth(x, self.config.fold))]
        for down, block in zip(self.down, further):
            found.append(block(down(found[-1])))
        return found
