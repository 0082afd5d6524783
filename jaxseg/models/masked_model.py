"""What masked image models share: drawing masks, the loss on hidden voxels of the body, the picture. The base of `mae` and `simmim`."""

import abc
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.masking import draw
from jaxseg.models.positions import Triple, check_numbers, gather_tokens
from jaxseg.models.sample_keys import MASK, keys_for
from jaxseg.models.vit import ViT, patchify, unpatchify


class MaskedConfig(Protocol):
    """What a config of a masked image model has besides its own; see `mae.MAEConfig`."""

    @property
    def encoder(self) -> Any: ...
    @property
    def mask_ratio(self) -> float: ...
    @property
    def mask_unit(self) -> Triple: ...
    @property
    def mask_blocks(self) -> float: ...
    @property
    def mask_slabs(self) -> float: ...
    @property
    def body_first(self) -> bool: ...
    @property
    def distance(self) -> str: ...
    @property
    def norm_target(self) -> bool: ...


def check_masking(config: MaskedConfig) -> None:
    """ConfigError if masks cannot be drawn as `config` says, or the distance is none that is known."""
    if not 0 < config.mask_ratio < 1:
        raise ConfigError(f"mask_ratio is {config.mask_ratio}; expected a fraction above 0 and below 1")
    check_numbers(config, least={}, triples=("mask_unit",))
    if min(config.mask_blocks, config.mask_slabs) < 0 or config.mask_blocks + config.mask_slabs > 1:
        raise ConfigError(
            f"mask_blocks {config.mask_blocks} and mask_slabs {config.mask_slabs}: expected probabilities with a sum of at most 1"
        )
    if config.distance not in ("l2", "l1"):
        raise ConfigError(f"distance is {config.distance!r}; expected 'l2' or 'l1'")


def draw_masks(
    config: MaskedConfig, keys: Key[Array, " b"], grid: Triple, body: Float[Array, "b n t"]
) -> tuple[Int[Array, "b v"], Int[Array, "b h"]]:
    """Indices of visible and hidden tokens as `config` asks for them; `body` holds the mask of every voxel of every token."""
    return draw(
        keys_for(keys, MASK),
        grid,
        config.mask_ratio,
        unit=config.mask_unit,
        blocks=config.mask_blocks,
        slabs=config.mask_slabs,
        body=(body > 0).any(-1),
        body_first=config.body_first,
    )


class MaskedModel(nnx.Module):
    """An encoder that learns by predicting hidden tokens; a subclass says how (`predict`) and what its loss is called (`term`)."""

    term: str
    config: Any
    encoder: ViT

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """The encoder's tokens of a whole crop, nothing hidden: features for a probe."""
        return self.encoder(x, spacing=spacing, key=key)

    @abc.abstractmethod
    def predict(
        self,
        patches: Float[Array, "b n p"],
        grid: Triple,
        spacing: Float[Array, "b 3"] | None,
        visible: Int[Array, "b v"],
        hidden: Int[Array, "b m"],
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b m p"]:
        """The `hidden` patches, float32, as seen from the `visible` ones alone; `keys` for drop path, None for evaluation."""

    def scored(self, hidden: Int[Array, "b h"]) -> Int[Array, "b m"]:
        """Which of the hidden tokens the loss asks for."""
        return hidden

    def loss(
        self,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        present: Float[Array, "b c"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> tuple[dict[str, tuple[Array, Array]], dict[str, Array]]:
        """`{term: (sum, count)}` over the hidden, predicted voxels with mask 1 in channels with present 1, float32, and where the masks fell.

        One key per sample draws its mask and drop path. The second value holds the token indices "visible" `(b, v)` and "hidden" `(b, m)`.
        Raises ShapeError where `present` has other channels than `x`.
        """
        if x.shape[-1] != present.shape[-1]:
            raise ShapeError(f"the image has {x.shape[-1]} channels and `present` {present.shape[-1]}: expected (b, c) of the same c")
        x = jnp.where(present[:, None, None, None, :] > 0, x, 0)
        patches, body = self.encoder.patchify(x), patchify(mask[..., None], self.config.encoder.token)
        grid = self.encoder.grid_of(x)
        visible, hidden = self.draw_masks(keys, grid, body)
        hidden = self.scored(hidden)
        predicted = self.predict(patches, grid, spacing, visible, hidden, keys)
        return {self.term: self.error(predicted, patches, body, present, hidden)}, {"visible": visible, "hidden": hidden}

    def error(
        self,
        predicted: Float[Array, "b m p"],
        patches: Float[Array, "b n p"],
        body: Float[Array, "b n t"],
        present: Float[Array, "b c"],
        hidden: Int[Array, "b m"],
    ) -> tuple[Array, Array]:
        """(sum, count) of the distance between the `hidden` patches and their prediction, over voxels of `body` in channels `present`."""
        channels = present.shape[1]
        target = gather_tokens(patches, hidden).astype(jnp.float32).reshape(*hidden.shape, -1, channels)
        weight = gather_tokens(body, hidden).astype(jnp.float32)[..., None] * present[:, None, None, :].astype(jnp.float32)
        if self.config.norm_target:
            mean, deviation = patch_statistics(target, weight)
            target = (target - mean) / deviation
        error = predicted.reshape(target.shape) - target
        error = jnp.abs(error) if self.config.distance == "l1" else jnp.square(error)
        return jnp.sum(error * weight), jnp.sum(weight)

    def draw_masks(self, keys: Key[Array, " b"], grid: Triple, body: Float[Array, "b n t"]) -> tuple[Int[Array, "b v"], Int[Array, "b h"]]:
        """Indices of visible and hidden tokens; `body` holds the mask of every voxel of every token."""
        return draw_masks(self.config, keys, grid, body)

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
