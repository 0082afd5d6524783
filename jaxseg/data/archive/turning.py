"""A scan's axes turned to RAS order as a view, and the letters of its own order. Called by `values` and `scan_row` for every scan of an archive.

nibabel's functions do the same for any affine, with a singular value decomposition that takes longer than reading a small scan. Here affines
are rectangular (readers refuse shear), so that the columns themselves say which way the axes run.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))


def world_axes(affine: Float[np.ndarray, "4 4"]) -> tuple[tuple[int, int], ...]:
    """For each voxel axis the world axis that it runs closest to (0 x, 1 y, 2 z), and 1 or -1 for its direction."""
    return _axes_of(np.ascontiguousarray(affine, np.float64).tobytes())


@functools.lru_cache(64)
def _axes_of(data: bytes) -> tuple[tuple[int, int], ...]:
    affine = np.frombuffer(data).reshape(4, 4)
    columns: list[list[float]] = (affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(0))).T.tolist()
    found: dict[int, tuple[int, int]] = {}
    # The axis that is surest of its direction chooses first.
    for axis in sorted(range(3), key=lambda axis: -max(map(abs, columns[axis]))):
        free = [world for world in range(3) if world not in {taken for taken, _ in found.values()}]
        world = max(free, key=lambda world: abs(columns[axis][world]))
        found[axis] = world, 1 if columns[axis][world] >= 0 else -1
    return tuple(found[axis] for axis in range(3))


def axis_letters(affine: Float[np.ndarray, "4 4"]) -> str:
    """The world direction that each voxel axis runs towards, as "RAS" or "PSR"."""
    return "".join(_LETTERS[world][sign > 0] for world, sign in world_axes(affine))


def turned_to_ras(array: Shaped[np.ndarray, "x y z *c"], affine: Float[np.ndarray, "4 4"]) -> tuple[np.ndarray, Float[np.ndarray, "4 4"]]:
    """A view of the array with its axes in RAS order, and the affine of that view."""
    axes = world_axes(affine)
    order = [next(axis for axis in range(3) if axes[axis][0] == world) for world in range(3)]
    signs = [axes[axis][1] for axis in order]
    turned: Any = array.transpose(*order, *range(3, array.ndim))[tuple(slice(None, None, sign) for sign in signs)]
    new = np.eye(4)
    new[:3, :3] = affine[:3, order] * signs
    new[:3, 3] = affine[:3, 3]
    for axis, sign in zip(order, signs, strict=True):
        if sign < 0:
            new[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
    return turned, new


def spacing_of(affine: Float[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Millimetres along the three axes."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(0)).tolist()
    return x, y, z
