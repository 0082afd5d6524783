"""A brain mask by a surface that swells inside the head, for scans that nobody has stripped. Called by `preprocess` for `strip="surface"`.

The method is that of BET (Smith, Hum. Brain Mapp. 17, 2002), written anew from the paper. Good enough to keep scalp and neck out of a
brain's intensities; not a measurement of anybody's brain. tests/data/test_skull.py holds its Dice on heads whose truth is known.
A mask that somebody supplies (`strip="mask"`) is better.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.spatial import KDTree

from jaxseg.data.percentiles import percentiles
from jaxseg.errors import InputError

_WORKING = 2.0  # mm
_STEPS = 500
_FRACTION = 0.5  # BET's intensity threshold between the local dark and bright
_INWARD = (20.0, 10.0)  # mm: how far inwards the darkest and the brightest neighbours are looked for
_RADII = (3.33, 10.0)  # mm: curvature below and above which the surface is smoothed hardly and fully
_SPHERE = 4  # subdivisions of the icosahedron: 2562 vertices
_VOLUME_ML = (300.0, 2500.0)


@dataclass(frozen=True)
class _Levels:
    """Robust intensities of a head: dark, air's threshold, the median around the centre, and where that lies (mm) with the head's radius."""

    dark: float
    air: float
    middle: float
    centre: Float[np.ndarray, " 3"]
    radius: float


def brain_mask(plane: Float[np.ndarray, "x y z"], spacing: tuple[float, float, float]) -> Bool[np.ndarray, "x y z"]:
    """Where the brain is in a head MR (axes in RAS order, spacing in mm).

    Raises:
        InputError: what was found has not a brain's size: not a head, or one that is cut off.
    """
    wide = np.maximum(1.0, _WORKING / np.asarray(spacing))
    smooth = ndimage.gaussian_filter(plane.astype(np.float32, copy=False), 0.4 * (wide - 1), mode="nearest")
    levels = _levels(smooth, spacing)
    directions, faces = _icosphere(_SPHERE)
    vertices = _swell(smooth, spacing, levels, directions, faces)
    mask = _inside(vertices, plane.shape, spacing)
    volume = float(np.count_nonzero(mask) * np.prod(spacing)) / 1000
    if not _VOLUME_ML[0] <= volume <= _VOLUME_ML[1]:
        raise InputError(
            f"skull stripping found a brain of {volume:.0f} ml, expected {_VOLUME_ML[0]:.0f} to {_VOLUME_ML[1]:.0f}: not a whole head? "
            "Supply a brain mask (--strip mask), or leave skull stripping out"
        )
    return mask


def _levels(plane: np.ndarray, spacing: tuple[float, float, float]) -> _Levels:
    # Slice by slice, here and in `_inside`: positions of all voxels would take many times the memory of the scan.
    dark, bright = percentiles(lambda: (part.ravel() for part in plane), (2, 98)).tolist()
    air = dark + 0.1 * (bright - dark)
    y, z = np.arange(plane.shape[1]), np.arange(plane.shape[2])
    sums, total, head = np.zeros(3), 0.0, 0
    for x, part in enumerate(plane):
        there = part > air
        weight = np.where(there, np.clip(part, dark, bright) - dark, 0).astype(np.float64)
        head, total = head + int(np.count_nonzero(there)), total + weight.sum()
        sums += x * weight.sum(), weight.sum(1) @ y, weight.sum(0) @ z
    if not head or bright <= dark:
        raise InputError("skull stripping found no head: nothing stands out of the background")
    centre = sums / total * np.asarray(spacing)
    radius = float((3 * head * np.prod(spacing) / (4 * np.pi)) ** (1 / 3))

    def inner() -> Iterator[np.ndarray]:
        for x, part in enumerate(plane):
            distance = (x * spacing[0] - centre[0]) ** 2 + (y * spacing[1] - centre[1])[:, None] ** 2 + (z * spacing[2] - centre[2]) ** 2
            yield part[(distance < radius**2) & (part > air) & (part < bright)]

    return _Levels(dark, air, float(percentiles(inner, (50,))[0]), centre, radius)


def _swell(
    plane: np.ndarray, spacing: tuple[float, float, float], levels: _Levels, directions: np.ndarray, faces: np.ndarray
) -> Float[np.ndarray, "v 3"]:
    """The surface's vertices in mm, after it has grown from a small sphere to where tissue turns dark."""
    neighbours = _neighbours(faces, len(directions))
    vertices = levels.centre + 0.5 * levels.radius * directions
    depths = np.arange(0.0, _INWARD[0] + 1, 2.0)
    low, high = 1 / _RADII[1], 1 / _RADII[0]
    for _ in range(_STEPS):
        normals = _normals(vertices, faces)
        pull = neighbours @ vertices - vertices
        along = np.sum(pull * normals, 1, keepdims=True)
        length = float(np.mean(np.linalg.norm(vertices[faces[:, 0]] - vertices[faces[:, 1]], axis=1)))
        bend = 2 * np.abs(along) / length**2
        smoothing = (1 + np.tanh(6 / (high - low) * (bend - (high + low) / 2))) / 2
        values = _values(plane, (vertices[:, None] - depths[:, None] * normals[:, None]) / spacing)
        dark = np.clip(values.min(1), levels.dark, levels.middle)
        bright = np.clip(values[:, depths <= _INWARD[1]].max(1), levels.air, levels.middle)
        edge = (bright - levels.dark) * _FRACTION + levels.dark
        force = 2 * (dark - edge) / np.maximum(bright - levels.dark, 1e-6)
        vertices = vertices + 0.5 * (pull - along * normals) + smoothing * along * normals + 0.05 * length * force[:, None] * normals
    return vertices


