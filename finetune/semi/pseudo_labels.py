"""Pseudo-labels (Lee 2013; with a threshold as in FixMatch, arXiv 2001.07685): a first network's confident predictions are labels for a second."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.objective import IGNORED
from finetune.semi.companion import Companion, Views, probabilities
from jaxseg import losses
from jaxseg.train.step import Terms


def pseudo_labels(graph: nnx.GraphDef, classes: Classes, config: FinetuneConfig) -> Companion:
    """The terms "pseudo_dice" and "pseudo_cross_entropy": Dice + cross-entropy, as of labelled crops, against what the teacher is sure of.

    The teacher (the first stage, trained on the labels alone) never changes. Its predictions are made in the step, on the crop as it is
    drawn, so that nothing is written to a store. Outside the body nothing counts.
    """
    regions = classes.regions is not None
    axis = "data" if config.layout == "pmap" and config.loss.batch_dice else None

    def terms(params: Any, teacher: Any, views: Views, keys: Array, weight: Array) -> Terms:
        sure = confident(
            probabilities(graph, teacher, views.teacher, views.spacing, regions=regions), config.semi.confidence, regions=regions
        )
        logits = nnx.merge(graph, params)(views.student, spacing=views.spacing, key=keys)
        found = losses.dice_ce(logits, sure, ignore=IGNORED, valid=views.valid, regions=regions, batch=config.loss.batch_dice, axis=axis)
        factors = {"dice": config.loss.dice, "cross_entropy": config.loss.cross_entropy}
        return {f"pseudo_{name}": (weight * factors[name] * total, count) for name, (total, count) in found.items()}

    return Companion(terms, lambda teacher, params, updates: teacher)


def confident(chances: Float[Array, "b x y z k"], threshold: float, *, regions: bool) -> Int[Array, "b x y z *k"]:
    """Labels where a probability reaches `threshold`, 255 (ignored) elsewhere.

    Classes: the most probable one. Regions: 1 where the probability is at least the threshold, 0 where it is at most 1 - threshold.
    """
    if regions:
        return jnp.where(chances >= threshold, 1, jnp.where(chances <= 1 - threshold, 0, IGNORED)).astype(jnp.uint8)
    return jnp.where(chances.max(-1) >= threshold, chances.argmax(-1), IGNORED).astype(jnp.int32)
