"""Findings given as a centre and a diameter, drawn as label maps. Called by `luna`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError


class Sphere(NamedTuple):
    """A centre in RAS+ mm and a radius in mm."""

    centre: tuple[float, float, float]
    radius: float


def draw_spheres(grid: Grid, spheres: Sequence[Sphere], case: str = "") -> UInt8[np.ndarray, "x y z"]:
    """1 where a voxel's centre lies within a sphere, and in the voxel next to each centre, so that none is lost between slices.

    Raises:
        GeometryError: a centre lies outside the scan.
    """
    drawn = np.zeros(grid.shape, np.uint8)
    inverse = np.linalg.inv(grid.affine)
    for sphere in spheres:
        middle = centre_voxel(grid, sphere, case)
        reach = sphere.radius * np.linalg.norm(inverse[:3, :3], axis=1)  # of the sphere along each voxel axis, sheared grids included
        low = np.maximum(np.floor(middle - reach), 0).astype(int)
        high = np.minimum(np.ceil(middle + reach) + 1, grid.shape).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high))
        index = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high)], indexing="ij"), -1)
        world = (index - middle) @ grid.affine[:3, :3].T
        drawn[box] |= (np.einsum("xyzi,xyzi->xyz", world, world) <= sphere.radius**2).astype(np.uint8)
        drawn[tuple(np.round(middle).astype(int))] = 1
    return drawn


def centre_voxel(grid: Grid, sphere: Sphere, case: str = "") -> Float[np.ndarray, "3"]:
    """Where a sphere's centre lies, in voxels and fractions of them. GeometryError if that is outside the grid."""
    inverse = np.linalg.inv(grid.affine)
    middle = inverse[:3, :3] @ np.asarray(sphere.centre) + inverse[:3, 3]
    nearest = np.round(middle).astype(int)
    if (nearest < 0).any() or (nearest >= grid.shape).any():
        raise GeometryError(
            f"case {case}: a finding at {tuple(round(v, 1) for v in sphere.centre)} mm (RAS) would be voxel {tuple(nearest.tolist())} of a scan "
            f"of {'×'.join(map(str, grid.shape))} voxels; do scan and table belong together?"
        )
    return middle