def _values(plane: np.ndarray, places: Float[np.ndarray, "v d 3"]) -> Float[np.ndarray, "v d"]:
    """The nearest voxels' values; the border's beyond it."""
    x, y, z = (np.clip(np.rint(places[..., axis]), 0, plane.shape[axis] - 1).astype(np.intp) for axis in range(3))
    return plane[x, y, z]


def _normals(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v 3"]:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    summed = np.stack([sum(np.bincount(faces[:, i], flat[:, axis], len(vertices)) for i in range(3)) for axis in range(3)], -1)
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-9)


def _neighbours(faces: Int[np.ndarray, "f 3"], count: int) -> sparse.csr_array:
    """The matrix that takes vertices to the mean of their neighbours."""
    edges = np.unique(np.concatenate([faces[:, pair] for pair in ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2))]), axis=0)
    degree = np.bincount(edges[:, 0], minlength=count)
    return sparse.csr_array((1.0 / degree[edges[:, 0]], (edges[:, 0], edges[:, 1])), shape=(count, count))


def _inside(vertices: Float[np.ndarray, "v 3"], shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Bool[np.ndarray, "x y z"]:
    """Voxels nearer to the surface's centre than the surface in their direction (it is a star's: BET's forces keep it one)."""
    centre = vertices.mean(0)
    radii = np.linalg.norm(vertices - centre, axis=1)
    tree = KDTree((vertices - centre) / radii[:, None])
    x, y, z = (np.arange(n) * mm - c for n, mm, c in zip(shape, spacing, centre))
    mask = np.empty(shape, bool)
    for i, slice_ in enumerate(mask):
        places = np.stack(np.meshgrid(x[i], y, z, indexing="ij"), -1)[0]
        distance = np.linalg.norm(places, axis=-1)
        slice_[...] = distance < radii.min()
        near = (distance <= radii.max()) & ~slice_
        gaps, which = tree.query(places[near] / distance[near][:, None], k=3)
        weights = 1 / np.maximum(gaps, 1e-6)
        slice_[near] = distance[near] <= np.sum(weights * radii[which], 1) / weights.sum(1)
    return mask


def _icosphere(subdivisions: int) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """Unit vectors and triangles of an icosahedron whose triangles were quartered so often; normals look outwards."""
    golden = (1 + 5**0.5) / 2
    corners = [(a, b * golden, 0.0) for a in (-1, 1) for b in (-1, 1)]
    vertices = np.array([np.roll(corner, turn) for turn in range(3) for corner in corners])
    vertices /= np.linalg.norm(vertices[0])
    side = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    near = (side > 0) & (side < side[side > 0].min() * 1.01)
    faces = np.array([(i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]])
    for _ in range(subdivisions):
        edges, place = np.unique(
            np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1), axis=0, return_inverse=True
        )
        middle = vertices[edges].mean(1)
        ab, bc, ca = np.split(place.ravel() + len(vertices), 3)
        a, b, c = faces.T
        vertices = np.concatenate([vertices, middle / np.linalg.norm(middle, axis=1, keepdims=True)])
        faces = np.concatenate([np.stack(three, 1) for three in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    inward = np.sum(np.cross(b - a, c - a) * (a + b + c), 1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return vertices, faces
