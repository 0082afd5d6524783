"""Primus: an Eva encoder over small tokens and a decoder of nothing but transposed convolutions. Built by name in `jaxseg.zoo`.

Three generations differ in how voxels become tokens: the first by one matrix, V2 and V3 by residual convolutions.
"""

import dataclasses
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.errors import ConfigError
from jaxseg.models.conv_stem import ConvStemConfig
from jaxseg.models.eva import Eva, EvaConfig
from jaxseg.models.positions import Triple
from jaxseg.models.unet_blocks import Upsampling

_NORM_EPSILON = 1e-6  # of the decoder's norms; the encoder's have 1e-5

_SIZES = {"s": "small", "b": "base", "m": "medium", "l": "large"}
_GENERATIONS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"stem": ConvStemConfig((32, 32, 64, 128), activation="relu")},
    "v3": {"stem": ConvStemConfig((32, 64, 256, 1024), activation="leaky_relu", skips=True), "drop_path": 0.2},
}


@dataclasses.dataclass(frozen=True)
class PrimusConfig:
    """An Eva encoder and the number of classes; JSON by `dataclasses.asdict`. The token's sides are powers of two.

    The classmethods are the published networks; their `changes` are fields of this class.
    """

    VARIANTS: ClassVar[dict[str, str]] = {
        **_SIZES,
        **{f"{generation}_{suffix}": f"{generation}_{size}" for generation in ("v2", "v3") for suffix, size in _SIZES.items()},
    }

    encoder: EvaConfig = dataclasses.field(default_factory=EvaConfig)
    num_classes: int = 2

    @classmethod
    def small(cls, **changes) -> "PrimusConfig":
        """Primus-S: width 396, depth 12, 6 heads."""
        return cls._published("v1", "small", changes)

    @classmethod
    def base(cls, **changes) -> "PrimusConfig":
        """Primus-B: width 792, depth 12, 12 heads."""
        return cls._published("v1", "base", changes)

    @classmethod
    def medium(cls, **changes) -> "PrimusConfig":
        """Primus-M: width 864, depth 16, 12 heads; OpenMind's checkpoints are of this size."""
        return cls._published("v1", "medium", changes)

    @classmethod
    def large(cls, **changes) -> "PrimusConfig":
        """Primus-L: width 1056, depth 24, 16 heads."""
        return cls._published("v1", "large", changes)

    @classmethod
    def v2_small(cls, **changes) -> "PrimusConfig":
        """Primus-S behind residual convolutions of 32, 32, 64 and 128 channels."""
        return cls._published("v2", "small", changes)

    @classmethod
    def v2_base(cls, **changes) -> "PrimusConfig":
        """Primus-B with the stem of V2."""
        return cls._published("v2", "base", changes)

    @classmethod
    def v2_medium(cls, **changes) -> "PrimusConfig":
        """Primus-M with the stem of V2."""
        return cls._published("v2", "medium", changes)

    @classmethod
    def v2_large(cls, **changes) -> "PrimusConfig":
        """Primus-L with the stem of V2."""
        return cls._published("v2", "large", changes)

    @classmethod
    def v3_small(cls, **changes) -> "PrimusConfig":
        """Primus-S behind residual convolutions of 32, 64, 256 and 1024 channels, each level reaching the tokens; drop path 0.2."""
        return cls._published("v3", "small", changes)

    @classmethod
    def v3_base(cls, **changes) -> "PrimusConfig":
        """Primus-B with the stem of V3."""
        return cls._published("v3", "base", changes)

    @classmethod
    def v3_medium(cls, **changes) -> "PrimusConfig":
        """Primus-M with the stem of V3."""
        return cls._published("v3", "medium", changes)

    @classmethod
    def v3_large(cls, **changes) -> "PrimusConfig":
        """Primus-L with the stem of V3."""
        return cls._published("v3", "large", changes)

    @classmethod
    def _published(cls, generation: str, size: str, changes: dict[str, Any]) -> "PrimusConfig":
        return cls(**{"encoder": getattr(EvaConfig, size)(**_GENERATIONS[generation]), **changes})

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.encoder.in_channels

    def __post_init__(self) -> None:
        check_token(self.encoder.token)
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}; expected at least 1")


