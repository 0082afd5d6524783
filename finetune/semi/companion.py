"""What both semi-supervised methods share: the pairs of crops, the two views of the unlabelled one, the teacher that travels in the train state.

`finetune.train` asks `make_companion` for the method that a config names and puts its loss beside that of the labelled crops.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxseg.data.augment import Augment, Batch, augment
from jaxseg.data.loader import CropLoader
from jaxseg.train.step import Loss, Terms

UNLABELLED = "unlabelled."  # before the names of a batch's unlabelled arrays
_SEED = 1_000_003  # apart from the labelled crops', for the same cases may be in both
_SPATIAL = ("flip", "affine", "rotate", "rescale", "scale_each_axis", "elastic", "spacing_jitter")
_STRENGTHS = ("rotation", "scale", "elastic_width", "elastic_strain")


class Companion(NamedTuple):
    """A method: `terms(params, teacher, views, keys, weight)` of the unlabelled crops, and how the teacher follows the student."""

    terms: Callable[..., Terms]
    follow: Callable[[Any, Any, Array], Any]


class Views(NamedTuple):
    """An unlabelled batch after the spatial augmentation: as the teacher sees it, and with intensities changed, as the student does.

    Both lie voxel on voxel. `valid` is where there is a body, and neither padding nor air.
    """

    teacher: Float[Array, "b x y z c"]
    student: Float[Array, "b x y z c"]
    spacing: Float[Array, "b 3"]
    valid: Array


class PairedLoader:
    """Batches of labelled crops with as many unlabelled ones beside them, of names that begin with "unlabelled."; checkpointable as one.

    The pair with number `id` depends on `(seed, id)` alone, as each of its crops does.
    """

    def __init__(self, labelled: CropLoader, unlabelled: CropLoader) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __next__(self) -> dict[str, np.ndarray]:
        return {**next(self.labelled), **{UNLABELLED + name: array for name, array in next(self.unlabelled).items()}}

    def get_state(self) -> dict[str, Any]:
        """The positions of both."""
        return {"labelled": self.labelled.get_state(), "unlabelled": self.unlabelled.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved position; CheckpointError if it belongs to other settings."""
        self.labelled.set_state(state["labelled"])
        self.unlabelled.set_state(state["unlabelled"])


def pool_seed(seed: int) -> int:
    """The seed of the unlabelled crops of a run with this seed."""
    return seed + _SEED


def first_extra(teacher: Any) -> dict[str, Any]:
    """What the train state carries along from the start: the teacher's parameters (copied) and the number of updates."""
    return {"teacher": jax.tree.map(jnp.copy, teacher), "updates": jnp.zeros((), jnp.int32)}


def with_unlabelled(supervised: Loss, companion: Companion, augmentation: Augment, *, weight: float, ramp: int) -> Loss:
    """The loss of a paired batch: the terms of the labelled crops, and the companion's, ramped up, of the unlabelled ones.

    A pair shares one key, of which the labelled crop takes the parts 0 and 1 (`finetune.objective`) and the unlabelled one 2 and 3.
    """

    def loss(params: Any, batch: Batch, keys: Array, extra: Any) -> Terms:
        pool = {name.removeprefix(UNLABELLED): array for name, array in batch.items() if name.startswith(UNLABELLED)}
        own = {name: array for name, array in batch.items() if not name.startswith(UNLABELLED)}
        views = make_views(pool, _parts(keys, 2), augmentation)
        now = weight * ramped(extra["updates"], ramp)
        return supervised(params, own, keys, None) | companion.terms(params, extra["teacher"], views, _parts(keys, 3), now)

    return loss


def advance_with(companion: Companion) -> Callable[[Any, Any], Any]:
    """`advance` for `make_step`: the teacher follows the new parameters, the updates are counted."""

    def advance(extra: Any, params: Any) -> Any:
        return {"teacher": companion.follow(extra["teacher"], params, extra["updates"]), "updates": extra["updates"] + 1}

    return advance


def make_views(batch: Batch, keys: Array, augmentation: Augment) -> Views:
    """One resampling for both views, intensities for the student alone: what the teacher says of a voxel holds for the student's, too."""
    still = Augment.none()
    spatial = dataclasses.replace(still, **{name: getattr(augmentation, name) for name in (*_SPATIAL, *_STRENGTHS)})
    intensity = dataclasses.replace(augmentation, **{name: getattr(still, name) for name in _SPATIAL})
    moved = augment(batch, _parts(keys, 0), spatial)
    changed = augment(moved, _parts(keys, 1), intensity)
    return Views(moved["image"], changed["image"], moved["spacing"], moved["mask"] != 0)


def ramped(updates: Array, ramp: int) -> Float[Array, ""]:
    """The part of the whole weight after so many updates, from exp(-5) to 1."""
    if ramp == 0:
        return jnp.ones((), jnp.float32)
    left = 1.0 - jnp.minimum(updates.astype(jnp.float32) / ramp, 1.0)
    return jnp.exp(-5.0 * left**2)


def probabilities(
    graph: nnx.GraphDef, params: Any, image: Array, spacing: Array, *, regions: bool, keys: Array | None = None
) -> Float[Array, "b x y z k"]:
    """Of every class by softmax, or every region by sigmoid. With keys the network drops paths."""
    logits = nnx.merge(graph, params)(image, spacing=spacing, key=keys).astype(jnp.float32)
    return jax.nn.sigmoid(logits) if regions else jax.nn.softmax(logits)


def _parts(keys: Array, part: int) -> Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, part)
