"""The position-only floor: what a predictor scores that never looks at the image. Used by the few-label study and the report.

Cropped data sets leak the place of the tumour; a Dice below this floor says nothing. The predictor is the mean mask of the labelled cases in
normalised coordinates (each case's box stretched onto the unit cube), cut at the threshold that is best on those same cases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from finetune.classes import Classes
from jaxseg.data.catalog import Store
from jaxseg.metrics import dice

SIDE = 48  # samples along each axis of the unit cube
THRESHOLDS = np.arange(0.1, 0.95, 0.1)


def position_floor(store: Store, training: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Dice of the position-only predictor made of `training`, on `test`, on the working grid: `{"dice", "per_case"}`.

    `dice` is the mean over cases of the mean over labels or regions, as everywhere.
    """
    classes = Classes.of(store.recipe)
    masks = {name: _masks(store, name, classes) for name in (*training, *test)}
    means = np.mean([[_to_cube(mask) for mask in masks[name]] for name in training], axis=0)
    cuts = [_best_cut(mean, [masks[name][k] for name in training]) for k, mean in enumerate(means)]
    per_case = {}
    for name in test:
        predicted = [_from_cube(mean, mask.shape) > cut for mean, cut, mask in zip(means, cuts, masks[name])]
        per_case[name] = float(np.mean([dice(guess, mask) for guess, mask in zip(predicted, masks[name])]))
    return {"dice": float(np.mean(list(per_case.values()))), "per_case": per_case}


def _masks(store: Store, name: str, classes: Classes) -> list[np.ndarray]:
    label = np.asarray(store.arrays(name).label)
    groups = classes.regions or [(value,) for value in range(1, classes.outputs)]
    return [np.isin(label, values) for values in groups]


def _to_cube(mask: np.ndarray) -> Float[np.ndarray, "s s s"]:
    return _stretch(mask.astype(np.float32), (SIDE,) * 3)


def _from_cube(mean: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return _stretch(mean, shape)


def _stretch(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Linear interpolation between voxel centres of two grids that cover the same box."""
    axes = [(np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(shape, array.shape)]
    return ndimage.map_coordinates(array, np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


def _best_cut(mean: np.ndarray, masks: list[np.ndarray]) -> float:
    stretched = [_from_cube(mean, mask.shape) for mask in masks]
    scores = [np.mean([dice(array > cut, mask) for array, mask in zip(stretched, masks)]) for cut in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(scores))])
