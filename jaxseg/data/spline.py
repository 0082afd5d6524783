"""Resampling as nnU-Net does it: cubic splines, slice by slice where one axis is much coarser than the others. Called by `preprocess`.

The numbers are those of scipy's and skimage's form; `separable` does the work.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxseg.data.separable import Change, Finish, Weights, axis_weights, resample, resampled_in_turn
from jaxseg.data.volume import Grid, Volume, spacing_grid
from jaxseg.errors import GeometryError

# nnU-Net's ANISO_THRESHOLD: an axis more than three times as coarse as the finest one is resampled by itself.
ANISOTROPY = 3.0
# Ties lie half way between two voxels; rounding noise of the affines must not decide them.
_NUDGE = 1e-6


def coarse_axis(spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis that is resampled by itself, None for all three together: nnU-Net's rule (Isensee et al., Nat. Methods 18, 2021).

    The old spacing (mm) decides if it is anisotropic, else the new one; two equally coarse axes are no reason to split.
    """
    for candidate in (np.asarray(spacing, float), np.asarray(new_spacing, float)):
        if candidate.max() / candidate.min() > ANISOTROPY:
            axes = np.flatnonzero(candidate > candidate.max() * (1 - 1e-4))
            return int(axes[0]) if len(axes) == 1 else None
    return None


def resample_by_splines(volume: Volume, spacing: Sequence[float], *, labels: bool = False) -> Volume:
    """`volume` on the grid of `spacing` (mm; `volume.spacing_grid`), as nnU-Net's default: see `sample_by_splines`."""
    grid = spacing_grid(volume.grid, spacing)
    return volume if grid.same_as(volume.grid, tol=1e-3) else sample_by_splines(volume, grid, labels=labels)


def sample_by_splines(volume: Volume, grid: Grid, *, labels: bool = False, spacing: Sequence[float] | None = None) -> Volume:
    """Sample `volume` on a grid whose axes run along its own.

    Images: order 3 along each axis, clipped to the values that were there, without a low-pass filter; the coarse axis (`coarse_axis`) takes
    the nearest slice, and clipping is by slice. Labels: each class as 0/1 at order 1, nearest along the coarse axis, the largest wins.
    Beyond the border the outermost voxels go on.

    Args:
        spacing: in mm, what the coarse axis is told by, where the grid's own was rounded to whole voxels.

    Raises:
        GeometryError: the axes of `grid` are turned against those of `volume`.
    """
    array = np.empty((len(volume.channels), *grid.shape), volume.array.dtype if labels else np.float32)
    for i, out in enumerate(array):
        if labels:
            step, axis = _step(volume, grid), coarse_axis(volume.spacing, grid.spacing if spacing is None else spacing)
            _labels(volume.array[..., i], step, out, axis)
        else:
            spline_channel(volume, i, grid, out, spacing=spacing)
    return replace(volume, array=np.moveaxis(array, 0, 3), affine=grid.affine)


def spline_channel(
    volume: Volume,
    channel: int,
    grid: Grid,
    out: np.ndarray,
    *,
    order: int = 3,
    spacing: Sequence[float] | None = None,
    change: Change | None = None,
    finish: Finish | None = None,
) -> None:
    """One channel of an image by `sample_by_splines` into `out`.

    `change` is applied to each part of it that is read; `finish`, for order 1 alone, to each part that is written (`separable.resample`).
    """
    plane, axis = volume.array[..., channel], coarse_axis(volume.spacing, grid.spacing if spacing is None else spacing)
    weights = _weights(volume.shape, grid.shape, _step(volume, grid), axis, order)
    if order == 1:  # between the values that there were, without clipping
        resample(plane, weights, out, change=change, finish=finish)
        return
    limits = _Limits(plane.shape, axis, change)
    resample(plane, weights, out, change=limits.looked_at)
    np.clip(out, *limits.on(weights), out=out)


def stretched_grid(grid: Grid, spacing: Sequence[float]) -> Grid:
    """nnU-Net's grid for `spacing` (mm): the same field of view cut into a whole number of voxels, which are no longer quite of that spacing."""
    shape = np.array([round(old / new * count) for old, new, count in zip(grid.spacing, spacing, grid.shape, strict=True)])
    scale = np.asarray(grid.shape) / np.maximum(shape, 1)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * scale
    affine[:3, 3] += grid.affine[:3, :3] @ ((scale - 1) / 2)
    x, y, z = np.maximum(shape, 1).tolist()
    return Grid((x, y, z), affine)


