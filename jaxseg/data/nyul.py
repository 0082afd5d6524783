"""Nyúl's histogram matching: percentiles of a scan's body are moved onto a scale learnt from many scans. Called by `preprocess`.

Nyúl, Udupa, Zhang, IEEE Trans. Med. Imaging 19, 2000, with their landmarks: the 1st and 99th percentile and the deciles between.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from jaxseg.errors import ConfigError, InputError

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)


def landmarks(values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " 11"]:
    """The intensities of a scan at `PERCENTILES`."""
    return np.percentile(values, PERCENTILES)


def standard_scale(scans: Iterable[Float[np.ndarray, " 11"]]) -> tuple[float, ...]:
    """The mean of the scans' landmarks after each was brought to 0 (1st percentile) … 1 (99th): increasing, 0 first and 1 last.

    Raises:
        InputError: no scan has two different landmarks at its ends.
    """
    scaled = [(marks - marks[0]) / (marks[-1] - marks[0]) for marks in scans if marks[-1] > marks[0]]
    if not scaled:
        raise InputError("histogram matching needs at least one scan that is not constant to learn its landmarks from")
    return tuple(round(float(value), 6) for value in np.mean(scaled, 0))


def check_scale(channel: str, scale: Sequence[float]) -> None:
    """ConfigError unless `scale` has one number a percentile, none smaller than the one before."""
    if len(scale) != len(PERCENTILES) or any(b < a for a, b in zip(scale, scale[1:])) or not scale[-1] > scale[0]:
        raise ConfigError(f"recipe: channel {channel} needs {len(PERCENTILES)} increasing landmarks for its rule nyul; found {list(scale)}")


def match_histogram(
    plane: Float[np.ndarray, "x y z"], marks: Float[np.ndarray, " 11"], scale: Sequence[float]
) -> Float[np.ndarray, "x y z"]:
    """`plane` with its landmarks `marks` moved onto `scale`, linear between them; beyond the ends the outermost pieces go on (lesions)."""
    # Coarsely quantised scans have equal landmarks: one of them stands for all.
    marks, where = np.unique(np.asarray(marks, np.float64), return_index=True)
    targets = np.asarray(scale, np.float64)[where]
    if len(marks) < 2:
        return np.zeros(plane.shape, np.float32)
    slopes = np.diff(targets) / np.diff(marks)
    moved = np.interp(plane, marks, targets)
    moved += np.minimum(plane - marks[0], 0) * slopes[0] + np.maximum(plane - marks[-1], 0) * slopes[-1]
    return moved.astype(np.float32)
