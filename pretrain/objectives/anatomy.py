"""The objective "anatomy": a whole network tells where in the body each voxel of a crop lies, and fills in blocks that were taken out of it.

Where a voxel lies is the idea of relative position regression (Lei et al. 2021, arXiv 2012.07043) and of body part regression (Yan et al. 2018,
arXiv 1707.03891), here for each voxel and in three dimensions; filling in is that of Models Genesis (Zhou et al. 2019, arXiv 1908.06912). Unlike a
masked autoencoder it trains decoder and encoder together, on crops that look like those of fine-tuning, which takes all of it with
`take="network"`. Used by `pretrain.train`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxseg.data.augment import Augment, augment
from jaxseg.models import MAEConfig, UNETRConfig, UNETRPlusConfig, masking
from jaxseg.models.positions import Triple
from jaxseg.train.step import Loss
from pretrain.decoded import whole_network
from pretrain.objectives.objective import Anatomy, Objective

# Folded into a sample's key for its blocks, and for the network's drop path; augmentation itself uses small numbers.
_BLOCKS, _NETWORK = 3001, 3002
_MOVES = ("affine", "rotate", "rescale", "elastic")  # and spacing_jitter, which is off where it is None
_LOOKS = ("noise", "blur", "brightness", "contrast", "coarse", "gamma", "bias")


def network(model: MAEConfig, anatomy: Anatomy) -> UNETRConfig | UNETRPlusConfig:
    """The same encoder under a decoder with three outputs for the place and one for each channel."""
    return whole_network(model.encoder, 3 + model.encoder.in_channels, anatomy.decoder, anatomy.feature, anatomy.stride)


def make_loss(graph: nnx.GraphDef, augmentation: Augment, anatomy: Anatomy | None = None) -> Loss:
    """A loss of (params, batch, keys, extra) for the network whose structure is `graph`, with the terms "place" and "filled".

    "place" is the mean absolute error over the body's voxels of where they lie: the distance from the centre of the prepared scan in units of half
    its size, along the first axis (left to right) from the middle plane, since a body is much the same on both sides. "filled" is the
    mean squared error over the body's voxels that were hidden, in channels that are there. Hidden tokens are set
    to 0, the body's mean in the usual recipes.
    """
    settings = anatomy or Anatomy()
    moves = dataclasses.replace(augmentation, **dict.fromkeys(_LOOKS, 0.0))
    looks = dataclasses.replace(augmentation, flip=(0.0, 0.0, 0.0), spacing_jitter=None, **dict.fromkeys(_MOVES, 0.0))

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        network = nnx.merge(graph, params)
        blocks, drop = (jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (_BLOCKS, _NETWORK))
        batch, place = _moved(batch, keys, moves)
        image = augment(batch, keys, looks)["image"] * batch["present"][:, None, None, None]
        hidden = _hidden(blocks, image.shape[1:4], network.config.encoder.token, settings)
        told = network(jnp.where(hidden[..., None], 0.0, image), spacing=batch["spacing"], key=drop).astype(jnp.float32)
        body = (batch["mask"] == 1).astype(jnp.float32)[..., None]
        weight = body * hidden[..., None] * batch["present"][:, None, None, None].astype(jnp.float32)
        return {
            "place": (jnp.sum(jnp.abs(told[..., :3] - place) * body), 3 * jnp.sum(body)),
            "filled": (jnp.sum(jnp.square(told[..., 3:] - image) * weight), jnp.sum(weight)),
        }

    return loss


def _moved(batch: dict[str, Any], keys: Key[Array, " b"], moves: Augment) -> tuple[dict[str, Any], Float[Array, "b x y z 3"]]:
    """The batch rotated, scaled, bent and mirrored, and where each of its voxels came from."""
    image, channels = batch["image"].astype(jnp.float32), batch["image"].shape[-1]
    place = _places(batch)
    ones, zeros = (jnp.full((len(image), 3), value, jnp.float32) for value in (1, 0))
    both = {
        **batch,
        "image": jnp.concatenate([image, place], -1),
        "present": jnp.concatenate([batch["present"].astype(jnp.float32), ones], -1),
        "air": jnp.concatenate([batch["air"].astype(jnp.float32), zeros], -1),
    }
    moved = augment(both, keys, moves)
    image, place = moved["image"][..., :channels], moved["image"][..., channels:]
    place = place.at[..., 0].set(jnp.abs(place[..., 0]))
    return {**batch, "image": image, "mask": moved["mask"], "spacing": moved["spacing"]}, place


def _places(batch: dict[str, Any]) -> Float[Array, "b x y z 3"]:
    """Where each voxel of a crop lies in its scan: -1 to 1 along each axis, 0 its centre."""
    shape = batch["mask"].shape[1:]
    corner, half = batch["place"][:, 0], batch["place"][:, 1]
    index = jnp.stack(jnp.meshgrid(*[jnp.arange(n, dtype=jnp.float32) + 0.5 for n in shape], indexing="ij"), -1)
    at = corner[:, None, None, None] + index * batch["spacing"][:, None, None, None]
    return at / half[:, None, None, None]


def _hidden(keys: Key[Array, " b"], shape: Triple, token: Triple, settings: Anatomy) -> Bool[Array, "b x y z"]:
    """Which voxels the network does not see: whole tokens."""
    grid = (shape[0] // token[0], shape[1] // token[1], shape[2] // token[2])
    _, index = masking.draw(keys, grid, settings.hidden, unit=settings.unit)
    count = grid[0] * grid[1] * grid[2]
    tokens = jax.vmap(lambda one: jnp.zeros(count, bool).at[one].set(True))(index).reshape(-1, *grid)
    for axis, size in enumerate(token):
        tokens = jnp.repeat(tokens, size, axis + 1)
    return tokens


OBJECTIVE = Objective(network, make_loss, places=True)
