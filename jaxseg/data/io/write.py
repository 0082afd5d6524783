"""`save_volume`: a volume back to a file that opens in any viewer in the right place. Called by `infer` and users."""

from pathlib import Path

import numpy as np

from jaxseg.data.io import nifti
from jaxseg.data.volume import Source, Volume, reorient_like
from jaxseg.errors import GeometryError, InputError
from jaxseg.files import write_bytes


def save_volume(volume: Volume, path: str | Path, *, like: Source | None = None, dtype: str | np.dtype | None = None) -> Path:
    """Write a volume as NIfTI (.nii or .nii.gz), whole or not at all. Several channels become a 4-D file.

    Args:
        like: put the array back into this source's axis order and write its affine unchanged; the volume must cover the same grid.
        dtype: number type on disk. By default integers (labels) keep theirs, and intensities take the type and scaling of `like`
            where those hold every value, else float32.

    Raises:
        GeometryError: the volume lies on another grid than `like`; InputError: values do not fit `dtype`, or another suffix.
    """
    path = Path(path)
    if not path.name.lower().endswith(nifti.SUFFIXES):
        raise InputError(f"{path}: expected a name that ends in .nii.gz or .nii")
    space_code, slope, inter = 1, 1.0, 0.0
    grid = volume.grid
    if like is not None:
        volume = reorient_like(volume, like.grid.affine)
        if not volume.grid.same_as(like.grid, tol=0.05):
            raise GeometryError(
                f"{path}: the volume lies on {volume.grid.describe()}, but its source {like.paths[0].name if like.paths else ''} on "
                f"{like.grid.describe()}; resample it with to_grid first"
            )
        grid, space_code = like.grid, like.space_code
    array = volume.array[..., 0] if volume.array.shape[3] == 1 else volume.array
    if dtype is not None:
        stored = _cast(array, np.dtype(dtype), path)
    elif array.dtype.kind in "biu":
        stored = _small_integers(array, path)
    else:
        stored, slope, inter = _as_source(array, like)
    data = nifti.encode(stored, grid, slope=slope, inter=inter, space_code=space_code, zipped=path.name.lower().endswith(".gz"))
    return write_bytes(path, data)


def _cast(array: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    if dtype.kind not in "iuf" or dtype == np.float16:
        raise InputError(f"{path}: NIfTI has no numbers of type {dtype.name}; choose float32, uint8 or another type of integers")
    if dtype.kind in "iu":
        rounded = np.round(array) if array.dtype.kind == "f" else array
        info = np.iinfo(dtype)
        if not np.isfinite(rounded).all() or rounded.min() < info.min or rounded.max() > info.max:
            raise InputError(f"{path}: values from {array.min():g} to {array.max():g} do not fit {dtype.name}")
        array = rounded
    return array.astype(dtype)


def _small_integers(array: np.ndarray, path: Path) -> np.ndarray:
    """Integers in a type that every viewer reads (not bool, not 64 bits)."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return _cast(array, np.dtype(np.int32), path) if array.dtype.itemsize == 8 else array


def _as_source(array: np.ndarray, like: Source | None) -> tuple[np.ndarray, float, float]:
    """(stored, slope, inter) in the source's type and scaling if that loses nothing, else in float32."""
    single = np.asarray(array, np.float32), 1.0, 0.0
    if like is None or np.dtype(like.dtype).kind not in "iu":
        return single
    info = np.iinfo(like.dtype)
    exact = (array.astype(np.float64) - like.inter) / like.slope
    whole = np.round(exact)
    if not np.isfinite(whole).all() or whole.min() < info.min or whole.max() > info.max or np.abs(whole - exact).max() > 0.01:
        return single
    return whole.astype(like.dtype), like.slope, like.inter
