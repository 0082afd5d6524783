"""Smooth random fields over a crop: white noise on a coarse lattice, widened by a Gaussian. Used for elastic deformation and bias."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.data.resample import separable

_NODES_PER_DEVIATION = 1.5
"""Lattice nodes per deviation of the Gaussian: sums of its squares over the nodes then differ by less than 1e-9 from place to place."""


def smooth_field(key: Array, shape: tuple[int, ...], parts: int, width: Float[Array, ""], least: float) -> Float[Array, "x y z parts"]:
    """`parts` independent Gaussian fields of mean 0 and deviation 1 at every voxel, borders included.

    Args:
        key: of the noise.
        shape: (x, y, z) voxels.
        width: deviation of the smoothing Gaussian, as a part of the crop's edge along each axis. Two voxels a distance d (in edges)
            apart correlate by exp(-d² / 4 width²) far from the borders, where the derivative has the deviation 1 / (√2 width).
        least: smallest `width` that will come, which fixes the lattice; static.
    """
    nodes = math.ceil(_NODES_PER_DEVIATION / least) + 1
    noise = jax.random.normal(key, (nodes, nodes, nodes, parts))
    return separable(noise, [lattice_matrix(n, nodes, width) for n in shape])


def lattice_matrix(size: int, nodes: int, width: Float[Array, ""]) -> Float[Array, "n m"]:
    """Rows of a Gaussian over the lattice's nodes; the squares of each add up to 1, which keeps the noise's deviation."""
    place = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    node = jnp.linspace(0.0, 1.0, nodes)
    weight = jnp.exp(-0.5 * ((place[:, None] - node) / width) ** 2)
    return weight / jnp.sqrt((weight**2).sum(1, keepdims=True))
