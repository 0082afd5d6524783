"""The supervised objective: Dice + cross-entropy on augmented crops, for `jaxseg.train.make_step`. Used by `finetune.train`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from jaxseg import losses
from jaxseg.data.augment import augment
from jaxseg.train import array_names

PRIOR = 0.01
IGNORED = 255  # label of padding, and of voxels nobody contoured


def make_loss(graph: nnx.GraphDef, classes: Classes, config: FinetuneConfig) -> Callable[..., dict[str, Any]]:
    """A loss of (params, batch, keys, extra) for the network whose structure is `graph`; the batch is that of `jaxseg.data.loader`.

    Each sample's key is split in two: one for its augmentation, one for the network's drop path.
    """

    def loss(params: Any, batch: dict[str, Any], keys: jax.Array, extra: Any) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        spatial, network = (jax.vmap(jax.random.fold_in, (0, None))(keys, part) for part in range(2))
        batch = augment(batch, spatial, config.augment)
        logits = model(batch["image"], spacing=batch["spacing"], key=network)
        target = batch["label"]
        if classes.regions is not None:
            target = losses.regions_from_labels(target, classes.regions, ignore=IGNORED)
        axis = "data" if config.layout == "pmap" and config.loss.batch_dice else None
        return losses.dice_ce(logits, target, ignore=IGNORED, regions=classes.regions is not None, batch=config.loss.batch_dice, axis=axis)

    return loss


def start_at_prior(params: Any, classes: Classes) -> Any:
    """The parameters with the head's bias set so that every label starts at a probability of 1 % (Lin et al. 2017, arXiv 1708.02002, 4.1).

    From 50 % a network spends its first hundred steps on learning that most voxels are background.
    """
    rare = float(np.log(PRIOR / (1 - PRIOR)))
    bias = np.full(classes.outputs, rare, np.float32)
    if classes.regions is None:
        bias[0] = 0.0
    leaves, structure = jax.tree.flatten(params)
    names = array_names(params)
    at = names.index("head.bias")
    leaves[at] = jnp.asarray(np.tile(bias, leaves[at].size // bias.size), leaves[at].dtype)
    return jax.tree.unflatten(structure, leaves)
