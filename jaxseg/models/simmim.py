"""SimMIM for 3D scans: all tokens are encoded, hidden ones as one learned token, and a linear head predicts their voxels."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.models.layers import linear
from jaxseg.models.masked_model import MaskedModel, check_masking
from jaxseg.models.positions import Triple, gather_tokens
from jaxseg.models.sample_keys import DROP_PATH, keys_for
from jaxseg.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class SimMIMConfig:
    """An encoder and how masks are drawn (see `masking.draw`; units in tokens); the paper's ratio and distance.

    `norm_target` scores each patch after normalising its valid voxels per channel to mean 0 and deviation 1.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"tiny": "tiny", "small": "small", "base": "base", "large": "large"}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    mask_ratio: float = 0.6
    mask_unit: Triple = (2, 2, 2)
    mask_blocks: float = 0.0
    mask_slabs: float = 0.0
    body_first: bool = False
    distance: Literal["l2", "l1"] = "l1"
    norm_target: bool = False

    @classmethod
    def tiny(cls, **changes) -> "SimMIMConfig":
        """ViTConfig.tiny; `changes` are fields, here and below."""
        return cls(**{"encoder": ViTConfig.tiny(), **changes})

    @classmethod
    def small(cls, **changes) -> "SimMIMConfig":
        """ViTConfig.small."""
        return cls(**{"encoder": ViTConfig.small(), **changes})

    @classmethod
    def base(cls, **changes) -> "SimMIMConfig":
        """ViTConfig.base."""
        return cls(**{"encoder": ViTConfig.base(), **changes})

    @classmethod
    def large(cls, **changes) -> "SimMIMConfig":
        """ViTConfig.large."""
        return cls(**{"encoder": ViTConfig.large(), **changes})

    def __post_init__(self) -> None:
        check_masking(self)


class SimMIM(MaskedModel):
    """SimMIM (https://arxiv.org/abs/2111.09886) over 3D tokens, with the loss on hidden voxels of the body alone.

    The encoder sees as many tokens as in fine-tuning, at about four times the cost of a masked autoencoder's. Parameters: `encoder` (a ViT,
    transfers by name), `mask_token` and `head` (width → voxels of a token). No packaged 3D peer exists.
    """

    term = "simmim"

    def __init__(self, config: SimMIMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.encoder.width,), jnp.float32))
        self.head = linear(config.encoder.width, config.encoder.patch_size, config.encoder.dtype, rngs)

    def predict(
        self,
        patches: Float[Array, "b n p"],
        grid: Triple,
        spacing: Float[Array, "b 3"] | None,
        visible: Int[Array, "b v"],
        hidden: Int[Array, "b m"],
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b m p"]:
        """The `hidden` patches as seen from the `visible` ones alone: every token that is not visible is the mask token at its position."""
        encoder = self.encoder
        seen = jnp.zeros(patches.shape[:2], bool).at[jnp.arange(patches.shape[0])[:, None], visible].set(True)
        tokens = encoder.patch(patches)
        tokens = jnp.where(seen[..., None], tokens, self.mask_token[...].astype(tokens.dtype))
        if keys is not None:
            keys = keys_for(keys, DROP_PATH)
        encoded = encoder.encode(encoder.place(tokens, grid), encoder.coordinates(grid, spacing), keys)
        return self.head(gather_tokens(encoded[:, int(encoder.config.class_token) :], hidden)).astype(jnp.float32)
