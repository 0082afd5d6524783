"""nnU-Net's U-Nets: the plain one and those with a residual encoder, built from a plan. Built by name in `jaxseg.zoo`, trained by `finetune`."""

import dataclasses
import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.conv_unit import check_dtype
from jaxseg.models.positions import Triple
from jaxseg.models.unet_blocks import Convolution, ConvStack, DecoderStage, ResidualStage
from jaxseg.models.unet_plan import fields_of_plan, spelt_out

_FEATURES = (32, 64, 128, 256, 320, 320)
_STRIDES: tuple[Triple, ...] = ((1, 1, 1), *((2, 2, 2),) * 5)
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Everything that shapes a U-Net; JSON by `dataclasses.asdict`. Stages run from fine to coarse; one number stands for all stages and axes.

    Attributes:
        kind: stages of the encoder: "plain" convolutions, or "residual" blocks behind a stem (one convolution of `stem` channels, None: those
            of the first stage).
        features: channels of each stage.
        kernels: sizes of each stage's convolutions along x, y, z (odd); the decoder's stages take those of the skip.
        strides: of each stage's first convolution along x, y, z; 1 at the first stage. `(1, 3, 3)` and `(1, 2, 2)` leave thick slices alone.
        blocks: convolutions ("plain") or residual blocks ("residual") of each stage.
        decoder_convs: convolutions of each decoder stage, from coarse to fine; one fewer than there are stages.
        conv_bias: whether convolutions before a norm have a bias.
        deep_supervision: heads also at the coarser decoder stages, for `deep_supervision=True` in the call.
        crop: voxels of the crops that it is trained on and segments with. The network takes any size that the strides divide.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"plain": "plain", "resenc_m": "resenc_m", "resenc_l": "resenc_l", "resenc_xl": "resenc_xl"}

    in_channels: int = 1
    num_classes: int = 2
    kind: Literal["plain", "residual"] = "plain"
    features: tuple[int, ...] = _FEATURES
    kernels: tuple[Triple, ...] = ((3, 3, 3),) * 6
    strides: tuple[Triple, ...] = _STRIDES
    blocks: tuple[int, ...] = (2,) * 6
    decoder_convs: tuple[int, ...] = (2,) * 5
    stem: int | None = None
    conv_bias: bool = True
    deep_supervision: bool = False
    crop: Triple = (128, 128, 128)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        stages = 0 if isinstance(self.features, int) else len(self.features)
        if stages < 2:
            raise ConfigError(f"features is {self.features}: give the channels of two stages or more")
        counts = {"features": stages, "kernels": stages, "strides": stages, "blocks": stages, "decoder_convs": stages - 1, "crop": 3}
        for name, count in counts.items():
            axes = 3 if name in ("kernels", "strides") else 0
            object.__setattr__(self, name, spelt_out(name, getattr(self, name), count, axes))
        numbers = (
            self.in_channels,
            self.num_classes,
            *self.features,
            *self.blocks,
            *self.decoder_convs,
            *self.crop,
            1 if self.stem is None else self.stem,
        )
        if min(numbers) < 1 or self.kind not in ("plain", "residual"):
            raise ConfigError(f"channels, classes and counts must be at least 1 and kind 'plain' or 'residual': {self}")
        if any(size % 2 == 0 or size < 1 for kernel in self.kernels for size in kernel):
            raise ConfigError(f"kernels is {self.kernels}; sizes must be odd, since an even one shifts the image by half a voxel")
        if self.strides[0] != (1, 1, 1) or min(map(min, self.strides)) < 1:
            raise ConfigError(
                f"strides is {self.strides}; they must be at least 1, and (1, 1, 1) at the first stage: its resolution is the logits'"
            )
        check_dtype(self.dtype)
        if self.stem is not None and self.kind == "plain":
            raise ConfigError(f"stem is {self.stem}, but a plain encoder has no stem")

    @classmethod
    def plain(cls, **changes) -> "UNetConfig":
        """nnU-Net's 3d_fullres as planned for isotropic spacing (31.2 M parameters at one channel); `changes` are fields, here and below."""
        return cls(**changes)

    @classmethod
    def resenc_m(cls, **changes) -> "UNetConfig":
        """ResEnc M, for a graphics card of 9 to 11 GB. The three presets plan by memory: equal widths and blocks, larger crops."""
        return cls(**{"kind": "residual", "blocks": _RESIDUAL_BLOCKS, "decoder_convs": (1,) * 5, **changes})

    @classmethod
    def resenc_l(cls, **changes) -> "UNetConfig":
        """ResEnc L, 24 GB, as the checkpoints of OpenMind have it: 160 voxels."""
        return cls.resenc_m(**{"crop": (160, 160, 160), **changes})

    @classmethod
    def resenc_xl(cls, **changes) -> "UNetConfig":
        """ResEnc XL, 40 GB."""
        return cls.resenc_m(**{"crop": (192, 192, 192), **changes})

    @classmethod
    def from_plan(cls, architecture: Mapping[str, Any], **changes) -> "UNetConfig":
        """The network of an nnU-Net plan: `plans["configurations"]["3d_fullres"]["architecture"]` of a `plans.json`, read as JSON.

        `in_channels` and `num_classes` are not in it and belong to `changes`. The axes keep the plan's order, which is (z, y, x).
        Raises ConfigError for anything that this network does not have: other classes, 2D, other norms and activations, dropout.
        """
        return cls(**{**fields_of_plan(architecture), **changes})

    @property
    def stride(self) -> Triple:
        """Voxels of the input along each axis in one of the coarsest stage."""
        x, y, z = (math.prod(axis) for axis in zip(*self.strides))
        return x, y, z


