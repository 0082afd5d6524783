"""Interpolation on the device for one crop: sampling at arbitrary positions, and separable operators. Called by `augment`.

Positions are in voxels, arrays `(x, y, z)` or `(x, y, z, c)`.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.scipy.spatial.transform import Rotation
from jaxtyping import Array, Bool, Float, Shaped

Position = tuple[Float[Array, "x y z"], Float[Array, "x y z"], Float[Array, "x y z"]]
"""The three coordinates apart: side by side in one array, a processor could not compute several voxels at once."""


def affine_coordinates(
    shape: tuple[int, ...],
    spacing: Float[Array, "3"],
    angles: Float[Array, "3"],
    scale: Float[Array, ""] | Float[Array, "3"],
    shift: Float[Array, "x y z 3"] | None = None,
) -> tuple[Position, Bool[Array, "x y z"]]:
    """Where each output voxel lies in the input after a rotation (radians about x, y, z) and a magnification about the centre, in mm.

    `scale` is one factor or one per output axis; `shift` (voxels) displaces the output voxels before they are turned and scaled.
    Returns the positions, clipped to the input, and whether they were inside it (to half a voxel beyond the outermost centres).
    """
    centre = [(n - 1) / 2 for n in shape]
    offset = [lax.broadcasted_iota(jnp.float32, shape, axis) - centre[axis] for axis in range(3)]
    if shift is not None:
        offset = [offset[axis] + shift[..., axis] for axis in range(3)]
    matrix = Rotation.from_euler("xyz", angles).as_matrix() * spacing / spacing[:, None] / scale
    # Written out rather than as a matmul, which a GPU or TPU would round to fewer bits than a position needs.
    x, y, z = (centre[row] + sum(offset[axis] * matrix[row, axis] for axis in range(3)) for row in range(3))
    inside = jnp.all(jnp.stack([(place >= -0.5) & (place <= n - 0.5) for place, n in zip((x, y, z), shape)]), 0)
    x, y, z = (jnp.clip(place, 0, n - 1) for place, n in zip((x, y, z), shape))
    return (x, y, z), inside


def sample_linear(image: Float[Array, "x y z c"], where: Position) -> Float[Array, "x y z c"]:
    """Trilinear interpolation at positions inside the image."""
    shape = image.shape[:3]
    low = [jnp.clip(jnp.floor(place).astype(jnp.int32), 0, max(n - 2, 0)) for place, n in zip(where, shape)]
    weight = [place - below for place, below in zip(where, low)]
    flat = image.reshape(-1, image.shape[-1])
    out = jnp.zeros((*where[0].shape, image.shape[-1]), image.dtype)
    for corner in itertools.product((0, 1), repeat=3):
        index = _flat_index([jnp.minimum(below + up, n - 1) for below, up, n in zip(low, corner, shape)], shape)
        x, y, z = (part if up else 1 - part for part, up in zip(weight, corner))
        out = out + (x * y * z)[..., None] * flat.at[index].get(mode="promise_in_bounds")
    return out


def sample_nearest(array: Shaped[Array, "x y z"], where: Position) -> Shaped[Array, "x y z"]:
    """The value of the nearest voxel at positions inside the array."""
    index = _flat_index([jnp.floor(place + 0.5).astype(jnp.int32) for place in where], array.shape)
    return array.reshape(-1).at[index].get(mode="promise_in_bounds")


def _flat_index(index: Sequence[Array], shape: tuple[int, ...]) -> Array:
    return (index[0] * shape[1] + index[1]) * shape[2] + index[2]


def separable(image: Float[Array, "x y z c"], matrices: Sequence[Float[Array, "n m"]]) -> Float[Array, "x2 y2 z2 c"]:
    """Apply one matrix (new size, old size) along each axis. Matrix products, because they are what every backend does fastest."""
    return lax.platform_dependent(image, *matrices, cpu=_separable_by_planes, default=_separable_whole)


def _separable_whole(image, x, y, z):
    image = jnp.einsum("ix,xyzc->iyzc", x, image, precision="highest")
    image = jnp.einsum("iy,xyzc->xizc", y, image, precision="highest")
    return jnp.einsum("iz,xyzc->xyic", z, image, precision="highest")


def _separable_by_planes(image, x, y, z):
    # A plane stays in the cache while it is multiplied, turned, multiplied and turned back: half the time of the whole volume at once.
    def plane(values):
        values = jnp.matmul(y, values.reshape(values.shape[0], -1), precision="highest").reshape(-1, *values.shape[1:])
        rows = jnp.matmul(values.transpose(0, 2, 1).reshape(-1, values.shape[1]), z.T, precision="highest")
        return rows.reshape(*values.shape[::2], -1).transpose(0, 2, 1)

    planes = jnp.matmul(x, image.reshape(image.shape[0], -1), precision="highest")
    return lax.map(plane, planes.reshape(-1, *image.shape[1:]))


def blur_matrix(size: int, sigma: Float[Array, ""]) -> Float[Array, "n n"]:
    """Rows of a Gaussian of `sigma` voxels, each summing to 1 (so that borders keep their brightness)."""
    place = jnp.arange(size, dtype=jnp.float32)
    weight = jnp.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return weight / weight.sum(1, keepdims=True)


def coarse_matrix(size: int, zoom: Float[Array, ""]) -> Float[Array, "n n"]:
    """Keep `zoom * size` samples by nearest neighbour, then interpolate back linearly; the identity at zoom 1."""
    place = jnp.arange(size, dtype=jnp.float32)
    last = jnp.maximum(jnp.floor(size * zoom) - 1, 0)
    coarse = jnp.clip((place + 0.5) * zoom - 0.5, 0, last)
    low = jnp.floor(coarse)
    rows = [jnp.clip(jnp.floor((jnp.minimum(index, last) + 0.5) / zoom), 0, size - 1) for index in (low, low + 1)]
    one_hot = [(row[:, None] == place).astype(jnp.float32) for row in rows]
    weight = (coarse - low)[:, None]
    return (1 - weight) * one_hot[0] + weight * one_hot[1]
