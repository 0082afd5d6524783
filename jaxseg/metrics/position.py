"""The position-only floor: what a predictor scores that never looks at the image. Used by few-label studies and the main job.

Cropped data sets leak the place of the tumour; a Dice below this floor says nothing. The predictor is the mean mask of the labelled cases in
normalised coordinates (each case's box stretched onto the unit cube), cut at the threshold that is best on those same cases.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from jaxseg.metrics.overlap import dice

SIDE = 48  # samples along each axis of the unit cube
THRESHOLDS = np.arange(0.1, 0.95, 0.1)
Outlined = tuple[list[Bool[np.ndarray, "x y z"]], Bool[np.ndarray, "x y z"]]
"""A case's mask of each label or region, and where somebody contoured: as with the scores of networks, nothing counts elsewhere"""


def position_floor(load: Callable[[str], Outlined], training: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Dice of the position-only predictor made of `training`, on `test`: `{"dice", "per_case"}`.

    `dice` is the mean over cases of the mean over labels or regions, as everywhere. `load` gives a case's masks, on any grid of its own, axes
    in the same order and direction in all; it is called again where a case is needed again, so that no two are held together.
    """
    means: Any = 0.0
    for name in training:
        means = means + np.stack([_to_cube(mask) for mask in load(name)[0]]) / len(training)
    cuts = _best_cuts(means, map(load, training))
    per_case = {}
    for name in test:
        masks, known = load(name)
        scores = [dice((_from_cube(mean, mask.shape) > cut) & known, mask) for mean, cut, mask in zip(means, cuts, masks)]
        per_case[name] = float(np.mean(scores))
    return {"dice": float(np.mean(list(per_case.values()))), "per_case": per_case}


def _to_cube(mask: np.ndarray) -> Float[np.ndarray, "s s s"]:
    return _stretch(mask.astype(np.float32), (SIDE,) * 3)


def _from_cube(mean: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return _stretch(mean, shape)


def _stretch(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Linear interpolation between voxel centres of two grids that cover the same box."""
    axes = [(np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(shape, array.shape)]
    return ndimage.map_coordinates(array, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


def _best_cuts(means: Float[np.ndarray, "k s s s"], cases: Iterable[Outlined]) -> list[float]:
    """For each label the threshold of its mean mask that scores best, on average over the cases (a mask a label each, and where these are known)."""
    scores = []
    for masks, known in cases:
        stretched = [_from_cube(mean, mask.shape) for mean, mask in zip(means, masks)]
        scores.append([[dice((array > cut) & known, mask) for cut in THRESHOLDS] for array, mask in zip(stretched, masks)])
    return [float(THRESHOLDS[best]) for best in np.argmax(np.mean(scores, axis=0), axis=-1)]
