"""Voxels that anonymisation took away: from mask files beside the scan, and found where a face was replaced by a constant. Called by `preprocess`.

A network must not learn to predict them, so the store's mask marks them with 2 and the loader counts them as air. Images stay as they are.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int32
from scipy import ndimage

from jaxseg.data.cases import Case
from jaxseg.data.intensity import body_mask, own_foreground
from jaxseg.data.io import load_label
from jaxseg.data.volume import Grid, Volume, to_grid, to_ras
from jaxseg.errors import GeometryError

ANONYMISED = 2  # in a store's mask, beside 0 for air and 1 for the body
_SHARE = 0.1  # of a voxel: resampling mixes anonymised voxels into their neighbours
_SMALLEST_ML = 1.0


def anonymised_voxels(case: Case, grid: Grid, scans: Sequence[Volume], rules: Sequence[str]) -> Bool[np.ndarray, "x y z"] | None:
    """Where on `grid` the case's masks are not 0 or a face was blanked in one of `scans`; None where that is nowhere.

    Args:
        scans: loaded volumes of one channel each in which blanked voxels are looked for; none where the case has masks of its own.
        rules: the intensity rule of each.

    Raises:
        InputError: a mask cannot be read.
        GeometryError: a mask lies beside the scan.
    """
    marks = [_supplied(case, index, grid) for index in range(len(case.anonymised))]
    if not marks:
        for scan, rule in zip(map(to_ras, scans), rules, strict=True):
            marks += [_on_grid(blanked(plane, rule, scan.spacing), scan, grid) for plane in np.moveaxis(scan.array, 3, 0)]
    found = np.logical_or.reduce(marks) if marks else np.zeros(1, bool)
    return found if found.any() else None


def blanked(plane: Float[np.ndarray, "x y z"], rule: str, spacing: Sequence[float]) -> Bool[np.ndarray, "x y z"]:
    """Where defacing put a constant (axes in RAS order, spacing in mm).

    Found are connected parts of at least 1 ml that hold exactly one value, touch the surface of the body (`intensity.body_mask`), have their
    centre in front of the body's and do not reach the scan's rear border, as a constant background does: a face blanked with that background's
    value is air already, without this. Not found: faces that were blurred, warped or drawn anew, ears, and constants that were stored with loss.
    Wrongly found may be what is constant for another reason, such as saturated values, or images of few grey levels: hence only on request.
    """
    body = body_mask([own_foreground(plane, rule)])
    flat = np.asarray(ndimage.maximum_filter(plane, 3) == ndimage.minimum_filter(plane, 3))
    # All 27 voxels around a flat one have its value: a connected part holds one value, and so does what it grows by.
    parts = _large(np.asarray(ndimage.grey_dilation(_connected(flat), 3)), max(27, _SMALLEST_ML * 1000 / float(np.prod(spacing))))
    cube = np.ones((3, 3, 3), bool)
    surface = np.asarray(ndimage.binary_dilation(body, cube), bool) & ~np.asarray(ndimage.binary_erosion(body, cube), bool)
    touching = np.bincount(parts[surface], minlength=parts.max() + 1) > 0
    of_row = np.stack([np.bincount(parts[:, row].ravel(), minlength=len(touching)) for row in range(plane.shape[1])])
    middle = np.arange(len(of_row)) @ of_row / np.maximum(of_row.sum(0), 1)
    kept = touching & (of_row[0] == 0) & (middle > np.average(np.arange(plane.shape[1]), weights=body.sum((0, 2))))
    kept[0] = False
    return kept[parts]


def _large(parts: Int32[np.ndarray, "x y z"], smallest: float) -> Int32[np.ndarray, "x y z"]:
    """The parts of at least so many voxels, numbered from 1 without gaps."""
    large = np.bincount(parts.ravel()) >= smallest
    large[0] = False
    return (np.cumsum(large) * large).astype(np.int32)[parts]


def _connected(where: Bool[np.ndarray, "x y z"]) -> Int32[np.ndarray, "x y z"]:
    parts = np.empty(where.shape, np.int32)
    ndimage.label(where, output=parts)
    return parts


def _supplied(case: Case, index: int, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    mask = load_label(case.anonymised[index], rules=case.rules)
    volume = to_ras(mask)
    field = Volume(np.ones(volume.array.shape, np.float32), volume.affine, ("field",))
    if not to_grid(field, grid, fill=0.0).array.any():
        found, expected = mask.grid.describe(), grid.describe()
        raise GeometryError(f"case {case.id}: its mask of anonymised voxels lies on {found}, beside its scan on {expected}")
    return _on_grid(volume.array[..., 0] > 0, volume, grid)


def _on_grid(where: Bool[np.ndarray, "x y z"], scan: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    share = to_grid(Volume(where[..., None].astype(np.float32), scan.affine, ("anonymised",)), grid, fill=0.0)
    return share.array[..., 0] >= _SHARE
