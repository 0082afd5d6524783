"""Resampling along the axes of a scan: one small matrix an axis, a few slices at a time. Called by `volume`, `spline` and `preprocess`.

Interpolation on a grid that runs along the old one is separable, and so is a Gaussian before it. The numbers are those of scipy's form; the work is
done by BLAS, on the few old voxels that each new one depends on.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from jaxtyping import Float, Int, Shaped

Weights = np.ndarray
"""Of one axis: a matrix (new, old), or for the nearest voxel its index (new,)."""
Change = Callable[[np.ndarray, tuple[slice, ...]], np.ndarray]

_ROWS = 48
_LEADING_ROWS = 24  # of whole slices, which are a large part of a scan's memory
# A cubic spline's weights fall by 0.27 a voxel: what is left out is below float32's rounding.
_NEGLIGIBLE = 1e-7


@functools.lru_cache(32)
def axis_weights(old: int, new: int, step: float, start: float, order: int, *, sigma: float = 0.0) -> Float[np.ndarray, "new old"]:
    """Weights of `old` voxels in `new` ones at positions start + i·step (in old voxels) for splines of `order`, after a Gaussian of `sigma` voxels.

    Beyond the border the outermost voxels go on. float32, read-only: the channels of a case share it.
    """
    from scipy import ndimage  # here, since the processes that index an archive import this module and need it not

    eye = np.eye(old)
    if sigma > 0:
        eye = ndimage.gaussian_filter1d(eye, sigma, axis=0, mode="nearest")
    weights = ndimage.affine_transform(eye, np.array([step, 1.0]), cast(float, (start, 0.0)), (new, old), order=order, mode="nearest")
    if order > 1:
        # The second axis was filtered as well as the first, and then sampled where it was: that changed nothing but rounding.
        weights[np.abs(weights) < _NEGLIGIBLE] = 0
    weights = weights.astype(np.float32)
    weights.flags.writeable = False
    return weights


def nearest_voxels(old: int, new: int, step: float, start: float) -> Int[np.ndarray, " new"]:
    """The voxel nearest to each position start + i·step, by scipy's rounding."""
    from scipy import ndimage

    return ndimage.affine_transform(np.arange(old), np.array([step]), cast(float, (start,)), (new,), order=0, mode="nearest")


def resample(
    plane: Shaped[np.ndarray, "x y z"], weights: Sequence[Weights], out: np.ndarray | None = None, *, change: Change | None = None
) -> Float[np.ndarray, "u v w"]:
    """`plane` through the matrices of its three axes, float32, into `out` where one is given.

    Args:
        change: applied to each part of the plane as it is read: (part, the box it was cut from) → the part's new values.
    """
    # Slices along the axis that lies farthest apart in memory are whole blocks of it.
    order = np.argsort([-abs(stride) for stride in plane.strides], kind="stable")
    first, second, third = (weights[axis] for axis in order)
    if out is None:
        out = np.empty([len(weights[axis]) for axis in order], np.float32).transpose(np.argsort(order))
    turned = out.transpose(order)
    for rows, columns in _bands(first, _LEADING_ROWS):
        box = [slice(None)] * 3
        box[order[0]] = columns
        part = plane[tuple(box)]
        part = part if change is None else change(part, tuple(box))
        part = np.ascontiguousarray(part.transpose(order), np.float32)
        lead = first[rows] - columns.start if first.ndim == 1 else first[rows, columns]
        turned[rows] = _last(_middle(_first(part, lead), second), third)
    return out


def _first(part: np.ndarray, weights: Weights) -> np.ndarray:
    if weights.ndim == 1:
        return part[weights]
    return (weights @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])


def _middle(part: np.ndarray, weights: Weights) -> np.ndarray:
    if weights.ndim == 1:
        return part[:, weights]
    out = np.empty((part.shape[0], len(weights), part.shape[2]), np.float32)
    for rows, columns in _bands(weights):
        np.matmul(weights[rows, columns], part[:, columns], out=out[:, rows])
    return out


def _last(part: np.ndarray, weights: Weights) -> np.ndarray:
    if weights.ndim == 1:
        return part[..., weights]
    flat, out = part.reshape(-1, part.shape[2]), np.empty((part.shape[0] * part.shape[1], len(weights)), np.float32)
    for rows, columns in _bands(weights):
        np.matmul(flat[:, columns], weights[rows, columns].T, out=out[:, rows])
    return out.reshape(*part.shape[:2], -1)


def _bands(weights: Weights, count: int = _ROWS) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and for each the columns that it does not leave at zero."""
    for start in range(0, len(weights), count):
        block = weights[start : start + count]
        used = block if block.ndim == 1 else np.flatnonzero(block.any(0))
        yield slice(start, start + len(block)), slice(int(used.min()), int(used.max()) + 1)
