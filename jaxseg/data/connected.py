"""Connected parts of a mask and its holes, a few slices at a time: a number for every voxel of a scan would take as much memory as the scan.

Called by `intensity`.
"""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_SLAB = 1 << 18  # voxels numbered together: four bytes each, which the processor's cache holds


def keep_large_parts(mask: Bool[np.ndarray, "x y z"], share: float = 0.1) -> None:
    """Take away, in place, the connected parts of less than `share` of the largest one's size (both legs stay, not the table).

    Voxels are connected through faces.
    """
    # Slices along the axis that lies farthest apart in memory are whole blocks of it.
    slices = mask.transpose(np.argsort([-abs(stride) for stride in mask.strides], kind="stable"))
    slabs = [slices[start : start + _thick(slices)] for start in range(0, len(slices), _thick(slices))]
    # Of every slab: how many voxels each of its parts has, and which parts of the slab before it they touch.
    sizes, pairs, below, count = [], [np.zeros((2, 0), np.int64)], None, 0
    for slab in slabs:
        parts, found = _numbered(slab)
        sizes.append(np.bincount(parts.ravel(), minlength=found + 1)[1:] if found > 1 else [np.count_nonzero(slab)] * found)
        if below is not None:
            both = slab[0] & (below > 0)
            touching = np.stack([below[both] - 1, parts[0][both] + (count - 1)]).astype(np.int64)
            changes = np.append(True, (touching[:, 1:] != touching[:, :-1]).any(0))[: touching.shape[1]]
            pairs.append(touching[:, changes])
        below = np.where(parts[-1] > 0, parts[-1] + count, 0)
        count += found
    first, second = np.concatenate(pairs, axis=1)
    _, whole = connected_components(coo_array((np.ones(first.size, bool), (first, second)), shape=(count, count)), directed=False)
    total = np.bincount(whole, weights=np.concatenate(sizes))
    kept = np.split((total >= share * total.max())[whole], np.cumsum([len(part) for part in sizes])[:-1])
    for slab, keep in zip(slabs, kept, strict=True):
        if not keep.all():  # numbered anew, by the same numbers
            slab[...] = np.concatenate([[False], keep])[_numbered(slab)[0]]


def fill_holes(mask: Bool[np.ndarray, "x y z"]) -> None:
    """Fill, in place, the holes of each axial slice: lungs and airways are open at the ends of the field of view.

    A hole in 3-D is one in each of its slices.
    """
    for z in range(mask.shape[2]):
        parts, count = _numbered(~mask[:, :, z])
        reached = np.zeros(count + 1, bool)
        for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
            reached[edge] = True
        if not reached[1:].all():
            reached[0] = False
            mask[:, :, z] = ~reached[parts]


def _thick(slices: np.ndarray) -> int:
    return max(1, _SLAB // max(1, slices[0].size))


def _numbered(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected parts, numbered from 1 in int32, and how many there are."""
    parts = np.empty(mask.shape, np.int32)
    return parts, int(ndimage.label(mask, output=parts))  # type: ignore[arg-type]
