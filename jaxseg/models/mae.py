"""The masked autoencoder for 3D scans: encode the visible tokens only, predict the hidden voxels of the body. Trained by `pretrain`."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError
from jaxseg.models.layers import layer_norm, linear, run_blocks, stack_blocks
from jaxseg.models.masking import draw
from jaxseg.models.positions import Positions, Triple, gather_tokens
from jaxseg.models.vit import ViT, ViTConfig, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    """An encoder, a narrow decoder, how masks are drawn (see `masking.draw`; units in tokens) and what is predicted.

    `predict` is the fraction of the hidden tokens that is decoded and scored. `norm_target` scores each patch after normalising its valid voxels
    per channel to mean 0 and deviation 1.
    """

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

    @property
    def decoder(self) -> ViTConfig:
        """The decoder's blocks and positions, as those of a narrow ViT over the same crop."""
        narrow = {"width": self.decoder_width, "depth": self.decoder_depth, "heads": self.decoder_heads}
        return dataclasses.replace(self.encoder, **narrow, drop_path=0.0, registers=0)

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(f"mask_ratio is {self.mask_ratio}; expected a fraction above 0 and below 1")
        if not 0 < self.predict <= 1:
            raise ConfigError(f"predict is {self.predict}; expected a fraction above 0, up to 1")
        if min(self.mask_unit) < 1:
            raise ConfigError(f"mask_unit is {self.mask_unit}; expected at least one token along each axis")
        if min(self.mask_blocks, self.mask_slabs) < 0 or self.mask_blocks + self.mask_slabs > 1:
            raise ConfigError(
                f"mask_blocks {self.mask_blocks} and mask_slabs {self.mask_slabs}: expected probabilities with a sum of at most 1"
            )
        if self.distance not in ("l2", "l1"):
            raise ConfigError(f"distance is {self.distance!r}; expected 'l2' or 'l1'")


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
        """`index` and `coordinates` are those of the visible tokens followed by the hidden ones; float32 out."""
        visible, hidden = latent.shape[1], index.shape[1] - latent.shape[1]
        tokens = self.project(latent)
        blank = self.mask_token[...].astype(tokens.dtype)
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(blank, (tokens.shape[0], hidden, blank.shape[0]))], axis=1)
        table = self.positions.added(grid)
        if table is not None:
            tokens = tokens + gather_tokens(table, index).astype(tokens.dtype)
        tokens, _ = run_blocks(self.blocks, tokens, rotation=self.positions.rotation(coordinates), remat=self.config.remat)
        return self.head(self.norm(tokens[:, visible:])).astype(jnp.float32)


