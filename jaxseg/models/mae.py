"""The masked autoencoder for 3D scans: encode the visible tokens only, predict the hidden voxels of the body. Trained by `pretrain`."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError
from jaxseg.models.layers import layer_norm, linear, run_blocks, stack_blocks
from jaxseg.models.masked_model import MaskedModel, check_masking
from jaxseg.models.positions import Kind, Positions, Triple, check_numbers, gather_tokens
from jaxseg.models.sample_keys import DROP_PATH, keys_for
from jaxseg.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    """An encoder, a narrow decoder, how masks are drawn (see `masking.draw`; units in tokens) and what is predicted.

    `predict` is the fraction of the hidden tokens that is decoded and scored. `norm_target` scores each patch after normalising its valid voxels
    per channel to mean 0 and deviation 1. The decoder has the encoder's MLP ratio and kind of positions unless told.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"tiny": "tiny", "small": "small", "base": "base", "large": "large"}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6
    mask_ratio: float = 0.75
    mask_unit: Triple = (2, 2, 2)
    mask_blocks: float = 0.0
    mask_slabs: float = 0.0
    body_first: bool = False
    predict: float = 1.0
    distance: Literal["l2", "l1"] = "l2"
    norm_target: bool = False
    decoder_mlp_ratio: float | None = None
    decoder_positions: Kind | None = None

    @classmethod
    def tiny(cls, **changes) -> "MAEConfig":
        """ViTConfig.tiny and a decoder of 96 × 2; `changes` are fields, here and below."""
        return cls(**{"encoder": ViTConfig.tiny(), "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 2, **changes})

    @classmethod
    def small(cls, **changes) -> "MAEConfig":
        """ViTConfig.small and a decoder of 192 × 4."""
        return cls(**{"encoder": ViTConfig.small(), "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6, **changes})

    @classmethod
    def base(cls, **changes) -> "MAEConfig":
        """ViTConfig.base and a decoder of 384 × 4."""
        return cls(**{"encoder": ViTConfig.base(), "decoder_width": 384, "decoder_depth": 4, "decoder_heads": 6, **changes})

    @classmethod
    def large(cls, **changes) -> "MAEConfig":
        """ViTConfig.large and a decoder of 512 × 4."""
        return cls(**{"encoder": ViTConfig.large(), "decoder_width": 512, "decoder_depth": 4, "decoder_heads": 8, **changes})

    @property
    def decoder(self) -> ViTConfig:
        """The decoder's blocks and positions, as those of a narrow ViT over the same crop."""
        return dataclasses.replace(
            self.encoder,
            width=self.decoder_width,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            mlp_ratio=self.encoder.mlp_ratio if self.decoder_mlp_ratio is None else self.decoder_mlp_ratio,
            positions=self.encoder.positions if self.decoder_positions is None else self.decoder_positions,
            drop_path=0.0,
            registers=0,
        )

    def __post_init__(self) -> None:
        check_numbers(self, least={"decoder_width": 1, "decoder_heads": 1, "decoder_depth": 0})
        check_masking(self)
        if not 0 < self.predict <= 1:
            raise ConfigError(f"predict is {self.predict}; expected a fraction above 0, up to 1")


class Decoder(nnx.Module):
    """Encoded visible tokens and a mask token per hidden one → the voxels of the hidden ones. Tokens stay in the order of the mask."""

    def __init__(self, config: ViTConfig, encoder_width: int, *, rngs: nnx.Rngs):
        self.config = config
        self.project = linear(encoder_width, config.width, config.dtype, rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,), jnp.float32))
        self.positions = Positions(
            config.positions,
            config.grid,
            config.width,
            config.width // config.heads,
            scale=config.rope_scale,
            base=config.rope_base,
            rngs=rngs,
        )
        self.blocks = stack_blocks(config.block, config.depth, rngs)
        self.norm = layer_norm(config.width, config.dtype, rngs)
        self.head = linear(config.width, config.patch_size, config.dtype, rngs)

    def __call__(
        self,
        latent: Float[Array, "b v w"],
        grid: Triple,
        index: Int[Array, "b k"],
        coordinates: Float[Array, "b k 3"] | None,
    ) -> Float[Array, "b m p"]:
        """The patches of the hidden tokens, float32. `index` and `coordinates` are those of the visible tokens followed by the hidden ones.

        With a class token `latent` begins with the encoded one, which goes through the decoder without a position.
        """
        return self._patches(self._states(latent, grid, index, coordinates)[:, latent.shape[1] :])

    def decode(
        self,
        latent: Float[Array, "b v w"],
        grid: Triple,
        index: Int[Array, "b k"],
        coordinates: Float[Array, "b k 3"] | None,
    ) -> Float[Array, "b k p"]:
        """As a call, but the patches of the visible tokens too, which nothing was ever asked of in training."""
        return self._patches(self._states(latent, grid, index, coordinates)[:, int(self.config.class_token) :])

    def _patches(self, states: Float[Array, "b k w"]) -> Float[Array, "b k p"]:
        return self.head(self.norm(states)).astype(jnp.float32)

    def _states(self, latent: Array, grid: Triple, index: Array, coordinates: Array | None) -> Float[Array, "b k w"]:
        own = [(0, 0), (int(self.config.class_token), 0), (0, 0)]
        tokens = self.project(latent)
        blank = self.mask_token[...].astype(tokens.dtype)
        hidden = own[1][0] + index.shape[1] - latent.shape[1]
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(blank, (tokens.shape[0], hidden, blank.shape[0]))], axis=1)
        table = self.positions.added(grid)
        if table is not None:
            tokens = tokens + jnp.pad(gather_tokens(table, index), own).astype(tokens.dtype)
        rotation = None if coordinates is None else self.positions.rotation(jnp.pad(coordinates, own))
        return run_blocks(self.blocks, tokens, rotation=rotation, remat=self.config.remat, keep=self.config.remat_keep)[0]