class Encoder(nnx.Module):
    """The stages, and the stem of a residual encoder; gives the output of every stage, fine to coarse."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        residual = config.kind == "residual"
        stage, first = (ResidualStage, config.stem or config.features[0]) if residual else (ConvStack, config.in_channels)
        self.stem = ConvStack(1, config.in_channels, first, config.kernels[0], bias=config.conv_bias, rngs=rngs) if residual else None
        plan = zip(config.blocks, (first, *config.features), config.features, config.kernels, config.strides)
        self.stages = nnx.List([stage(*arguments, bias=config.conv_bias, rngs=rngs) for arguments in plan])

    def __call__(self, x: Float[Array, "b x y z c"]) -> list[Float[Array, "b x2 y2 z2 f"]]:
        x = x if self.stem is None else self.stem(x)
        return list(accumulate(self.stages, lambda x, stage: stage(x), initial=x))[1:]


class UNet(nnx.Module):
    """U-Net of nnU-Net (Isensee et al., https://doi.org/10.1038/s41592-020-01008-z) and its residual-encoder presets (arXiv 2404.09556).

    Equal to `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures with instance norm and LeakyReLU. Parameters: `encoder`
    (`stem`, `stages`), `decoder` (coarse to fine), `head`, and with deep supervision `auxiliary` (its heads, fine to coarse).
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        features, kernels, strides = config.features[::-1], config.kernels[::-1], config.strides[::-1]
        self.encoder = Encoder(config, rngs=rngs)
        plan = zip(config.decoder_convs, features, features[1:], kernels[1:], strides)
        self.decoder = nnx.List([DecoderStage(*arguments, bias=config.conv_bias, rngs=rngs) for arguments in plan])
        coarser = config.features[1:-1] if config.deep_supervision else ()
        self.head = Convolution(config.features[0], config.num_classes, (1, 1, 1), bias=True, rngs=rngs)
        self.auxiliary = nnx.List([Convolution(width, config.num_classes, (1, 1, 1), bias=True, rngs=rngs) for width in coarser])

    def __call__(
        self,
        x: Float[Array, "b x y z c"],
        *,
        spacing: Float[Array, "b 3"] | None = None,
        key: Key[Array, " b"] | None = None,
        deep_supervision: bool = False,
    ) -> Float[Array, "b x y z k"] | list[Float[Array, "b x2 y2 z2 k"]]:
        """Logits (float32) of every voxel; with `deep_supervision` a list of them, at the input's resolution first and at ever coarser ones.

        Each side of `x` is a multiple of `config.stride`. `spacing` and `key` change nothing: the network has no positions and no dropout.
        Raises ShapeError if channels or size do not fit, ConfigError if the network was built without the heads of deep supervision.
        """
        if deep_supervision and not self.config.deep_supervision:
            raise ConfigError("this U-Net has no heads for deep supervision: build it with deep_supervision=True")
        self._check(x, whole=True)
        *skips, features = self.encoder(x.astype(self.config.dtype))
        states = list(accumulate(zip(self.decoder, reversed(skips)), lambda x, pair: pair[0](x, pair[1]), initial=features))[1:]
        logits = self.head(states[-1]).astype(jnp.float32)
        if not deep_supervision:
            return logits
        return [logits, *(head(state).astype(jnp.float32) for head, state in zip(self.auxiliary, reversed(states[:-1])))]

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b x2 y2 z2 f"]]:
        """The output of every encoder stage, fine to coarse, `config.features` channels each, in the compute type.

        A plain encoder takes any size (a stage of stride s leaves ceil(n / s) voxels), a residual one multiples of `config.stride`.
        """
        self._check(x, whole=self.config.kind == "residual")
        return self.encoder(x.astype(self.config.dtype))

    def _check(self, x: Array, *, whole: bool) -> None:
        stride, channels = self.config.stride, self.config.in_channels
        if x.ndim != 5 or x.shape[-1] != channels:
            raise ShapeError(f"the input has shape {tuple(x.shape)}; expected (b, x, y, z, {channels})")
        sides = x.shape[1:4]
        if whole and any(side % step for side, step in zip(sides, stride)):
            near = tuple(-(-side // step) * step for side, step in zip(sides, stride))
            raise ShapeError(f"{sides} voxels are not multiples of this U-Net's strides {stride}: pad to {near}")
        if all(-(-side // step) <= 1 for side, step in zip(sides, stride)):
            raise ShapeError(
                f"of {sides} voxels the coarsest stage keeps a single one, of which instance norm leaves nothing: give it more than {stride}"
            )