class MAE(nnx.Module):
    """Masked autoencoder (https://arxiv.org/abs/2111.06377) over 3D tokens, with the loss on hidden voxels of the body alone.

    Patches are gathered before they are embedded, so that hidden ones cost nothing in the encoder. `encoder` is a ViT and transfers by name.
    """

    def __init__(self, config: MAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.encoder.width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """The encoder's tokens of a whole crop, nothing hidden: features for a probe."""
        return self.encoder(x, spacing=spacing, key=key)

    def loss(
        self,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        present: Float[Array, "b c"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> tuple[dict[str, tuple[Array, Array]], dict[str, Array]]:
        """`{"mae": (sum, count)}` over the hidden, predicted voxels with mask 1 in channels with present 1, float32, and where the masks fell.

        One key per sample draws its mask and drop path. The second value holds the token indices "visible" `(b, v)` and "hidden" `(b, m)`.
        """
        x = x * present[:, None, None, None, :].astype(x.dtype)
        patches, body = self.encoder.patchify(x), patchify(mask[..., None], self.config.encoder.token)
        visible, hidden = self.draw_masks(keys, self.encoder.grid_of(x), body)
        hidden = hidden[:, : max(1, round(self.config.predict * hidden.shape[1]))]
        predicted = self.predict(patches, self.encoder.grid_of(x), spacing, visible, hidden, keys)
        channels = present.shape[1]
        target = gather_tokens(patches, hidden).astype(jnp.float32).reshape(*hidden.shape, -1, channels)
        weight = gather_tokens(body, hidden).astype(jnp.float32)[..., None] * present[:, None, None, :].astype(jnp.float32)
        if self.config.norm_target:
            mean, deviation = patch_statistics(target, weight)
            target = (target - mean) / deviation
        error = predicted.reshape(target.shape) - target
        error = jnp.abs(error) if self.config.distance == "l1" else jnp.square(error)
        return {"mae": (jnp.sum(error * weight), jnp.sum(weight))}, {"visible": visible, "hidden": hidden}

    def draw_masks(self, keys: Key[Array, " b"], grid: Triple, body: Float[Array, "b n t"]) -> tuple[Int[Array, "b v"], Int[Array, "b h"]]:
        """Indices of visible and hidden tokens; `body` holds the mask of every voxel of every token."""
        config = self.config
        return draw(
            jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys),
            grid,
            config.mask_ratio,
            unit=config.mask_unit,
            blocks=config.mask_blocks,
            slabs=config.mask_slabs,
            body=(body > 0).any(-1),
            body_first=config.body_first,
        )

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
        coordinates = self.encoder.coordinates(grid, spacing)
        latent = self.encode_visible(patches, grid, coordinates, visible, keys)
        index = jnp.concatenate([visible, hidden], axis=1)
        return self.decoder(latent, grid, index, None if coordinates is None else gather_tokens(coordinates, index))

    def encode_visible(
        self,
        patches: Float[Array, "b n p"],
        grid: Triple,
        coordinates: Float[Array, "b n 3"] | None,
        visible: Int[Array, "b v"],
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b v w"]:
        """The encoder over the `visible` patches, each at its own coordinates."""
        tokens = self.encoder.embed(gather_tokens(patches, visible), grid, visible)
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return self.encoder.encode(tokens, None if coordinates is None else gather_tokens(coordinates, visible), keys)

    def reconstruct(
        self,
        x: Float[Array, "b x y z c"],
        keys: Key[Array, " b"],
        *,
        mask: Float[Array, "b x y z"] | None = None,
        spacing: Float[Array, "b 3"] | None = None,
    ) -> tuple[Float[Array, "b x y z c"], Float[Array, "b x y z"]]:
        """For pictures: `x` with every hidden token replaced by its prediction, and a volume that is 1 where the encoder saw `x`.

        With `norm_target` the prediction is put back on the scale of the hidden patch itself, which only a picture may know.
        """
        config, grid = self.config, self.encoder.grid_of(x)
        mask = jnp.ones(x.shape[:4]) if mask is None else mask
        patches, body = self.encoder.patchify(x.astype(jnp.float32)), patchify(mask[..., None], config.encoder.token)
        visible, hidden = self.draw_masks(keys, grid, body)
        predicted = self.predict(patches, grid, spacing, visible, hidden).reshape(*hidden.shape, -1, x.shape[-1])
        if config.norm_target:
            target = gather_tokens(patches, hidden).reshape(predicted.shape)
            mean, deviation = patch_statistics(target, gather_tokens(body, hidden).astype(jnp.float32)[..., None])
            predicted = predicted * deviation + mean
        rows = jnp.arange(x.shape[0])[:, None]
        filled = patches.at[rows, hidden].set(predicted.reshape(*hidden.shape, -1))
        seen = jnp.zeros(body.shape).at[rows, visible].set(1.0)
        return unpatchify(filled, grid, config.encoder.token), unpatchify(seen, grid, config.encoder.token)[..., 0]


def patch_statistics(
    target: Float[Array, "b m t c"], weight: Float[Array, "b m t c"]
) -> tuple[Float[Array, "b m 1 c"], Float[Array, "b m 1 c"]]:
    """Mean and standard deviation of each patch and channel over the voxels of weight 1; (0, 1e-3) where there are none."""
    count = jnp.maximum(weight.sum(2, keepdims=True), 1)
    mean = (target * weight).sum(2, keepdims=True) / count
    variance = (jnp.square(target - mean) * weight).sum(2, keepdims=True) / count
    return mean, jnp.sqrt(variance + 1e-6)
