"""Overlap of two binary masks, exact, on the host: Dice, IoU, volumetric similarity. Evaluation and reports call them.

Written rule for empty masks: both empty is a perfect 1, one empty is 0.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Confusion(NamedTuple):
    """Voxel counts of a predicted mask against the truth."""

    tp: int
    fp: int
    fn: int
    tn: int


def confusion(pred: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> Confusion:
    """Count true and false positives and negatives. Masks are bool (or anything whose non-zero is foreground); ValueError on unequal
    shapes."""
    pred, truth = as_masks(pred, truth)
    tp = int(np.count_nonzero(pred & truth))
    fp = int(np.count_nonzero(pred)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Confusion(tp, fp, fn, pred.size - tp - fp - fn)


def dice(pred: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float:
    """Dice coefficient `2 |A ∩ B| / (|A| + |B|)`, 0 to 1."""
    counts = confusion(pred, truth)
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(pred: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float:
    """Intersection over union (Jaccard index), 0 to 1."""
    counts = confusion(pred, truth)
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def volumetric_similarity(pred: Bool[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float:
    """`1 - ||A| - |B|| / (|A| + |B|)`, 0 to 1: equal volumes, wherever they lie (Taha and Hanbury 2015, doi 10.1186/s12880-015-0068-x)."""
    counts = confusion(pred, truth)
    total = 2 * counts.tp + counts.fp + counts.fn
    return _ratio(total - abs(counts.fp - counts.fn), total)


def as_masks(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as bool arrays; ValueError if their shapes differ."""
    pred, truth = np.asarray(pred, dtype=bool), np.asarray(truth, dtype=bool)
    if pred.shape != truth.shape:
        raise ValueError(f"the masks have shapes {pred.shape} and {truth.shape}; metrics need two masks on one grid")
    return pred, truth


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