def check_token(token: Triple) -> None:
    """ConfigError if PatchDecode cannot bring tokens of this size back to voxels."""
    if max(token) < 2 or any(t & (t - 1) for t in token):
        raise ConfigError(f"encoder.token is {token}; resolution doubles step by step, so use powers of two, at least one of them above 1")


def decode_factors(token: Triple) -> tuple[Triple, ...]:
    """Up-samplings from token to voxel, coarse to fine: an axis with a smaller token starts to double later."""
    steps = max(token).bit_length() - 1
    x, y, z = token
    return tuple((1 + (x >> i > 1), 1 + (y >> i > 1), 1 + (z >> i > 1)) for i in reversed(range(steps)))


def decode_widths(token: Triple, width: int, outputs: int) -> tuple[int, ...]:
    """Channels from the token to the last up-sampling: a geometric row from `width` towards `2 * outputs`, in multiples of 8."""
    steps = max(token).bit_length() - 1
    ratio = (width / (2 * outputs)) ** (1 / steps)
    # The peer's rounding to the letter: halves go to the even multiple, from just above.
    between = [int(max(8, np.round((width / ratio ** (i + 1) + 1e-6) / 8) * 8)) for i in range(steps - 1)]
    return (width, *between, outputs)


class UpStep(nnx.Module):
    """A transposed convolution with kernel = stride = `factors` and, but for the last, LayerNorm over channels and GELU."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, dtype: str, *, last: bool, rngs: nnx.Rngs):
        self.up = Upsampling(inputs, outputs, factors, bias=True, rngs=rngs)
        self.norm = (
            None if last else nnx.LayerNorm(outputs, epsilon=_NORM_EPSILON, use_fast_variance=False, dtype=jnp.dtype(dtype), rngs=rngs)
        )

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        y = self.up(x)
        return y if self.norm is None else jax.nn.gelu(self.norm(y), approximate=False)


class PatchDecode(nnx.Module):
    """Tokens on a grid to voxels, each token by itself. Equal to dynamic-network-architectures' `PatchDecode`. Parameters: `steps`."""

    def __init__(self, token: Triple, width: int, outputs: int, dtype: str, *, rngs: nnx.Rngs):
        factors = decode_factors(token)
        sides = enumerate(pairwise(decode_widths(token, width, outputs)))
        self.steps = nnx.List([UpStep(i, o, factors[n], dtype, last=n == len(factors) - 1, rngs=rngs) for n, (i, o) in sides])

    def __call__(self, x: Float[Array, "b gx gy gz w"]) -> Float[Array, "b x y z o"]:
        for step in self.steps:
            x = step(x)
        return x


class Primus(nnx.Module):
    """Primus (https://arxiv.org/abs/2503.01835). Equal to dynamic-network-architectures' `Primus`, `PrimusV2` and `PrimusV3`.

    Takes any size that is a multiple of the token; where it is not the crop of the config the position table is stretched to it. Parameters:
    `encoder` (an Eva, as pretraining leaves it) and `decoder`.
    """

    def __init__(self, config: PrimusConfig, *, rngs: nnx.Rngs):
        self.config = config
        encoder = config.encoder
        self.encoder = Eva(encoder, rngs=rngs)
        self.decoder = PatchDecode(encoder.token, encoder.width, config.num_classes, encoder.dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b x y z k"]:
        """Logits (float32) of every voxel; `key` for drop path, `spacing` has no effect. ShapeError if channels or size do not fit."""
        tokens = self.encoder(x, spacing=spacing, key=key)
        grid = tokens.reshape(x.shape[0], *self.encoder.grid_of(x), -1)
        return self.decoder(grid).astype(jnp.float32)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b gx gy gz w"]]:
        """The encoder's maps of the token grid, after each quarter of its blocks; the decoder sees the last."""
        return self.encoder.features(x, spacing=spacing, key=key)