def _step(volume: Volume, grid: Grid) -> np.ndarray:
    """From voxels of the grid to those of the volume."""
    step = np.linalg.inv(volume.affine) @ grid.affine
    turned = step[:3, :3] - np.diag(np.diag(step[:3, :3]))
    if np.abs(turned).max() * max(grid.shape) > 1e-2:
        raise GeometryError(f"splines along the axes need axes that run alike; found {volume.grid.describe()} and {grid.describe()}")
    return step


class _Limits:
    """The smallest and the largest of an image's values, noted as they are read; for a coarse axis those of each slice along it."""

    def __init__(self, shape: tuple[int, ...], axis: int | None, change: Change | None) -> None:
        self._axis, self._change = axis, change
        count = 1 if axis is None else shape[axis]
        self._low, self._high = np.full(count, np.inf, np.float32), np.full(count, -np.inf, np.float32)

    def looked_at(self, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        part = part if self._change is None else self._change(part, box)
        rows = slice(None) if self._axis is None else box[self._axis]
        slices = [part] if self._axis is None else np.moveaxis(part, self._axis, 0)
        self._low[rows] = np.minimum(self._low[rows], [one.min() for one in slices])
        self._high[rows] = np.maximum(self._high[rows], [one.max() for one in slices])
        return part

    def on(self, weights: list[Weights]) -> tuple[np.ndarray, np.ndarray]:
        """Both, in a shape that fits the new grid."""
        if self._axis is None:
            return self._low[:, None, None], self._high[:, None, None]
        low, high = (limit[weights[self._axis], None, None] for limit in (self._low, self._high))
        return np.moveaxis(low, 0, self._axis), np.moveaxis(high, 0, self._axis)


def _labels(plane: Shaped[np.ndarray, "x y z"], step: np.ndarray, label: Shaped[np.ndarray, "u v w"], axis: int | None) -> None:
    label[...] = 0
    weights, places = _weights(plane.shape, label.shape, step, axis, 1), _weights(plane.shape, label.shape, step, None, 0)
    old, new = _boxes(plane != 0, weights, places)
    if not all(part.stop for part in new):
        return
    weights = [matrix[rows] if matrix.ndim == 1 else matrix[rows, columns] for matrix, rows, columns in zip(weights, new, old, strict=True)]
    weights = [matrix - columns.start if matrix.ndim == 1 else matrix for matrix, columns in zip(weights, old, strict=True)]
    inner, nearest = label[new], plane[np.ix_(*(place[rows] for place, rows in zip(places, new, strict=True)))]
    # 0 comes last: around the box there is nothing else, so that it has what the other classes leave.
    values = np.setdiff1d(plane[old], [0])[::-1]
    changes = [functools.partial(_is_class, value=value) for value in values]
    for box, scores in resampled_in_turn(plane[old], weights, changes):
        near, part = nearest[box], inner[box]
        rest, best = np.ones(near.shape, np.float32), np.full(near.shape, -1.0, np.float32)
        part[...] = near
        for value in [*values, 0]:
            score = next(scores) if value else rest
            rest = rest - score
            # As in `volume.to_grid`: ties go to the nearest voxel, or every structure would shrink.
            score = score + np.float32(1e-3) * (near == value)
            better = score >= best
            part[better], best[better] = value, score[better]


def _is_class(part: np.ndarray, box: tuple[slice, ...], *, value: int) -> Float[np.ndarray, "x y z"]:
    del box
    return (part == value).astype(np.float32)


def _weights(old: tuple[int, ...], new: tuple[int, ...], step: np.ndarray, axis: int | None, order: int) -> list[Weights]:
    """Of each axis for splines of `order`, the nearest voxel along the coarse axis."""
    lines = [(old[i], new[i], float(step[i, i]), float(step[i, 3])) for i in range(3)]
    return [_nearest(*line) if order == 0 or i == axis else axis_weights(*line, order) for i, line in enumerate(lines)]


def _nearest(old: int, new: int, step: float, start: float) -> Int[np.ndarray, " new"]:
    return np.clip(np.floor(start + step * np.arange(new) + 0.5 + _NUDGE), 0, old - 1).astype(int)


def _boxes(where: np.ndarray, weights: list[Weights], places: list[Weights]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The box of the true voxels, and the box of the new ones that they have a part in (empty where there are none)."""
    old, new = [], []
    for axis, (matrix, place) in enumerate(zip(weights, places, strict=True)):
        used = np.flatnonzero(where.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        touched = (place >= low) & (place < high)
        if matrix.ndim == 2:
            touched |= matrix[:, low:high].any(1)
        rows = np.flatnonzero(touched)
        old.append(slice(low, high))
        new.append(slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0))
    return tuple(old), tuple(new)
