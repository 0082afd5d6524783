"""Interpolation on the device for one crop: sampling at arbitrary positions, and separable operators. Called by `augment`.

Positions are in voxels, arrays `(x, y, z)` or `(x, y, z, c)`.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.scipy.spatial.transform import Rotation
from jaxtyping import Array, Bool, Float, Shaped

Position = Float[Array, "x y z 3"]


def affine_coordinates(
    shape: tuple[int, ...],
    spacing: Float[Array, "3"],
    angles: Float[Array, "3"],
    scale: Float[Array, ""] | Float[Array, "3"],
    shift: Position | None = None,
) -> tuple[Position, Bool[Array, "x y z"]]:
    """Where each output voxel lies in the input after a rotation (radians about x, y, z) and a magnification about the centre, in mm.

    `scale` is one factor or one per output axis; `shift` (voxels) displaces the output voxels before they are turned and scaled.
    Returns the positions, clipped to the input, and whether they were inside it (to half a voxel beyond the outermost centres).
    """
    size = jnp.asarray(shape, jnp.float32)
    centre = (size - 1) / 2
    offset = jnp.stack(jnp.meshgrid(*[jnp.arange(n, dtype=jnp.float32) for n in shape], indexing="ij"), -1) - centre
    offset = offset if shift is None else offset + shift
    matrix = Rotation.from_euler("xyz", angles).as_matrix() * spacing / spacing[:, None] / scale
    # Written out rather than as a matmul, which a GPU or TPU would round to fewer bits than a position needs.
    where = centre + sum(offset[..., axis, None] * matrix[:, axis] for axis in range(3))
    return jnp.clip(where, 0, size - 1), ((where >= -0.5) & (where <= size - 0.5)).all(-1)


def sample_linear(image: Float[Array, "x y z c"], where: Position) -> Float[Array, "x y z c"]:
    """Trilinear interpolation at positions inside the image."""
    shape = jnp.asarray(image.shape[:3])
    low = jnp.clip(jnp.floor(where).astype(jnp.int32), 0, jnp.maximum(shape - 2, 0))
    weight = where - low
    flat = image.reshape(-1, image.shape[-1])
    out = jnp.zeros((*where.shape[:3], image.shape[-1]), image.dtype)
    for corner in itertools.product((0, 1), repeat=3):
        index = _flat_index(jnp.minimum(low + jnp.asarray(corner), shape - 1), image.shape[:3])
        share = jnp.prod(jnp.where(jnp.asarray(corner) == 1, weight, 1 - weight), -1)
        out = out + share[..., None] * flat.at[index].get(mode="promise_in_bounds")
    return out


def sample_nearest(array: Shaped[Array, "x y z"], where: Position) -> Shaped[Array, "x y z"]:
    """The value of the nearest voxel at positions inside the array."""
    index = _flat_index(jnp.floor(where + 0.5).astype(jnp.int32), array.shape[:3])
    return array.reshape(-1).at[index].get(mode="promise_in_bounds")


def _flat_index(index: Array, shape: tuple[int, ...]) -> Array:
    return (index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2]


def separable(image: Float[Array, "x y z c"], matrices: Sequence[Float[Array, "n m"]]) -> Float[Array, "x2 y2 z2 c"]:
    """Apply one matrix (new size, old size) along each axis. Matrix products, because they are what every backend does fastest."""
    x, y, z = matrices
    image = jnp.einsum("ix,xyzc->iyzc", x, image, precision="highest")
    image = jnp.einsum("iy,xyzc->xizc", y, image, precision="highest")
    return jnp.einsum("iz,xyzc->xyic", z, image, precision="highest")


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
