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
Finish = Callable[[np.ndarray], np.ndarray]

_ROWS = 48
_SLICES = 4  # made at once: whole slices are a large part of a scan's memory
_LEADING_ROWS = 24  # where each is made of many
_READ = 1 << 18  # old voxels, likewise
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
    plane: Shaped[np.ndarray, "x y z"],
    weights: Sequence[Weights],
    out: np.ndarray | None = None,
    *,
    change: Change | None = None,
    finish: Finish | None = None,
) -> Shaped[np.ndarray, "u v w"]:
    """`plane` through the matrices of its three axes, float32, into `out` where one is given.

    Args:
        change: applied to each part of the plane as it is read: (part, the box it was cut from) → the part's new values.
        finish: applied to each part of the result before it is put into `out`, which then need not be float32.
    """
    order = _by_memory(plane)
    if out is None:
        out = np.empty([len(weights[axis]) for axis in order], np.float32).transpose(np.argsort(order))
    turned, rest = out.transpose(order), _Rest(weights[order[1]], weights[order[2]])
    for rows, columns in _bands(weights[order[0]], _leading_rows(weights[order[0]])):
        led = _led(plane, weights, order, rows, columns, change)
        for start in range(0, len(led), _SLICES):
            part = rest(led[start : start + _SLICES])
            turned[rows.start + start : rows.start + start + len(part)] = part if finish is None else finish(part)
        del led, part  # before there are the next ones
    return out


def resampled_in_turn(
    plane: Shaped[np.ndarray, "x y z"], weights: Sequence[Weights], changes: Sequence[Change]
) -> Iterator[tuple[tuple[slice, ...], Iterator[Float[np.ndarray, "u v w"]]]]:
    """Box after box of the new grid, with what `resample` puts there for each of `changes`: the same plane in several ways, none of them whole."""
    order = _by_memory(plane)
    rest, back = _Rest(weights[order[1]], weights[order[2]]), np.argsort(order)
    for rows, columns in _bands(weights[order[0]], _leading_rows(weights[order[0]])):
        box = [slice(None)] * 3
        box[order[0]] = rows
        parts = (_led(plane, weights, order, rows, columns, change) for change in changes)
        yield tuple(box), (rest(part).transpose(back) for part in parts)


def _by_memory(plane: np.ndarray) -> np.ndarray:
    """The axes, that first which lies farthest apart in memory: its slices are whole blocks."""
    return np.argsort([-abs(stride) for stride in plane.strides], kind="stable")


def _leading_rows(weights: Weights) -> int:
    """How many new slices are made from the old ones at once: few where each is one old slice, else what reads few old ones twice."""
    return _SLICES if weights.ndim == 1 else _LEADING_ROWS


def _led(
    plane: np.ndarray, weights: Sequence[Weights], order: np.ndarray, rows: slice, columns: slice, change: Change | None
) -> Float[np.ndarray, "u y z"]:
    """The new slices `rows`, made from the old ones `columns` a few lines at a time; axes in the order of memory."""
    turned, first = plane.transpose(order), weights[order[0]]
    lead = first[rows] - columns.start if first.ndim == 1 else first[rows, columns]
    led = np.empty((len(lead), *turned.shape[1:]), np.float32)
    lines = max(1, _READ // max(1, (columns.stop - columns.start) * turned.shape[2]))
    for start in range(0, turned.shape[1], lines):
        box = [slice(None)] * 3
        box[order[0]], box[order[1]] = columns, slice(start, min(start + lines, turned.shape[1]))
        part = plane[tuple(box)]
        part = part if change is None else change(part, tuple(box))
        part = np.ascontiguousarray(part.transpose(order), np.float32)
        led[:, box[order[1]]] = part[lead] if lead.ndim == 1 else (lead @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])
    return led


class _Rest:
    """Slices through the matrices of their two own axes."""

    def __init__(self, second: Weights, third: Weights) -> None:
        self._second, self._third = second, third
        self._bands = [list(_bands(weights)) for weights in (second, third)]

    def __call__(self, part: Float[np.ndarray, "u y z"]) -> Float[np.ndarray, "u v w"]:
        return self._last(self._middle(part))

    def _middle(self, part: np.ndarray) -> np.ndarray:
        if self._second.ndim == 1:
            return part[:, self._second]
        out = np.empty((part.shape[0], len(self._second), part.shape[2]), np.float32)
        for rows, columns in self._bands[0]:
            np.matmul(self._second[rows, columns], part[:, columns], out=out[:, rows])
        return out

    def _last(self, part: np.ndarray) -> np.ndarray:
        if self._third.ndim == 1:
            return part[..., self._third]
        flat, out = part.reshape(-1, part.shape[2]), np.empty((part.shape[0] * part.shape[1], len(self._third)), np.float32)
        for rows, columns in self._bands[1]:
            np.matmul(flat[:, columns], self._third[rows, columns].T, out=out[:, rows])
        return out.reshape(*part.shape[:2], -1)


def _bands(weights: Weights, count: int = _ROWS) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and for each the columns that it does not leave at zero."""
    for start in range(0, len(weights), count):
        block = weights[start : start + count]
        used = block if block.ndim == 1 else np.flatnonzero(block.any(0))
        yield slice(start, start + len(block)), slice(int(used.min()), int(used.max()) + 1)
