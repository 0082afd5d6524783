"""Slices into a grid: their order, true spacing and what is wrong with it, from positions alone. Called by `read` and `dicom_seg`.

InstanceNumber, SliceThickness and SliceLocation are never believed: scanners, archives and anonymisers all get them wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxseg.data.io.decoded import LPS_TO_RAS, usable_affine
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError

_SAME_PLACE = 0.01  # mm; positions are written with two decimals at least
_OFF = 0.1  # of a slice's distance or a pixel: as far as a slice may lie from its place on the grid
_MOST_NAMED = 4


class Placed(Protocol):
    """A slice that knows where it lies; `frames.Frame` is one."""

    @property
    def position(self) -> tuple[float, ...]: ...
    @property
    def orientation(self) -> tuple[float, ...]: ...
    @property
    def spacing(self) -> tuple[float, ...]: ...
    @property
    def thickness(self) -> float: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Arranged:
    """Slices' numbers in the order of their position along the normal, and the grid that they fill."""

    order: tuple[int, ...]
    grid: Grid
    notes: tuple[str, ...]


def normal_of(orientation: Sequence[float], name: str) -> np.ndarray:
    """The unit vector (LPS) across a slice; GeometryError where rows and columns are not at right angles and of length 1."""
    across, down = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    if max(abs(np.linalg.norm(across) - 1), abs(np.linalg.norm(down) - 1), abs(across @ down)) > 1e-2:
        raise GeometryError(f"{name}: ImageOrientationPatient {list(orientation)} is not two directions at right angles")
    normal = np.cross(across, down)
    return normal / np.linalg.norm(normal)


def distances(slices: Sequence[Placed], name: str) -> np.ndarray:
    """Position of each slice along the first one's normal, mm."""
    return np.array([frame.position for frame in slices]) @ normal_of(slices[0].orientation, name)


def arrange(slices: Sequence[Placed], rows: int, columns: int, name: str) -> Arranged:
    """Sort slices of one orientation and size along their normal, and check that they fill a grid.

    Raises:
        GeometryError: two slices at one place, missing or irregular slices, or gantry tilt; slices are named by their files.
    """
    along = distances(slices, name)
    order = np.argsort(along, kind="stable")
    along = along[order]
    ordered = [slices[i] for i in order]
    first, count = ordered[0], len(ordered)
    down, across = first.spacing
    notes = []
    if count == 1:
        step, thickness = normal_of(first.orientation, name), first.thickness if first.thickness > 0 else 1.0
        step = step * thickness
        notes.append(f"a single slice: its thickness of {thickness:g} mm is as the header says")
    else:
        gaps = np.diff(along)
        _check_twins(ordered, gaps, name)
        _check_gaps(ordered, gaps, along, name)
        step = (np.array(ordered[-1].position) - np.array(first.position)) / (count - 1)
        step = _upright(ordered, step, min(across, down), name)
        if first.thickness > 0 and abs(np.linalg.norm(step) / first.thickness - 1) > 0.01:
            notes.append(f"slices are {np.linalg.norm(step):.4g} mm apart, although the header says {first.thickness:.4g} mm")
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * across
    affine[:3, 1] = np.array(first.orientation[3:]) * down
    affine[:3, 2], affine[:3, 3] = step, first.position
    grid = Grid((columns, rows, count), usable_affine(LPS_TO_RAS @ affine, "slices' positions", name))
    return Arranged(tuple(int(i) for i in order), grid, tuple(notes))


def _check_twins(ordered: Sequence[Placed], gaps: np.ndarray, name: str) -> None:
    twins = np.flatnonzero(gaps < _SAME_PLACE)
    if len(twins):
        pairs = "; ".join(f"{ordered[i].name} and {ordered[i + 1].name}" for i in twins[:_MOST_NAMED])
        raise GeometryError(
            f"{name}: duplicate slices: {len(twins)} of {len(ordered)} lie where another one lies: {pairs}"
            f"{'; …' * (len(twins) > _MOST_NAMED)}. Remove the copies, or tell the volumes apart"
        )


def _check_gaps(ordered: Sequence[Placed], gaps: np.ndarray, along: np.ndarray, name: str) -> None:
    """Every slice must lie near its place between the first and the last; wide gaps are named as missing slices."""
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    if len(wide):
        found = "; ".join(f"{gaps[i]:.4g} mm between {ordered[i].name} and {ordered[i + 1].name}" for i in wide[:_MOST_NAMED])
        missing = int(sum(round(gaps[i] / usual) - 1 for i in wide))
        raise GeometryError(
            f"{name}: missing slices: about {missing} (the others are {usual:.4g} mm apart): {found}{'; …' * (len(wide) > _MOST_NAMED)}. "
            "Copy the series again from its source"
        )
    places = np.linspace(along[0], along[-1], len(along))
    off = np.abs(along - places)
    if off.max() > _OFF * usual:
        worst = int(off.argmax())
        raise GeometryError(
            f"{name}: irregular slices: {gaps.min():.4g} to {gaps.max():.4g} mm apart; {ordered[worst].name} lies {off[worst]:.3g} mm from "
            "its place on an even grid. Resample the series onto even slices first"
        )


def _upright(ordered: Sequence[Placed], step: np.ndarray, pixel: float, name: str) -> np.ndarray:
    """`step` along the normal alone, if the slices are stacked straight; GeometryError for a tilted gantry or slices that wander."""
    normal = normal_of(ordered[0].orientation, name)
    positions = np.array([frame.position for frame in ordered])
    sideways = positions - positions[0]
    sideways = sideways - np.outer(sideways @ normal, normal)
    worst = int(np.linalg.norm(sideways, axis=1).argmax())
    drift = float(np.linalg.norm(sideways[worst]))
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(step - (step @ normal) * normal), abs(step @ normal))))
    wander = float(np.linalg.norm(sideways - np.outer(np.linspace(0, 1, len(ordered)), sideways[-1]), axis=1).max())
    if wander > max(_OFF * pixel, _SAME_PLACE):
        raise GeometryError(f"{name}: the slices are not stacked along a line: {ordered[worst].name} lies {drift:.3g} mm to the side")
    if drift <= _OFF * pixel:
        return (step @ normal) * normal
    if degrees > 0.05:
        raise GeometryError(
            f"{name}: gantry tilt: each slice is shifted against the one before, by {degrees:.2f}° in all, so that the grid is sheared. jaxseg "
            "refuses sheared grids rather than resampling them unasked; resample the series onto a rectangular grid first"
        )
    return step