class MAE(MaskedModel):
    """Masked autoencoder (https://arxiv.org/abs/2111.06377) over 3D tokens, with the loss on hidden voxels of the body alone.

    Patches are gathered before they are embedded, so that hidden ones cost nothing in the encoder. `encoder` is a ViT and transfers by name.
    Equal to MONAI's `MaskedAutoEncoderViT` (1.6.1) with `ViTConfig.classic(class_token=True, positions="sincos")`, given the same mask.
    """

    term = "mae"

    def __init__(self, config: MAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.encoder.width, rngs=rngs)

    def scored(self, hidden: Int[Array, "b h"]) -> Int[Array, "b m"]:
        """The leading part of the hidden tokens, which is a random one."""
        return hidden[:, : max(1, round(self.config.predict * hidden.shape[1]))]

    def predict(
        self,
        patches: Float[Array, "b n p"],
        grid: Triple,
        spacing: Float[Array, "b 3"] | None,
        visible: Int[Array, "b v"],
        hidden: Int[Array, "b m"],
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b m p"]:
        """The `hidden` patches as seen from the `visible` ones alone; `keys` for drop path, None for evaluation."""
        latent = self.encode_visible(patches, grid, self.encoder.coordinates(grid, spacing), visible, keys)
        index = jnp.concatenate([visible, hidden], axis=1)
        return self.decoder(latent, grid, index, self._decoder_coordinates(grid, spacing, index))

    def predict_all(
        self, patches: Float[Array, "b n p"], grid: Triple, spacing: Float[Array, "b 3"] | None, visible: Int[Array, "b v"]
    ) -> Float[Array, "b n p"]:
        """Every patch in the grid's order as seen from the `visible` ones, theirs included: what MONAI's `MaskedAutoEncoderViT` returns."""
        rows = jnp.arange(patches.shape[0])[:, None]
        seen = jnp.zeros(patches.shape[:2]).at[rows, visible].set(1.0)
        hidden = jnp.argsort(seen, axis=1)[:, : patches.shape[1] - visible.shape[1]]
        latent = self.encode_visible(patches, grid, self.encoder.coordinates(grid, spacing), visible, None)
        index = jnp.concatenate([visible, hidden], axis=1)
        decoded = self.decoder.decode(latent, grid, index, self._decoder_coordinates(grid, spacing, index))
        return jnp.zeros(decoded.shape).at[rows, index].set(decoded)

    def _decoder_coordinates(self, grid: Triple, spacing: Array | None, index: Array) -> Float[Array, "b k 3"] | None:
        coordinates = self.decoder.positions.coordinates(grid, self.config.encoder.token, spacing)
        return None if coordinates is None else gather_tokens(coordinates, index)

    def encode_visible(
        self,
        patches: Float[Array, "b n p"],
        grid: Triple,
        coordinates: Float[Array, "b n 3"] | None,
        visible: Int[Array, "b v"],
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b v w"]:
        """The encoder over the `visible` patches, each at its own coordinates; with a class token that one comes first."""
        tokens = self.encoder.embed(gather_tokens(patches, visible), grid, visible)
        if keys is not None:
            keys = keys_for(keys, DROP_PATH)
        return self.encoder.encode(tokens, None if coordinates is None else gather_tokens(coordinates, visible), keys)
