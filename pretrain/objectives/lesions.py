"""The objective "lesions": outline artificial lesions with a whole network (Zhang et al. 2021, arXiv 2109.03230). Used by `pretrain.train`.

Unlike the others it trains decoder and head with the encoder; fine-tuning takes all of it with `take="network"`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxseg import losses
from jaxseg.data.augment import Augment, augment
from jaxseg.models import MAEConfig, UNETRConfig, UNETRPlusConfig
from jaxseg.train import array_names
from jaxseg.train.step import Loss
from pretrain.decoded import whole_network
from pretrain.implants import LAYERS, PARTS, Lesions, implant
from pretrain.objectives.objective import Objective

# Folded into a sample's key for its lesion, and for the network's drop path; augmentation itself uses small numbers.
_LESION, _NETWORK = 2001, 2002
_RARE = -2.5  # the logit of 8 %


def network(model: MAEConfig, lesions: Lesions) -> UNETRConfig | UNETRPlusConfig:
    """The same encoder under a decoder with one output for each layer of a lesion; there is nothing to mask."""
    return whole_network(model.encoder, len(LAYERS), lesions.decoder, lesions.feature, lesions.stride)


def begin(params: Any) -> Any:
    """The parameters with a head that takes every voxel for outside: about how rare a lesion is near its centre."""
    names = array_names(params)
    leaves, structure = jax.tree.flatten(params)
    at = names.index("head.bias")
    leaves[at] = jnp.full_like(leaves[at], _RARE)
    return jax.tree.unflatten(structure, leaves)


def make_loss(graph: nnx.GraphDef, augmentation: Augment, lesions: Lesions | None = None, channels: tuple[str, ...] = ()) -> Loss:
    """A loss of (params, batch, keys, extra) for the network whose structure is `graph`, with the terms "dice" and "cross_entropy".

    Every crop that holds body is augmented and gets a lesion. Dice is taken per sample and layer; only voxels near the lesion count.
    """
    looks = lesions or Lesions()
    expected = jnp.asarray(looks.expected(channels), jnp.float32) if channels or looks.signal else jnp.zeros((len(PARTS), 1), jnp.float32)

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        own, drop = (jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (_LESION, _NETWORK))
        batch = augment(batch, keys, augmentation)
        signal = jnp.broadcast_to(expected, (len(PARTS), batch["image"].shape[-1]))
        draw = jax.vmap(lambda image, body, spacing, key: implant(image, body, spacing, key, looks, signal))
        image, layers, near = draw(batch["image"], batch["mask"] == 1, batch["spacing"], own)
        logits = model(image * batch["present"][:, None, None, None], spacing=batch["spacing"], key=drop)
        return losses.dice_ce(logits, layers.astype(jnp.uint8), valid=near, regions=True)

    return loss


OBJECTIVE = Objective(network, make_loss, implants=True, begin=begin)
