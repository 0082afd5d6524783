"""A scan with its geometry (`Volume`, `Grid`), and moving it between grids by world coordinates.

Called by `io` (which makes volumes), `preprocess` (orientation, spacing, stacking) and `infer` (results back onto the scan's grid).
nibabel and scipy are imported where they are used: the processes that index an archive import this module and need neither.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Shaped

from jaxseg.data.separable import Finish, axis_weights, nearest_voxels, resample, resampled_in_turn
from jaxseg.errors import GeometryError

_CORNERS = np.stack(np.meshgrid((0, 1), (0, 1), (0, 1), indexing="ij"), -1).reshape(8, 3)
MIN_COMMON_VIEW = 0.25  # of the smaller field of view; a PET of the thorax on a whole-body CT has all of its own in common


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and the affine from voxel indices to RAS+ millimetres."""

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y, z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (1000 mm³)."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> str:
        """The world direction that each voxel axis runs towards, as "RAS" or "PSR"."""
        from nibabel.orientations import ornt2axcodes

        return "".join(str(code) for code in ornt2axcodes(_orientation(self.affine)))

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """World positions (mm) of the centres of the eight corner voxels."""
        index = _CORNERS * (np.asarray(self.shape) - 1)
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def offset_from(self, other: "Grid") -> float:
        """Largest distance between equal corners, in voxels (of the finest axis of the two); infinite where the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        distance = np.linalg.norm(self.corners() - other.corners(), axis=1).max()
        return float(distance / min(*self.spacing, *other.spacing))

    def same_as(self, other: "Grid", tol: float = 0.1) -> bool:
        """Whether shapes are equal and no corner lies further than `tol` voxels from its partner."""
        return self.offset_from(other) <= tol

    def describe(self) -> str:
        """Shape, spacing, orientation and origin in one phrase, for messages."""
        spacing = "×".join(f"{value:.4g}" for value in self.spacing)
        origin = ", ".join(f"{value:.2f}" for value in self.affine[:3, 3])
        return f"{'×'.join(map(str, self.shape))} voxels of {spacing} mm, {self.orientation}, origin ({origin}) mm"


@dataclass(frozen=True)
class Source:
    """What a volume was on disk, so that results can go back: files, grid before reorientation, number type and scaling.

    `unit` is what a value means ("HU", "SUVbw (g/ml)", "Bq/ml") where the file says so, else empty.
    """

    paths: tuple[Path, ...]
    grid: Grid
    dtype: str
    slope: float = 1.0
    inter: float = 0.0
    space_code: int = 1
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels `(x, y, z, c)`, the affine to RAS+ mm, one name a channel, and where it came from. Nothing else carries geometry."""

    array: Shaped[np.ndarray, "x y z c"]
    affine: Float[np.ndarray, "4 4"]
    channels: tuple[str, ...]
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[3] != len(self.channels):
            raise GeometryError(
                f"a volume needs an array (x, y, z, c) with one name a channel; "
                f"found shape {self.array.shape} with the names {list(self.channels)}"
            )
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all() or abs(np.linalg.det(self.affine[:3, :3])) < 1e-12:
            raise GeometryError(f"a volume needs an invertible 4×4 affine; found {self.affine.tolist()}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.array.shape[:3]
        return x, y, z

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(self.shape, self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm along x, y, z."""
        return self.grid.spacing


def reorient_like(volume: Volume, affine: Float[np.ndarray, "4 4"]) -> Volume:
    """Permute and flip the axes of `volume` so that they run as those of `affine`; voxels keep their values and world positions."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform

    change = _same_axes(volume.affine, affine)
    if change is None:
        change = ornt_transform(_orientation(volume.affine), _orientation(affine))
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return volume
    array = apply_orientation(volume.array, change)
    return replace(volume, array=array, affine=volume.affine @ inv_ornt_aff(change, volume.shape))


def _orientation(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 2"]:
    """What `nibabel.orientations.io_orientation` says, but for axes at 45 degrees, which it assigns by the last digit of their cosines.

    Axes turned by less than 1e-5 are the same here: the earlier voxel axis goes to the earlier world axis.
    """
    u, _, v = np.linalg.svd(_cosines(affine))
    turned = np.round(u @ v, 5)
    found = np.zeros((3, 2))
    for axis in range(3):
        world = int(np.argmax(np.abs(turned[:, axis])))
        found[axis] = world, np.sign(turned[world, axis])
        turned[world] = 0
    return found


def _same_axes(affine: Float[np.ndarray, "4 4"], other: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 2"] | None:
    """The permutation and flips that make one affine's axes those of the other; None where they are not the same up to these."""
    likeness = _cosines(affine).T @ _cosines(other)
    turn = np.round(likeness)
    if np.abs(likeness - turn).max() > 1e-3 or np.abs(turn @ turn.T - np.eye(3)).any():
        return None
    places = np.argmax(np.abs(turn), 1)
    return np.stack([places, turn[np.arange(3), places]], 1)


def _cosines(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "3 3"]:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def to_ras(volume: Volume) -> Volume:
    """The same voxels with axes running (closest to) right, anterior, superior. Exact: nothing is interpolated."""
    return reorient_like(volume, np.eye(4))


def to_grid(
    volume: Volume, grid: Grid, *, order: int = 1, labels: bool = False, fill: float | None = None, antialias: bool = True
) -> Volume:
    """Sample `volume` at the world positions of `grid`: any permutation, flip, rotation, spacing and origin.

    Args:
        order: spline order for images (0 nearest, 1 linear, 3 cubic).
        labels: values are classes: each class is interpolated linearly as 0/1 and the largest wins (ties go to the nearest voxel).
        fill: value outside the field of view, which ends half a voxel beyond the outermost voxel centres. Default: the channel's
            minimum, 0 for labels.
        antialias: smooth images along axes that get coarser, by a Gaussian that takes a voxel's width to the new one
            (variance (f² - 1) / (8 ln 2) voxels² for a factor f; Cardoso et al., MICCAI 2015).
    Returns: a volume on `grid`, dtype float32 for images, unchanged for labels. `source` is kept.
    """
    if volume.grid.same_as(grid, tol=1e-3):
        return replace(volume, array=volume.array if labels else volume.array.astype(np.float32, copy=False), affine=grid.affine)
    # Channel by channel, each as one block of memory.
    array = np.empty((len(volume.channels), *grid.shape), volume.array.dtype if labels else np.float32)
    for channel, out in enumerate(array):
        sample_channel(volume, channel, grid, out, order=order, labels=labels, fill=fill, antialias=antialias)
    return replace(volume, array=np.moveaxis(array, 0, 3), affine=grid.affine)


def sample_channel(
    volume: Volume,
    channel: int,
    grid: Grid,
    out: np.ndarray,
    *,
    order: int = 1,
    labels: bool = False,
    fill: float | None = None,
    antialias: bool = True,
    finish: Finish | None = None,
) -> None:
    """One channel by `to_grid` (see there) into `out`, which has the grid's shape; `finish` is applied to each part of an image's voxels."""
    volume = reorient_like(volume, grid.affine)
    plane, step = volume.array[..., channel], np.linalg.inv(volume.affine) @ grid.affine
    if labels:
        _sample_labels(plane, step, out)
    else:
        _sample(plane, step, grid.shape, order, antialias, out, finish)
    outside = _outside(step, grid.shape, volume.shape)
    if outside is not None:
        out[outside] = fill if fill is not None else (0 if labels else plane.min())


def spacing_grid(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid of exactly `spacing` (mm) over the same field of view: round(shape·old/new) voxels (nnU-Net's rule), about the same centre.

    The two fields of view differ by less than half a new voxel along each axis, because a number of voxels is whole.
    """
    ratio = np.asarray(spacing, float) / np.asarray(grid.spacing)
    if ratio.shape != (3,) or not np.isfinite(ratio).all() or (ratio <= 0).any():
        raise GeometryError(f"spacing must be three positive numbers in mm; found {tuple(spacing)}")
    shape = np.maximum(1, np.floor(np.asarray(grid.shape) / ratio + (0.5 + 1e-6))).astype(int)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * ratio
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    x, y, z = (int(n) for n in shape)
    return Grid((x, y, z), affine)


def resample_to_spacing(
    volume: Volume, spacing: Sequence[float], *, order: int = 1, labels: bool = False, antialias: bool = True
) -> Volume:
    """Resample to `spacing` (mm along x, y, z), keeping the field of view and every world position (see `spacing_grid`, `to_grid`)."""
    grid = spacing_grid(volume.grid, spacing)
    if np.allclose(volume.spacing, spacing, rtol=1e-4, atol=0) and grid.shape == volume.shape:
        grid = volume.grid
    return to_grid(volume, grid, order=order, labels=labels, antialias=antialias)


def stack_channels(volumes: Sequence[Volume], on: int = 0) -> Volume:
    """One float32 volume with the channels of all, on the grid of `volumes[on]`; the others are resampled onto it by world coordinates.

    One volume alone is given back as it is.
    """
    reference = volumes[on]
    if len(volumes) == 1:
        return reference
    names = tuple(name for volume in volumes for name in volume.channels)
    # Each channel stays one block of memory, x fastest as in most files: all that follows goes channel by channel.
    array = np.empty((len(names), *reference.shape[::-1]), np.float32).T
    start = 0
    for volume in volumes:
        aligned = volume if volume is reference else to_grid(volume, reference.grid)
        array[..., start : start + len(volume.channels)] = aligned.array
        start += len(volume.channels)
    return replace(reference, array=array, channels=names)


def refuse_apart(volumes: Sequence[Volume], case: str) -> None:
    """GeometryError if the fields of view of a case's channels hardly meet, so that they cannot be of one position."""
    for volume in volumes[1:]:
        share = common_view(volumes[0].grid, volume.grid)
        if share < MIN_COMMON_VIEW:
            raise GeometryError(
                f"case {case}: channels {', '.join(volumes[0].channels)} and {', '.join(volume.channels)} share {share:.0%} of the smaller one's "
                f"field of view: {volumes[0].grid.describe()}; {volume.grid.describe()}. They are not of one position: co-register them, or leave "
                "one out"
            )


def common_view(first: Grid, second: Grid) -> float:
    """The share of the smaller field of view that two grids have in common, 0 to 1 (boxes along the first one's axes)."""
    places = second.corners() @ np.linalg.inv(first.affine[:3, :3]).T - np.linalg.inv(first.affine[:3, :3]) @ first.affine[:3, 3]
    # A voxel reaches half its width beyond its centre, in the one grid as in the other.
    reach = np.abs(np.linalg.inv(first.affine[:3, :3]) @ second.affine[:3, :3]).sum(1) / 2
    low, high = places.min(0) - reach, places.max(0) + reach
    size = np.asarray(first.shape, float)
    common = np.clip(np.minimum(high, size - 0.5) - np.maximum(low, -0.5), 0, None)
    return float(np.prod(common / np.minimum(high - low, size)))


def _outside(step: np.ndarray, shape: tuple[int, ...], source_shape: tuple[int, ...]) -> np.ndarray | None:
    """Which voxels of the new grid lie more than half a source voxel beyond the source's outermost voxel centres; None for none."""
    index = np.ogrid[tuple(slice(n) for n in shape)]
    found: list[np.ndarray] = []
    for row, size in zip(step[:3], source_shape, strict=True):
        position: Any = row[3] + sum(row[j] * index[j] for j in range(3) if abs(row[j]) * shape[j] > 1e-9)
        found.append((position < -0.5 - 1e-4) | (position > size - 0.5 + 1e-4))
    # Of axes that run alike each is a line, and only together they are as large as the grid.
    return np.broadcast_to(functools.reduce(np.logical_or, found), shape) if any(part.any() for part in found) else None


def _sample(
    plane: np.ndarray,
    step: np.ndarray,
    shape: tuple[int, ...],
    order: int,
    antialias: bool = False,
    out: np.ndarray | None = None,
    finish: Finish | None = None,
) -> np.ndarray:
    """`plane` at the positions that `step` says, low-passed for its strides where asked: float32 (of order 0 its own type), into `out`."""
    if not _along_axes(step, shape):
        from scipy import ndimage

        plane = _smooth(plane, step) if antialias else plane.astype(np.float32, copy=False) if order else plane
        done = np.empty(shape, plane.dtype) if out is None or finish else out
        ndimage.affine_transform(plane, step[:3, :3], cast(float, step[:3, 3]), shape, output=done, order=order, mode="nearest")
        if out is not None and finish:
            out[...] = finish(done)
        return done if out is None else out
    sigmas = _sigmas(step) if antialias else np.zeros(3)
    lines = _lines(plane.shape, step, shape)
    if order == 0 and not sigmas.any():
        found = plane[np.ix_(*(nearest_voxels(*line) for line in lines))]
        out = found if out is None else out
        out[...] = found
        return out
    weights = [axis_weights(*line, order, sigma=sigma) for line, sigma in zip(lines, sigmas.tolist(), strict=True)]
    # About the minimum: what is constant there (air, beyond the field of view) stays exactly so.
    low = np.float32(plane.min())

    def lifted(part: np.ndarray) -> np.ndarray:
        part += low
        return part if finish is None else finish(part)

    return resample(plane, weights, out, change=lambda part, box: part.astype(np.float32) - low, finish=lifted)


def _along_axes(step: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the new grid's axes run along the old one's."""
    return bool(np.abs(step[:3, :3] - np.diag(np.diag(step[:3, :3]))).max() * max(shape) < 1e-4)


def _lines(old: tuple[int, ...], step: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, int, float, float]]:
    """Of each axis: old voxels, new voxels, step and start."""
    return list(zip(old, shape, np.diag(step[:3, :3]).tolist(), step[:3, 3].tolist(), strict=True))


def _smooth(plane: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Low-pass `plane` for sampling with the strides of `step`; float32."""
    from scipy import ndimage

    sigmas, plane = _sigmas(step), plane.astype(np.float32, copy=False)
    return ndimage.gaussian_filter(plane, sigmas, mode="nearest") if sigmas.any() else plane


def _sigmas(step: np.ndarray) -> Float[np.ndarray, " 3"]:
    """Of the Gaussian before sampling with the strides of `step`, in voxels; 0 where no axis needs one."""
    factor = np.maximum(np.abs(step[:3, :3]).max(1), 1.0)
    sigma = np.sqrt((factor**2 - 1) / (8 * np.log(2)))
    return sigma if sigma.max() > 0.25 else np.zeros(3)


def _sample_labels(plane: np.ndarray, step: np.ndarray, label: np.ndarray) -> None:
    label[...] = 0
    box = _reach(plane != 0, step, label.shape)
    if box is None:
        return
    inner = step.copy()
    inner[:3, 3] += step[:3, :3] @ [part.start for part in box]
    size = tuple(part.stop - part.start for part in box)
    label[box] = nearest = _sample(plane, inner, size, 0)
    values = np.unique(plane)
    for part, near, scores in _scored(plane, values, inner, label[box], nearest):
        best = np.full(near.shape, -1.0, np.float32)
        for value, score in zip(values, scores, strict=True):
            # The bonus settles ties: always giving them to the lowest class would shrink every structure when halving a grid.
            score = score + np.float32(1e-3) * (near == value)
            better = score > best
            part[better], best[better] = value, score[better]


def _scored(
    plane: np.ndarray, values: np.ndarray, step: np.ndarray, label: np.ndarray, nearest: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, Iterator[np.ndarray]]]:
    """Part after part of `label` with that of `nearest`, and each value's share of the voxels there: three float32 of the whole would be most of all
    the memory that a case needs."""
    if not _along_axes(step, label.shape):
        yield label, nearest, (_sample(plane == value, step, label.shape, 1) for value in values)
        return
    weights = [axis_weights(*line, 1) for line in _lines(plane.shape, step, label.shape)]
    changes = [lambda part, box, value=value: (part == value).astype(np.float32) for value in values]
    if len(values) > 1:  # one alone is its own nearest voxel
        for box, scores in resampled_in_turn(plane, weights, changes):
            yield label[box], nearest[box], scores


def _reach(mask: np.ndarray, step: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The box of the new grid that the true voxels of `mask` can touch, None where there is none."""
    if not mask.any():
        return None
    where = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    # Beyond the border the outermost voxels go on, so a mask that touches it reaches out of the field of view.
    ends = [(w[0] - 1 if w[0] else -n, w[-1] + 1 if w[-1] < n - 1 else 2 * n) for w, n in zip(where, mask.shape, strict=True)]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(8, 3)
    back = (corners - step[:3, 3]) @ np.linalg.inv(step[:3, :3]).T
    low = np.clip(np.floor(back.min(0)), 0, np.asarray(shape) - 1).astype(int)
    high = np.clip(np.ceil(back.max(0)) + 1, low + 1, shape).astype(int)
    return tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
