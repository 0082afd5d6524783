"""DICOM radiotherapy structure sets (RTSTRUCT): contours drawn as masks on a scan's grid. Called by users.

DICOM PS3.3 C.8.8.6. A voxel is inside where its centre is; contours of one structure on one slice combine by exclusive or, so that a
contour within another one is a hole (and a keyhole contour works too).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.dicom.elements import items, numbers, read_dataset, text
from jaxseg.data.io.dicom.frames import RTSTRUCT_CLASS
from jaxseg.data.io.stream import read_bytes
from jaxseg.data.volume import Grid, Source, Volume
from jaxseg.errors import GeometryError, InputError

_OFF_SLICE = 0.2  # of a slice's distance: further away a contour lies between slices
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure: its name and its closed contours, `(n, 3)` RAS+ mm each; `left_out` counts those of other kinds."""

    name: str
    contours: tuple[np.ndarray, ...]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A structure on a grid: mask `(x, y, z)` bool, and how many of its contours were not drawn, by reason."""

    mask: np.ndarray
    left_out: dict[str, int]


def read_contours(path: str | Path) -> tuple[Structure, ...]:
    """All structures of an RTSTRUCT file, in its order.

    Raises:
        InputError: not an RTSTRUCT, or damaged.
    """
    path, rules = Path(path), Rules()
    dataset = read_dataset(read_bytes(path, rules), path, rules)
    if text(dataset, "SOPClassUID") != RTSTRUCT_CLASS:
        raise InputError(f"{path}: not a DICOM structure set (RTSTRUCT); load scans with load_volume")
    names = {text(item, "ROINumber"): text(item, "ROIName") for item in items(dataset, "StructureSetROISequence", path)}
    drawn = {text(item, "ReferencedROINumber"): item for item in items(dataset, "ROIContourSequence", path)}
    return tuple(_structure(name or f"structure {key}", drawn.get(key), path) for key, name in names.items())


def draw(structure: Structure, grid: Grid) -> Drawn:
    """A structure's contours as a mask on the grid of the scan that they were drawn on (in any axis order).

    Raises:
        GeometryError: it has contours, and none lies in a slice of this grid.
    """
    left_out: Counter[str] = Counter(structure.left_out)
    inverse = np.linalg.inv(grid.affine)
    points = [contour @ inverse[:3, :3].T + inverse[:3, 3] for contour in structure.contours]
    axis = int(np.argmin(np.max([np.ptp(each, axis=0) for each in points], axis=0))) if points else 2
    slices: dict[int, list[np.ndarray]] = {}
    for each in points:
        place = int(np.round(np.median(each[:, axis])))
        if np.abs(each[:, axis] - place).max() > _OFF_SLICE:
            left_out["between slices"] += 1
        elif not 0 <= place < grid.shape[axis]:
            left_out["outside the grid"] += 1
        else:
            slices.setdefault(place, []).append(np.delete(each, axis, axis=1))
    if points and not slices:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise GeometryError(
            f"{structure.name}: none of its {len(points)} contours lies in a slice of the grid ({grid.describe()}): {reasons}. "
            "Give the grid of the scan that it was drawn on"
        )
    mask = np.zeros(grid.shape, bool)
    planes = np.moveaxis(mask, axis, 0)
    for place, polygons in slices.items():
        planes[place] = fill(polygons, planes[place].shape)
    return Drawn(mask, dict(left_out))


def load_contours(path: str | Path, like: Volume | Grid, *, names: list[str] | None = None) -> Volume:
    """An RTSTRUCT as a volume on the grid of `like`: `(x, y, z, structures)` uint8 0/1, a channel a structure.

    Args:
        names: which structures, by name; all that have contours by default.
    """
    grid = like.grid if isinstance(like, Volume) else like
    found = {structure.name: structure for structure in read_contours(path) if structure.contours}
    if missing := [name for name in names or [] if name not in found]:
        raise InputError(f"{path}: no contours called {', '.join(missing)}; there are {', '.join(found) or 'none'}")
    if not found:
        raise InputError(f"{path}: none of its structures has a closed contour")
    chosen = tuple(names or found)
    array = np.stack([draw(found[name], grid).mask for name in chosen], -1).astype(np.uint8)
    return Volume(array, grid.affine, chosen, Source((Path(path),), grid, "uint8"))


def fill(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which pixel centres (whole numbers) of `shape` lie within an odd number of polygons, `(n, 2)` each, in pixels.

    Along each row a crossing turns inside to outside for all pixels behind it: crossings are counted where they fall, and summed up.
    """
    turns = np.zeros((shape[0], shape[1] + 1), np.int64)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
        first = np.clip(np.ceil(low), 0, shape[0]).astype(int)
        count = np.maximum(np.clip(np.ceil(high), 0, shape[0]).astype(int) - first, 0)
        edge = np.repeat(np.arange(len(polygon)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        slope = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
        crossing = start[edge, 1] + slope * (end[edge, 1] - start[edge, 1])
        np.add.at(turns, (row, np.clip(np.ceil(crossing), 0, shape[1]).astype(int)), 1)
    return np.cumsum(turns, axis=1)[:, :-1] % 2 == 1


def _structure(name: str, item: object, path: Path) -> Structure:
    contours, left_out = [], Counter[str]()
    for each in items(item, "ContourSequence", path) if item is not None else []:
        kind = text(each, "ContourGeometricType").upper()
        values = numbers(each, "ContourData", path)
        if len(values) % 3:
            raise InputError(f"{path}: damaged: a contour of {name} has {len(values)} coordinates, expected three a point")
        points = np.array(values).reshape(-1, 3) * [-1, -1, 1]
        if kind not in _CLOSED:
            left_out[f"of kind {kind or 'not said'}"] += 1
        elif len(points) < 3:
            left_out["of fewer than three points"] += 1
        else:
            contours.append(points)
    return Structure(name, tuple(contours), dict(left_out))
