"""Latent prediction for 3D scans: a student that sees part of a crop predicts a teacher's states of the rest. Trained by `pretrain`."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.models.layers import linear
from jaxseg.models.mae import Decoder, MAEConfig
from jaxseg.models.masked_model import draw_masks
from jaxseg.models.positions import Triple, gather_tokens
from jaxseg.models.sample_keys import DROP_PATH, keys_for
from jaxseg.models.vit import ViT, patchify


@dataclasses.dataclass(frozen=True)
class LatentConfig(MAEConfig):
    """As a masked autoencoder's: the decoder predicts states instead of voxels. Targets are always normalised, whatever `norm_target`."""

    VARIANTS: ClassVar[dict[str, str]] = {}


class Latent(nnx.Module):
    """A student of the I-JEPA kind (https://arxiv.org/abs/2301.08243) over 3D tokens; its teacher is not part of it.

    Parameters: `encoder` (a ViT, transfers by name) and `decoder` (the predictor, with a head as wide as the encoder).
    """

    def __init__(self, config: LatentConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = ViT(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, config.encoder.width, rngs=rngs)
        self.decoder.head = linear(config.decoder_width, config.encoder.width, config.encoder.dtype, rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """The encoder's tokens of a whole crop, nothing hidden: features for a probe."""
        return self.encoder(x, spacing=spacing, key=key)

    def loss(
        self,
        teacher: ViT,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> tuple[Array, Array]:
        """(sum, count) of the distance between predicted and teacher's states of the hidden tokens, each weighted by its share of `mask`.

        The teacher sees the whole crop and gets no gradient; its states are normalised to mean 0 and deviation 1 each, as data2vec
        (https://arxiv.org/abs/2202.03555) does against collapse. `x` is 0 in channels that a sample lacks.
        """
        config, grid = self.config, self.encoder.grid_of(x)
        body = patchify(mask[..., None], config.encoder.token)
        visible, hidden = draw_masks(self.config, keys, grid, body)
        hidden = hidden[:, : max(1, round(config.predict * hidden.shape[1]))]
        predicted = self.predict(x, grid, spacing, visible, hidden, keys)
        return state_error(predicted, teacher(x, spacing=spacing), body, hidden, config.distance)

    def predict(
        self,
        x: Float[Array, "b x y z c"],
        grid: Triple,
        spacing: Float[Array, "b 3"] | None,
        visible: Int[Array, "b v"],
        hidden: Int[Array, "b m"],
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b m w"]:
        """The states of the `hidden` tokens, float32, as told from the `visible` ones alone; `keys` for drop path."""
        encoder, index = self.encoder, jnp.concatenate([visible, hidden], axis=1)
        tokens = encoder.embed(gather_tokens(encoder.patchify(x), visible), grid, visible)
        seen = self._at(encoder.coordinates(grid, spacing), visible)
        if keys is not None:
            keys = keys_for(keys, DROP_PATH)
        placed = self._at(self.decoder.positions.coordinates(grid, self.config.encoder.token, spacing), index)
        return self.decoder(encoder.encode(tokens, seen, keys), grid, index, placed)

    def _at(self, coordinates: Any, index: Int[Array, "b k"]) -> Any:
        return None if coordinates is None else gather_tokens(coordinates, index)


def state_error(
    predicted: Float[Array, "b m w"],
    taught: Float[Array, "b n w"],
    body: Float[Array, "b n t"],
    hidden: Int[Array, "b m"],
    distance: str,
) -> tuple[Array, Array]:
    """(sum, count) of the mean distance to the teacher's normalised states of the `hidden` tokens, each weighted by its share of `body`.

    No gradient goes to `taught`.
    """
    target = gather_tokens(states(jax.lax.stop_gradient(taught)), hidden)
    weight = gather_tokens(body.astype(jnp.float32).mean(-1, keepdims=True), hidden)[..., 0]
    error = predicted - target
    error = (jnp.abs(error) if distance == "l1" else jnp.square(error)).mean(-1)
    return jnp.sum(error * weight), jnp.sum(weight)


def states(tokens: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
    """Tokens as targets: each with mean 0 and deviation 1 over its own numbers, float32."""
    tokens = tokens.astype(jnp.float32)
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
