"""The masked autoencoder of nnssl: Primus' encoder over the visible tokens, a decoder of the same blocks, PatchDecode to voxels.

Built by name in `jaxseg.zoo`; what it shares with `mae.MAE` (masks, loss, pictures) is inherited from there.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxseg.errors import ConfigError
from jaxseg.models.eva import Eva, EvaConfig, stack_eva_blocks
from jaxseg.models.layers import layer_norm, run_blocks
from jaxseg.models.mae import MAE
from jaxseg.models.masked_model import check_masking
from jaxseg.models.positions import Positions, Triple, check_numbers, gather_tokens, rope_rotation
from jaxseg.models.primus import PatchDecode, check_token


@dataclasses.dataclass(frozen=True)
class EvaMAEConfig:
    """An encoder, a decoder of its width, how masks are drawn (see `masking.draw`; units in tokens) and what is predicted.

    The defaults are nnssl's: single tokens, 75 % hidden, all of them predicted, squared error. `predict`, `distance` and `norm_target` as in
    `mae.MAEConfig`. The classmethods are the published sizes of the encoder; their `changes` are fields of this class.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"s": "small", "b": "base", "m": "medium", "l": "large"}

    encoder: EvaConfig = dataclasses.field(default_factory=EvaConfig)
    decoder_depth: int = 2
    decoder_heads: int = 12
    mask_ratio: float = 0.75
    mask_unit: Triple = (1, 1, 1)
    mask_blocks: float = 0.0
    mask_slabs: float = 0.0
    body_first: bool = False
    predict: float = 1.0
    distance: Literal["l2", "l1"] = "l2"
    norm_target: bool = False

    @classmethod
    def small(cls, **changes) -> "EvaMAEConfig":
        """Over the encoder of Primus-S."""
        return cls(**{"encoder": EvaConfig.small(), "decoder_heads": 6, **changes})

    @classmethod
    def base(cls, **changes) -> "EvaMAEConfig":
        """Over the encoder of Primus-B."""
        return cls(**{"encoder": EvaConfig.base(), **changes})

    @classmethod
    def medium(cls, **changes) -> "EvaMAEConfig":
        """Over the encoder of Primus-M: OpenMind's PrimusM-OpenMind-MAE."""
        return cls(**{"encoder": EvaConfig.medium(), **changes})

    @classmethod
    def large(cls, **changes) -> "EvaMAEConfig":
        """Over the encoder of Primus-L."""
        return cls(**{"encoder": EvaConfig.large(), "decoder_heads": 16, **changes})

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self.encoder.in_channels

    @property
    def decoder(self) -> EvaConfig:
        """The decoder's blocks and positions, as those of a shallower Eva over the same crop."""
        return dataclasses.replace(self.encoder, depth=self.decoder_depth, heads=self.decoder_heads, drop_path=0.0, registers=0)

    def __post_init__(self) -> None:
        check_token(self.encoder.token)
        if self.encoder.stem is not None:
            raise ConfigError(
                "a masked autoencoder must not see hidden voxels, and a convolutional stem would: use an encoder with stem=None"
            )
        check_numbers(self, least={"decoder_depth": 1, "decoder_heads": 1})
        if self.encoder.width % self.decoder_heads or self.decoder_depth < 1:
            raise ConfigError(
                f"decoder_heads is {self.decoder_heads} and decoder_depth is {self.decoder_depth}; expected at least one block and heads that "
                f"divide the encoder's width of {self.encoder.width}"
            )
        check_masking(self)
        if not 0 < self.predict <= 1:
            raise ConfigError(f"predict is {self.predict}; expected a fraction above 0, up to 1")


class EvaDecoder(nnx.Module):
    """Encoded visible tokens and a mask token per hidden one → voxels. Tokens stay in the order of the mask; there is no change of width."""

    def __init__(self, config: EvaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.mask_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (config.width,), jnp.float32))
        kind = "learned" if config.table else "none"
        head_dim = config.width // config.heads
        self.positions = Positions(kind, config.grid, config.width, head_dim, scale=1.0, base=config.rope_base, rngs=rngs)
        self.blocks = stack_eva_blocks(config, rngs)
        self.norm = layer_norm(config.width, config.dtype, rngs)
        self.up = PatchDecode(config.token, config.width, config.in_channels, config.dtype, rngs=rngs)

    def __call__(
        self, latent: Float[Array, "b v w"], grid: Triple, index: Int[Array, "b k"], coordinates: Float[Array, "b k 3"] | None
    ) -> Float[Array, "b m p"]:
        """The patches of the hidden tokens, float32. `index` and `coordinates` are those of the visible tokens followed by the hidden ones."""
        return self._patches(self._states(latent, grid, index, coordinates)[:, latent.shape[1] :])

    def decode(
        self, latent: Float[Array, "b v w"], grid: Triple, index: Int[Array, "b k"], coordinates: Float[Array, "b k 3"] | None
    ) -> Float[Array, "b k p"]:
        """As a call, but the patches of the visible tokens too."""
        return self._patches(self._states(latent, grid, index, coordinates))

    def _states(self, latent: Array, grid: Triple, index: Array, coordinates: Array | None) -> Float[Array, "b k w"]:
        config = self.config
        shape = (latent.shape[0], index.shape[1] - latent.shape[1], config.width)
        tokens = jnp.concatenate([latent, jnp.broadcast_to(self.mask_token[...].astype(latent.dtype), shape)], axis=1)
        table = self.positions.added(grid)
        if table is not None:
            tokens = tokens + gather_tokens(table, index).astype(tokens.dtype)
        rotation = None if coordinates is None else rope_rotation(coordinates, config.width // config.heads, config.rope_base)
        return run_blocks(self.blocks, tokens, rotation=rotation, remat=config.remat, keep=config.remat_keep)[0]

    def _patches(self, states: Float[Array, "b k w"]) -> Float[Array, "b k p"]:
        # PatchDecode looks at no neighbour, so any set of tokens will do, each a grid of its own.
        patches = self.up(self.norm(states).reshape(-1, 1, 1, 1, self.config.width))
        return patches.reshape(*states.shape[:2], self.config.patch_size).astype(jnp.float32)


class EvaMAE(MAE):
    """nnssl's EvaMAE (layout after its sources, trained as `mae.MAE` is). `encoder` is an Eva and transfers to Primus by name.

    Unlike in nnssl, whose loss mask is unfolded in another axis order than its tokens, the loss falls on hidden tokens alone.
    """

    def __init__(self, config: EvaMAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Eva(config.encoder, rngs=rngs)  # pyright: ignore[reportAttributeAccessIssue] an Eva answers to a ViT's methods
        self.decoder = EvaDecoder(config.decoder, rngs=rngs)

    def _decoder_coordinates(self, grid: Triple, spacing: Array | None, index: Array) -> Float[Array, "b k 3"] | None:
        coordinates = self.encoder.coordinates(grid, spacing)
        return None if coordinates is None else gather_tokens(coordinates, index)
