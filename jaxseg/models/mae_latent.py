"""A masked autoencoder that predicts a teacher's states besides voxels, from one pass of the encoder. Trained by `pretrain`."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.models.latent import state_error
from jaxseg.models.layers import linear
from jaxseg.models.mae import MAE, Decoder, MAEConfig
from jaxseg.models.vit import ViT, patchify


@dataclasses.dataclass(frozen=True)
class MAELatentConfig(MAEConfig):
    """As a masked autoencoder's; the predictor of states is as wide and deep as the decoder of voxels. `norm_target` is about voxels alone."""

    VARIANTS: ClassVar[dict[str, str]] = {}


class MAELatent(MAE):
    """Voxels and a slow average's states of the hidden tokens, each by a decoder of its own, as in BootMAE (https://arxiv.org/abs/2207.07116).

    BootMAE also feeds its decoders from other layers and blocks of other sizes; here both see what the encoder returns. The teacher is not part
    of it. Parameters: `encoder` (a ViT, transfers by name), `decoder` (voxels) and `predictor` (states).
    """

    def __init__(self, config: MAELatentConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.predictor = Decoder(config.decoder, config.encoder.width, rngs=rngs)
        self.predictor.head = linear(config.decoder_width, config.encoder.width, config.encoder.dtype, rngs)

    def losses(
        self,
        teacher: ViT,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        present: Float[Array, "b c"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> dict[str, tuple[Array, Array]]:
        """`{"mae", "latent"}`: (sum, count) as in `MAE.loss` and `Latent.loss`, over the same hidden tokens.

        The teacher sees the whole crop and gets no gradient. One key per sample draws its mask and drop path.
        """
        x = jnp.where(present[:, None, None, None, :] > 0, x, 0)
        grid, patches, body = self.encoder.grid_of(x), self.encoder.patchify(x), patchify(mask[..., None], self.config.encoder.token)
        visible, hidden = self.draw_masks(keys, grid, body)
        hidden = self.scored(hidden)
        encoded = self.encode_visible(patches, grid, self.encoder.coordinates(grid, spacing), visible, keys)
        index = jnp.concatenate([visible, hidden], axis=1)
        placed = self._decoder_coordinates(grid, spacing, index)
        taught = teacher(x, spacing=spacing)
        return {
            "mae": self.error(self.decoder(encoded, grid, index, placed), patches, body, present, hidden),
            "latent": state_error(self.predictor(encoded, grid, index, placed), taught, body, hidden, self.config.distance),
        }
