"""TransUNet in three dimensions: a convolutional encoder, a ViT on its deepest features, a cascaded upsampler. Built by name in `jaxseg.zoo`."""

import dataclasses
from itertools import pairwise
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv import upsample
from jaxseg.models.conv_unit import check_image, check_levels, total_stride, triple
from jaxseg.models.layers import Keep
from jaxseg.models.positions import Kind, Triple
from jaxseg.models.unet_blocks import Convolution, ConvStack, ResidualStage
from jaxseg.models.vit import ViT, ViTConfig

_KERNEL = (3, 3, 3)


@dataclasses.dataclass(frozen=True)
class TransUNetConfig:
    """Everything that shapes a TransUNet; JSON by `dataclasses.asdict`.

    `channels` of each level of the convolutional encoder, fine to coarse (the first at full resolution), `blocks` residual blocks in
    each, `strides` (voxels, one number or one an axis) between them. Every place of the deepest level is a token of a ViT of `width`, `depth`
    and `heads`; `crop` (voxels) sets the size of its table of positions, other inputs are fine. `decoder_convs` convolutions after each
    up-sampling. The other fields are those of `vit.ViTConfig`.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"small": "small", "base": "base"}

    in_channels: int = 1
    num_classes: int = 2
    crop: Triple = (96, 96, 96)
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2)
    strides: tuple[int | Triple, ...] = (2, 2, 2, 2)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: Literal["swiglu", "gelu"] = "gelu"
    mlp_ratio: float = 4.0
    positions: Kind = "learned"
    layer_scale: float | None = None
    drop_path: float = 0.0
    decoder_convs: int = 2
    remat: bool = False
    remat_keep: Keep | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def small(cls, **changes) -> "TransUNetConfig":
        """27.7 M parameters at one channel: half the channels, a ViT of width 384, depth 8; `changes` are fields, here and below."""
        return cls(**{"channels": (16, 32, 64, 128, 256), "width": 384, "depth": 8, "heads": 6, **changes})

    @classmethod
    def base(cls, **changes) -> "TransUNetConfig":
        """138.7 M parameters at one channel: the paper's ViT-B at 1/16 of the resolution."""
        return cls(**changes)

    def __post_init__(self) -> None:
        check_levels(self.channels, self.strides)
        if len(self.blocks) != len(self.channels) or min(*self.blocks, self.in_channels, self.num_classes, self.decoder_convs) < 1:
            raise ConfigError(
                f"blocks {self.blocks} need one number for each of channels {self.channels}; these, in_channels {self.in_channels}, "
                f"num_classes {self.num_classes} and decoder_convs {self.decoder_convs} must be at least 1"
            )
        if any(n < m or n % m for n, m in zip(self.crop, self.stride)):
            raise ConfigError(f"crop {self.crop} is not a multiple of {self.stride}, the product of all strides, along every axis")
        _ = self.transformer

    @property
    def stride(self) -> Triple:
        """Voxels of a token along each axis."""
        return total_stride(self.strides)

    @property
    def transformer(self) -> ViTConfig:
        """The ViT, whose image is the deepest feature map and whose tokens are its single places."""
        x, y, z = (n // m for n, m in zip(self.crop, self.stride))
        shared = ("width", "depth", "heads", "mlp", "mlp_ratio", "positions", "layer_scale", "drop_path", "remat", "remat_keep", "dtype")
        values = {name: getattr(self, name) for name in shared}
        return ViTConfig(in_channels=self.channels[-1], crop=(x, y, z), token=(1, 1, 1), **values)


class Encoder(nnx.Module):
    """Residual stages, fine to coarse; each but the first begins with a stride."""

    def __init__(self, config: TransUNetConfig, *, rngs: nnx.Rngs):
        strides = [triple(stride, "strides") for stride in (1, *config.strides)]
        sides = pairwise((config.in_channels, *config.channels))
        self.stages = nnx.List(
            [
                ResidualStage(count, i, o, _KERNEL, stride, bias=False, rngs=rngs)
                for count, (i, o), stride in zip(config.blocks, sides, strides)
            ]
        )

    def __call__(self, x: Float[Array, "b x y z c"]) -> list[Float[Array, "b x2 y2 z2 f"]]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class TransUNet(nnx.Module):
    """TransUNet (Chen et al., arXiv 2102.04306) in the 3D form with a transformer in the encoder alone (arXiv 2310.07781).

    No packaged 3D peer exists, so it is built from the papers' block diagrams and equal to nobody's weights: CNN features at every level,
    the deepest as tokens through a ViT, then by level: linear up-sampling, the skip behind it, convolutions with instance norm and
    LeakyReLU. The norm and the residual blocks are nnU-Net's, as in the 3D paper. Takes any size that is a multiple of `config.stride`.

    Parameters: `encoder.stages` fine to coarse, `transformer` (a ViT), `entry`, `decoder` coarse to fine, and `head`.
    """

    FEATURE_PARTS = ("encoder", "transformer")

    def __init__(self, config: TransUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.transformer = ViT(config.transformer, rngs=rngs)
        coarse_to_fine = config.channels[::-1]
        self.entry = ConvStack(1, config.width, coarse_to_fine[0], _KERNEL, bias=False, rngs=rngs)
        self.decoder = nnx.List(
            [ConvStack(config.decoder_convs, i + o, o, _KERNEL, bias=False, rngs=rngs) for i, o in pairwise(coarse_to_fine)]
        )
        self.head = Convolution(config.channels[0], config.num_classes, (1, 1, 1), bias=True, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `spacing` in mm for positions "rope_mm", `key` for drop path.

        Raises ShapeError if channels or size do not fit, or if positions are in mm and there is no `spacing`.
        """
        *skips, x = self.features(x, spacing, key)
        x = self.entry(x)
        strides = [triple(stride, "strides") for stride in self.config.strides]
        for stack, skip, stride in zip(self.decoder, reversed(skips), reversed(strides)):
            x = stack(jnp.concatenate([upsample(x, stride), skip], -1))
        return self.head(x).astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 f"]]:
        """The output of every convolutional level but the deepest, fine to coarse, and the ViT's tokens on their grid."""
        config = self.config
        check_image(x, config.in_channels, config.stride)
        *fine, deepest = self.encoder(x.astype(config.dtype))
        if spacing is not None:
            spacing = spacing * jnp.asarray(config.stride, jnp.float32)
        tokens = self.transformer(deepest, spacing=spacing, key=key)
        return [*fine, tokens.reshape(*deepest.shape[:4], config.width)]
