"""The position-only floor: what a predictor scores that never looks at the image. Used by few-label studies and the main job.

Cropped data sets leak the place of the tumour; a Dice below this floor says nothing. The predictor is the mean mask of the labelled cases in
normalised coordinates (each case's box stretched onto the unit cube), cut at the threshold that is best on those same cases.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.metrics.overlap import dice

SIDE = 48  # samples along each axis of the unit cube
THRESHOLDS = np.arange(0.1, 0.95, 0.1)
Outlined = tuple[np.ndarray, Bool[np.ndarray, "x y z"]]
"""A case's label values (x, y, z), and where somebody contoured: as with the scores of networks, nothing counts elsewhere"""


def position_floor(
    load: Callable[[str], Outlined], groups: Sequence[Sequence[int]], training: Sequence[str], test: Sequence[str]
) -> dict[str, Any]:
    """Dice of the position-only predictor made of `training`, on `test`: `{"dice", "per_case"}`.

    `dice` is the mean over cases of the mean over labels or regions, as everywhere; `groups` holds the values of each of them. `load` gives a case on a
    grid of its own, axes in the same order and direction in all; it is called again where a case is needed again, so that no two are held together.
    """
    means = np.zeros((len(groups), SIDE, SIDE, SIDE), np.float32)
    for name in training:
        label, _ = load(name)
        for mean, values in zip(means, groups):
            mean += _stretch(np.isin(label, values), (SIDE,) * 3) / len(training)
    cuts = _best_cuts(means, groups, map(load, training))
    per_case = {}
    for name in test:
        label, known = load(name)
        scores = [
            dice((_stretch(mean, label.shape) > cut) & known, np.isin(label, values)) for mean, cut, values in zip(means, cuts, groups)
        ]
        per_case[name] = float(np.mean(scores))
    return {"dice": float(np.mean(list(per_case.values()))), "per_case": per_case}


def _best_cuts(means: Float[np.ndarray, "k s s s"], groups: Sequence[Sequence[int]], cases: Iterable[Outlined]) -> list[float]:
    """For each label the threshold of its mean mask that scores best, on average over the cases."""
    scores = []
    for label, known in cases:
        of_case = []
        for mean, values in zip(means, groups):
            stretched, mask = _stretch(mean, label.shape), np.isin(label, values)
            of_case.append([dice((stretched > cut) & known, mask) for cut in THRESHOLDS])
        scores.append(of_case)
    return [float(THRESHOLDS[best]) for best in np.argmax(np.mean(scores, axis=0), axis=-1)]


def _stretch(array: np.ndarray, shape: Sequence[int]) -> Float[np.ndarray, "x y z"]:
    """Linear interpolation between voxel centres of two grids that cover the same box, float32."""
    array = array.astype(np.float32)
    for axis, new in enumerate(shape):
        weights = _between(array.shape[axis], new)
        array = np.moveaxis(np.tensordot(weights, array, (1, axis)), 0, axis)
    return array


def _between(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights of linear interpolation along one axis; beyond the outermost centres their values go on."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    lower = np.minimum(place.astype(int), max(old - 2, 0))
    weights = np.zeros((new, old), np.float32)
    weights[np.arange(new), lower] = 1 - (place - lower)
    if old > 1:
        weights[np.arange(new), lower + 1] = place - lower
    return weights
