"""Mean teacher (Tarvainen & Valpola 2017, arXiv 1703.01780): on unlabelled crops the network agrees with the average of its past weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.semi.companion import Companion, Views, probabilities
from jaxseg.train.step import Terms


def mean_teacher(graph: nnx.GraphDef, classes: Classes, config: FinetuneConfig) -> Companion:
    """The term "consistency": squared difference of probabilities, mean over classes, summed over body voxels, and their number.

    The teacher sees no noise and drops no path. It begins as the student and is averaged with min(`decay`, 1 - 1 / (updates + 2)), so that it soon
    forgets the first weights, as the paper's code does. The student is what a run evaluates and exports, so that the arm differs from
    others by its unlabelled crops alone.
    """
    regions = classes.regions is not None

    def terms(params: Any, teacher: Any, views: Views, keys: Array, weight: Array) -> Terms:
        wanted = probabilities(graph, teacher, views.teacher, views.spacing, regions=regions)
        found = probabilities(graph, params, views.student, views.spacing, regions=regions, keys=keys)
        apart = jnp.mean((found - wanted) ** 2, axis=-1)
        return {"consistency": (weight * jnp.sum(apart * views.valid), jnp.sum(views.valid.astype(jnp.float32)))}

    def follow(teacher: Any, params: Any, updates: Array) -> Any:
        decay = jnp.minimum(config.semi.decay, 1.0 - 1.0 / (updates.astype(jnp.float32) + 2.0))
        return jax.tree.map(lambda old, new: (decay * old + (1.0 - decay) * new).astype(old.dtype), teacher, params)

    return Companion(terms, follow)
