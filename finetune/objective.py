"""The supervised objective: Dice + cross-entropy on augmented crops, for `jaxseg.train.make_step`. Used by `finetune.train`."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from jaxseg import losses
from jaxseg.data.augment import augment

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
