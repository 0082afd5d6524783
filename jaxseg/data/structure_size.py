"""How large labelled structures are, in millimetres: what a working grid must show of them. Called by `recipe_guess`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.data.cases import Case
from jaxseg.data.io import load_label
from jaxseg.errors import InputError

_ENOUGH = 2**21  # voxels of a box to measure by; every n-th of a larger one


@dataclass(frozen=True)
class StructureSize:
    """Of the largest connected part of a structure, in mm.

    Attributes:
        extent: the longest side of its box.
        thickness: diameter of the largest ball that it holds.
    """

    extent: float
    thickness: float


def structure_size(cases: Sequence[Case], labels: Mapping[str, int | list[int]]) -> StructureSize | None:
    """The typical extent of the structures and the thickness of the thinnest of them: for each label the median over cases, of these the median and
    the least. None where no label can be read or all are empty.

    Args:
        cases: those without a label are passed over, as are labels that cannot be read (preparing them says why).
        labels: name → value, or values of a region.
    """
    from scipy import ndimage

    sizes: dict[str, list[StructureSize]] = {name: [] for name in labels}
    for case in cases:
        if case.label is None:
            continue
        try:
            volume = load_label(case.label, rules=case.rules)
        except InputError:
            continue
        array = volume.array[..., 0]
        if array.dtype.itemsize > 2:
            continue  # values in the millions: what they mean is for the preparing to ask
        boxes = ndimage.find_objects(array)
        for name, stated in labels.items():
            values = [value for value in np.atleast_1d(stated).tolist() if 0 < value <= len(boxes) and boxes[value - 1]]
            if values:
                ends = np.array([[(side.start, side.stop) for side in boxes[value - 1]] for value in values])
                box = tuple(slice(start, stop) for start, stop in zip(ends[..., 0].min(0), ends[..., 1].max(0)))
                sizes[name].append(_largest_part(np.isin(array[box], values), np.asarray(volume.grid.spacing)))
    found = [each for each in sizes.values() if each]
    if not found:
        return None
    extents = [np.median([size.extent for size in each]) for each in found]
    thicknesses = [np.median([size.thickness for size in each]) for each in found]
    return StructureSize(float(np.median(extents)), float(np.min(thicknesses)))


def _largest_part(mask: Bool[np.ndarray, "x y z"], spacing: Float[np.ndarray, " 3"]) -> StructureSize:
    from scipy import ndimage

    thin = int(np.ceil((mask.size / _ENOUGH) ** (1 / 3)))  # a body's label at full resolution would take gigabytes here
    if mask[::thin, ::thin, ::thin].any():  # not so of specks that lie far apart
        mask, spacing = mask[::thin, ::thin, ::thin], spacing * thin
    parts = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=parts)
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    part = parts[ndimage.find_objects(parts)[largest - 1]] == largest
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing))
    return StructureSize(float((np.asarray(part.shape) * spacing).max()), 2 * float(depth.max()))
