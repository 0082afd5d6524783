"""SwinUNETR: a Swin transformer whose feature maps feed a convolutional decoder. Built by name in `jaxseg.zoo`, trained by `finetune`."""

import dataclasses
from itertools import pairwise
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.swin import Swin, SwinConfig
from jaxseg.models.unetr import Conv, DecoderLevel, ResidualBlock


@dataclasses.dataclass(frozen=True)
class SwinUNETRConfig:
    """Everything that shapes a SwinUNETR; JSON by `dataclasses.asdict`. All but the number of classes belongs to the encoder."""

    VARIANTS: ClassVar[dict[str, str]] = {
        "12": "feature12",
        "24": "feature24",
        "48": "feature48",
        "96": "feature96",
        "12_v2": "feature12_v2",
        "24_v2": "feature24_v2",
        "48_v2": "feature48_v2",
        "96_v2": "feature96_v2",
    }

    encoder: SwinConfig = dataclasses.field(default_factory=SwinConfig)
    num_classes: int = 2

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}; it must be at least 1")

    @classmethod
    def feature12(cls, **changes) -> "SwinUNETRConfig":
        """4.08 M parameters at one channel and two classes; `changes` are fields, here and below."""
        return cls(**{"encoder": SwinConfig(feature=12), **changes})

    @classmethod
    def feature24(cls, **changes) -> "SwinUNETRConfig":
        """15.7 M parameters: MONAI's default."""
        return cls(**{"encoder": SwinConfig(feature=24), **changes})

    @classmethod
    def feature48(cls, **changes) -> "SwinUNETRConfig":
        """62.2 M parameters: the size of `model_swinvit.pt`, SuPreM and the paper."""
        return cls(**{"encoder": SwinConfig(feature=48), **changes})

    @classmethod
    def feature96(cls, **changes) -> "SwinUNETRConfig":
        """248.1 M parameters."""
        return cls(**{"encoder": SwinConfig(feature=96), **changes})

    @classmethod
    def feature12_v2(cls, **changes) -> "SwinUNETRConfig":
        """SwinUNETR-V2, a residual convolution before each stage; 4.74 M parameters."""
        return cls(**{"encoder": SwinConfig(feature=12, use_v2=True), **changes})

    @classmethod
    def feature24_v2(cls, **changes) -> "SwinUNETRConfig":
        """SwinUNETR-V2, 18.3 M parameters."""
        return cls(**{"encoder": SwinConfig(feature=24, use_v2=True), **changes})

    @classmethod
    def feature48_v2(cls, **changes) -> "SwinUNETRConfig":
        """SwinUNETR-V2, 72.8 M parameters: the size of VoCo-B."""
        return cls(**{"encoder": SwinConfig(feature=48, use_v2=True), **changes})

    @classmethod
    def feature96_v2(cls, **changes) -> "SwinUNETRConfig":
        """SwinUNETR-V2, 290.4 M parameters: the size of VoCo-L."""
        return cls(**{"encoder": SwinConfig(feature=96, use_v2=True), **changes})

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.encoder.in_channels

    @property
    def multiple(self) -> tuple[int, int, int]:
        """What each side of the input (voxels) must be a multiple of: 32 for the published patch of 2."""
        x, y, z = (16 * p for p in self.encoder.patch)
        return x, y, z


class SwinUNETR(nnx.Module):
    """SwinUNETR (Hatamizadeh et al., arXiv 2201.01266) and V2 (He et al., MICCAI 2023), equal to MONAI 1.6.1's `SwinUNETR` at patch 2.

    Takes sides that are multiples of 32 (of 16 patches); MONAI refuses 32³, whose coarsest map is one voxel, and here that map's norms are 0.
    Other patches than 2 change the last up-sampling to match, which MONAI has not.
    Parameters: `encoder` (a Swin, as pretraining leaves it), `stem` (on the image), `skips` (on the three finest maps), `bottleneck` (on the
    coarsest), `decoder` (coarse to fine) and `head`.
    """

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        feature = config.encoder.feature
        self.encoder = Swin(config.encoder, rngs=rngs)
        self.stem = ResidualBlock(config.in_channels, feature, rngs=rngs)
        self.skips = nnx.List([ResidualBlock(feature * 2**i, feature * 2**i, rngs=rngs) for i in range(3)])
        self.bottleneck = ResidualBlock(16 * feature, 16 * feature, rngs=rngs)
        # The fourth map feeds the decoder as it is, so that five maps and the image make five levels.
        widths = [16 * feature, 8 * feature, 4 * feature, 2 * feature, feature, feature]
        factors = [(2, 2, 2)] * 4 + [config.encoder.patch]
        self.decoder = nnx.List([DecoderLevel(i, o, factor, rngs=rngs) for (i, o), factor in zip(pairwise(widths), factors)])
        self.head = Conv(feature, config.num_classes, 1, bias=True, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `spacing` is not used, `key` is for drop path. Raises ShapeError if channels or size do not fit."""
        maps = self.features(x, spacing=spacing, key=key)
        image = self.stem(x.astype(maps[0].dtype))
        skips = [maps[3], *(skip(each) for skip, each in zip(reversed(self.skips), reversed(maps[:3]))), image]
        features = self.bottleneck(maps[4])
        for level, skip in zip(self.decoder, skips):
            features = level(features, skip)
        return self.head(features).astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """The encoder's five feature maps, fine to coarse: at 1/2 to 1/32 of the resolution with `feature` to 16 times `feature` channels."""
        config = self.config
        if x.ndim == 5 and any(n % m for n, m in zip(x.shape[1:4], config.multiple)):
            raise ShapeError(f"an input of {x.shape[1:4]} voxels is not a multiple of {config.multiple} along every axis: pad or crop it")
        return self.encoder(x, spacing=spacing, key=key)
