"""What every reader of a format hands on: voxels as stored, with a header that has been checked; and the checks that all formats share.

Called by the readers (`nifti`, `nrrd`, `metaimage`, `dicom`), and by `read` and `archive`, which turn the result into volumes and rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXES = ("LR", "PA", "IS")  # codes of the ends of the world's axes
_MAX_SHEAR = 1e-3  # cosine between two axes; float32 affines stay below 1e-5


@dataclass(frozen=True)
class Rules:
    """What a reader may accept.

    Attributes:
        policy: which affine to believe of a NIfTI file that states two; one that states one alone has that.
        assume_orientation: axis codes such as "RAS" for a file that states no orientation at all.
        max_voxels, max_bytes: caps checked before anything is allocated.
        burned_in: whether a DICOM object may have text burned into its pixels, which may name the patient.

    Raises GeometryError for axis codes that are none.
    """

    policy: Literal["sform", "qform"] | None = None
    assume_orientation: str | None = None
    max_voxels: int = 2**31
    max_bytes: int = 2**33
    burned_in: bool = False

    def __post_init__(self) -> None:
        codes = self.assume_orientation
        if codes is not None and (len(codes) != 3 or any(sum(code in pair for code in codes.upper()) != 1 for pair in AXES)):
            raise GeometryError(f"assume_orientation {codes!r}: expected three letters such as 'RAS', one out of each of L/R, P/A, I/S")


PLAIN = Rules()  # nothing is assumed, and what contradicts itself is refused


@dataclass(frozen=True)
class Header:
    """What a checked header says: shape on disk, number type (numpy, with byte order), first byte of the voxels, scaling, grid.

    `unit` is what a value means ("HU", "SUVbw (g/ml)", "Bq/ml") where the format says it, else empty.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    grid: Grid
    space_code: int
    notes: tuple[str, ...]
    unit: str = ""

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Decoded:
    """Voxels as stored (x, y, z) or (x, y, z, c), unscaled, with the checked header."""

    stored: np.ndarray
    header: Header

    def values(self) -> np.ndarray:
        """Scaled intensities, float32; the stored voxels themselves where they are that already and may be written to."""
        plain = self.header.slope == 1 and self.header.inter == 0
        if plain:
            return np.require(self.stored.astype(np.float32, copy=False), requirements="W")
        wide = np.float64 if self.stored.dtype.itemsize > 2 else np.float32
        values = np.empty_like(self.stored, np.float32)
        for old, new in slices_of(self.stored, values):
            new[...] = old.astype(wide) * wide(self.header.slope) + wide(self.header.inter)
        return values


def slices_of(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Slices of arrays of one shape, as views, along the axis that lies farthest apart in the first one's memory.

    What is done to a whole scan takes as much memory as the scan; what is done slice by slice takes none.
    """
    axis = int(np.argmax(np.abs(arrays[0].strides)))
    yield from zip(*(np.moveaxis(array, axis, 0) for array in arrays), strict=True)


def refuse_single_slice(shape: Sequence[int], name: str | Path) -> None:
    """InputError where one of the first three axes holds one voxel. Such files are read, but nothing is learnt from them or found in them."""
    if min(shape[:3]) < 2:
        raise InputError(f"{name}: a single slice ({'×'.join(map(str, shape[:3]))} voxels); expected a 3-D scan")


def check_caps(shape: tuple[int, ...], dtype: np.dtype, name: str, rules: Rules) -> None:
    """InputError if a header declares more than may be allocated."""
    voxels = math.prod(shape)
    if voxels > rules.max_voxels or voxels * dtype.itemsize > rules.max_bytes:
        raise InputError(
            f"{name}: the header declares {'×'.join(map(str, shape))} = {voxels:,} voxels ({voxels * dtype.itemsize:,} bytes), more than "
            f"the limit of {rules.max_voxels:,} voxels or {rules.max_bytes:,} bytes; if that is true, raise max_voxels and max_bytes"
        )


def usable_affine(affine: np.ndarray, form: str, name: str) -> np.ndarray:
    """The affine, if it is finite, invertible and without shear; GeometryError naming `form` (as "sform") otherwise."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or spacing.min() == 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise GeometryError(f"{name}: the {form} is not an invertible affine: {affine[:3].tolist()}; the scan's position is lost")
    cosine = np.abs(np.triu((affine[:3, :3] / spacing).T @ (affine[:3, :3] / spacing), 1)).max()
    if cosine > _MAX_SHEAR:
        degrees = np.degrees(np.arcsin(min(cosine, 1.0)))
        raise GeometryError(
            f"{name}: the {form} is sheared: two axes are {degrees:.2f}° away from a right angle. jaxseg refuses sheared grids "
            "rather than resampling them unasked; resample the scan onto a rectangular grid first"
        )
    return affine
