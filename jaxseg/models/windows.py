"""Grids of tokens cut into windows, the geometry of attention inside them, and merging of neighbours. Called by `swin`.

Everything that depends on sizes alone is computed in numpy while a program is traced.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from jaxseg.models.positions import Triple

Merging = Literal["merging", "mergingv2", "merging_repeated"]

# Which voxel (x, y, z) of each 2x2x2 block is which eighth of the channels that a merging layer normalises and projects.
MERGING_ORDERS: dict[Merging, tuple[Triple, ...]] = {
    "merging": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "mergingv2": ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)),
    # MONAI 0.9 to 1.4: two voxels twice and two never. Networks trained with it, as most published ones are, need it.
    "merging_repeated": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}


class Windows(NamedTuple):
    """How a grid is cut: the window and its shift (tokens), and the grid's size after padding to whole windows."""

    size: Triple
    shift: Triple
    padded: Triple

    @property
    def shifted(self) -> bool:
        """Whether any axis is shifted."""
        return any(self.shift)


def fit_windows(grid: Triple, window: Triple, *, shifted: bool) -> Windows:
    """Windows for `grid`. Along an axis that one window covers, the window shrinks to the grid and is not shifted; else the shift is half."""
    size = tuple(min(g, w) for g, w in zip(grid, window))
    shift = tuple(w // 2 if shifted and g > w else 0 for g, w in zip(grid, window))
    padded = tuple(-(-g // s) * s for g, s in zip(grid, size))
    return Windows(_triple(size), _triple(shift), _triple(padded))


def cut(x: Float[Array, "b x y z c"], windows: Windows) -> Float[Array, "b w n c"]:
    """Pad with zeros at the far ends, roll by the shift, cut: `w` windows of `n` tokens, z fastest in both."""
    x = jnp.pad(x, [(0, 0), *((0, p - g) for p, g in zip(windows.padded, x.shape[1:4])), (0, 0)])
    if windows.shifted:
        x = jnp.roll(x, [-s for s in windows.shift], (1, 2, 3))
    i, j, k = windows.size
    return rearrange(x, "b (x i) (y j) (z k) c -> b (x y z) (i j k) c", i=i, j=j, k=k)


def join(x: Float[Array, "b w n c"], windows: Windows, grid: Triple) -> Float[Array, "b x y z c"]:
    """The inverse of `cut`, for a grid of this size."""
    (i, j, k), (px, py, _) = windows.size, windows.padded
    x = rearrange(x, "b (x y z) (i j k) c -> b (x i) (y j) (z k) c", x=px // i, y=py // j, i=i, j=j, k=k)
    if windows.shifted:
        x = jnp.roll(x, windows.shift, (1, 2, 3))
    return x[:, : grid[0], : grid[1], : grid[2]]


def regions(windows: Windows) -> Int[np.ndarray, "w n"]:
    """A number for each token of the rolled grid: tokens of one window that were no neighbours before the roll have different ones."""
    axes = []
    for length, size, shift in zip(windows.padded, windows.size, windows.shift):
        place = np.arange(length)
        axes.append((place >= length - size).astype(np.int32) + (place >= length - shift) if shift else np.zeros(length, np.int32))
    labels = (axes[0][:, None, None] * 3 + axes[1][:, None]) * 3 + axes[2]
    i, j, k = windows.size
    return rearrange(labels, "(x i) (y j) (z k) -> (x y z) (i j k)", i=i, j=j, k=k)


def relative_index(window: Triple) -> Int[np.ndarray, "n n"]:
    """The row of a table of prod(2 w - 1) offsets that belongs to each pair of tokens of a window, z fastest."""
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 3)
    offsets = places[:, None] - places[None] + np.array(window) - 1
    _, ny, nz = (2 * w - 1 for w in window)
    return (offsets[..., 0] * ny + offsets[..., 1]) * nz + offsets[..., 2]


def merge_neighbours(x: Float[Array, "b x y z c"], order: Merging) -> Float[Array, "b x2 y2 z2 d"]:
    """Blocks of 2x2x2 tokens side by side in the channels, in one of `MERGING_ORDERS`; an odd axis gets zeros at its far end."""
    x = jnp.pad(x, [(0, 0), *((0, n % 2) for n in x.shape[1:4]), (0, 0)])
    return jnp.concatenate([x[:, i::2, j::2, k::2] for i, j, k in MERGING_ORDERS[order]], -1)


def _triple(values: tuple[int, ...]) -> Triple:
    x, y, z = values
    return x, y, z
