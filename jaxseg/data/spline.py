"""Resampling as nnU-Net does it: cubic splines, slice by slice where one axis is much coarser than the others. Called by `preprocess`.

Splines are separable, so each axis is one product with a small matrix: the numbers are those of scipy's and skimage's form, and the work is
done by BLAS.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

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


def sample_by_splines(volume: Volume, grid: Grid, *, labels: bool = False) -> Volume:
    """Sample `volume` on a grid whose axes run along its own.

    Images: order 3 along each axis, clipped to the values that were there, without a low-pass filter; the coarse axis (`coarse_axis`) takes
    the nearest slice, and clipping is by slice. Labels: each class as 0/1 at order 1, nearest along the coarse axis, the largest wins.
    Beyond the border the outermost voxels go on.

    Raises:
        GeometryError: the axes of `grid` are turned against those of `volume`.
    """
    step = np.linalg.inv(volume.affine) @ grid.affine
    turned = step[:3, :3] - np.diag(np.diag(step[:3, :3]))
    if np.abs(turned).max() * max(grid.shape) > 1e-2:
        raise GeometryError(f"splines along the axes need axes that run alike; found {volume.grid.describe()} and {grid.describe()}")
    axis = coarse_axis(volume.spacing, grid.spacing)
    planes = [volume.array[..., i] for i in range(len(volume.channels))]
    sample = _labels if labels else _image
    return replace(volume, array=np.stack([sample(plane, step, grid.shape, axis) for plane in planes], -1), affine=grid.affine)


def axis_weights(old: int, new: int, step: float, start: float, order: int) -> Float[np.ndarray, "new old"]:
    """Weights of `old` voxels in `new` ones at positions start + i·step (in old voxels), for splines of `order` 0, 1 or 3, float32."""
    if order == 0:
        places = np.clip(np.floor(start + step * np.arange(new) + 0.5 + _NUDGE), 0, old - 1).astype(int)
        return np.eye(old, dtype=np.float32)[places]
    eye = np.eye(old)
    filtered = ndimage.affine_transform(eye, np.array([step, 1.0]), cast(float, (start, 0.0)), (new, old), order=order, mode="nearest")
    return filtered.astype(np.float32)


def _image(plane: Shaped[np.ndarray, "x y z"], step: np.ndarray, shape: tuple[int, ...], axis: int | None) -> Float[np.ndarray, "x y z"]:
    plane = plane.astype(np.float32, copy=False)
    if axis is None:
        return np.clip(_along_all(plane, step, shape, (3, 3, 3)), plane.min(), plane.max())
    around = tuple(other for other in range(3) if other != axis)
    slices = _along(plane, axis, _weights(plane, step, shape, axis, 0))
    low, high = slices.min(around, keepdims=True), slices.max(around, keepdims=True)
    return np.clip(_along_all(slices, step, shape, _orders(axis, 3), around), low, high)


def _labels(plane: Shaped[np.ndarray, "x y z"], step: np.ndarray, shape: tuple[int, ...], axis: int | None) -> Shaped[np.ndarray, "x y z"]:
    orders = (1, 1, 1) if axis is None else _orders(axis, 1)
    nearest = _nearest(plane, step, shape)
    label, best = nearest.copy(), np.full(shape, -1.0, np.float32)
    for value in np.unique(plane):
        # As in `volume.to_grid`: ties go to the nearest voxel, or every structure would shrink.
        score = _along_all((plane == value).astype(np.float32), step, shape, orders) + np.float32(1e-3) * (nearest == value)
        better = score > best
        label[better], best[better] = value, score[better]
    return label


def _nearest(plane: Shaped[np.ndarray, "x y z"], step: np.ndarray, shape: tuple[int, ...]) -> Shaped[np.ndarray, "x y z"]:
    places = [np.argmax(_weights(plane, step, shape, axis, 0), 1) for axis in range(3)]
    return plane[np.ix_(*places)]


def _orders(axis: int, order: int) -> tuple[int, ...]:
    return tuple(0 if other == axis else order for other in range(3))


def _weights(plane: np.ndarray, step: np.ndarray, shape: tuple[int, ...], axis: int, order: int) -> np.ndarray:
    return axis_weights(plane.shape[axis], shape[axis], float(step[axis, axis]), float(step[axis, 3]), order)


def _along_all(
    plane: np.ndarray, step: np.ndarray, shape: tuple[int, ...], orders: tuple[int, ...], axes: Sequence[int] = (0, 1, 2)
) -> Float[np.ndarray, "x y z"]:
    # What shrinks most goes first: the later axes have less to do, and memory stays small.
    for axis in sorted(axes, key=lambda axis: shape[axis] / plane.shape[axis]):
        plane = _along(plane, axis, _weights(plane, step, shape, axis, orders[axis]))
    return plane


def _along(plane: np.ndarray, axis: int, weights: np.ndarray) -> Float[np.ndarray, "x y z"]:
    if axis == 2:
        return plane @ weights.T
    if axis == 1:
        return np.matmul(weights, plane)
    return (weights @ plane.reshape(plane.shape[0], -1)).reshape(-1, *plane.shape[1:])
