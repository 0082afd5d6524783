"""Where a token is: learned and sin-cos tables, and rotary embeddings by token index or in millimetres. Called by `vit` and `mae`.

Also what every size of a transformer's config must be: `check_numbers`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxseg.errors import ConfigError, ShapeError

Kind = Literal["rope_mm", "rope_index", "learned", "sincos", "none"]
Triple = tuple[int, int, int]


def check_numbers(config: Any, *, least: Mapping[str, int], triples: Sequence[str] = (), positive: Sequence[str] = ()) -> None:
    """ConfigError, naming the field, if one of `config` is no whole number of at least `least`, not three whole numbers from 1 on, or not above 0."""
    for field, limit in least.items():
        value = getattr(config, field)
        if not isinstance(value, int | np.integer) or value < limit:
            raise ConfigError(f"{field} is {value!r}; expected a whole number of at least {limit}")
    for field in triples:
        value = getattr(config, field)
        if not isinstance(value, tuple | list) or len(value) != 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in value):
            raise ConfigError(f"{field} is {value!r}; expected three whole numbers of at least 1, along x, y and z")
    for field in positive:
        value = getattr(config, field)
        if not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
            raise ConfigError(f"{field} is {value!r}; expected a number above 0")


class Rotation(NamedTuple):
    """Cosine and sine of every token's rotary angles, `(b or 1, n, 1, head_dim // 2)`."""

    cos: Float[Array, "b n 1 r"]
    sin: Float[Array, "b n 1 r"]


def sincos_table(grid: Triple, width: int) -> np.ndarray:
    """Fixed sin-cos positions `(gx, gy, gz, width)`, equal to MONAI's: y, x, z; for each sin then cos; temperature 10000.

    What `width` leaves over after division by 6 stays zero (MONAI refuses such widths).
    """
    bands = width // 6
    omega = 10000.0 ** -(np.arange(bands) / bands)
    index = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    angles = [index[axis][..., None] * omega for axis in (1, 0, 2)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)
    return np.pad(table, [(0, 0)] * 3 + [(0, width - 6 * bands)]).astype(np.float32)


def resize_table(table: Float[Array, "gx gy gz w"], grid: Triple) -> Float[Array, "gx2 gy2 gz2 w"]:
    """A position table stretched trilinearly over another token grid (the corners of the crop stay the corners)."""
    if table.shape[:3] == grid:
        return table
    return jax.image.resize(table, (*grid, table.shape[3]), "trilinear", antialias=False)


def token_coordinates(grid: Triple, step: Float[Array, "b 3"]) -> Float[Array, "b n 3"]:
    """Centres of the tokens, relative to the centre of the crop, in the unit of `step` (the distance of neighbouring tokens along each axis)."""
    axes = [np.arange(n) - (n - 1) / 2 for n in grid]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return jnp.asarray(index, jnp.float32) * step[:, None, :]


def rope_rotation(coordinates: Float[Array, "b n 3"], head_dim: int, base: float) -> Rotation:
    """Angles coordinate · base^(-k / bands) for k < bands = head_dim // 6 along each axis; the pairs left over are not rotated.

    Axial form of https://arxiv.org/abs/2104.09864: the product of a rotated query and a rotated key depends on their distance alone.
    """
    bands = head_dim // 6
    frequencies = jnp.asarray(base ** -(np.arange(bands) / bands), jnp.float32)
    angles = (coordinates[..., None] * frequencies).reshape(*coordinates.shape[:2], 1, 3 * bands)
    angles = jnp.pad(angles, [(0, 0)] * 3 + [(0, head_dim // 2 - 3 * bands)])
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Turn the pairs (x[i], x[i + d/2]) by the angles of `rotation`, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def gather_tokens(values: Float[Array, "b n c"], index: Int[Array, "b k"]) -> Float[Array, "b k c"]:
    """values[i, index[i]] for every sample i; a leading axis of 1 in `values` stands for every sample.

    No sample's index may name a token twice: the gradient is then a gather, too, where that of indexing would be a scatter, which is slow.
    First derivatives in reverse mode only.
    """
    return _gathered(values, index, values.shape[:2])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gathered(values: Array, index: Array, shape: tuple[int, int]) -> Array:
    if shape[0] == 1:
        return values[0][index]
    return jnp.take_along_axis(values, index[..., None], axis=1)


def _gathered_forward(values: Array, index: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    return _gathered(values, index, shape), index


def _gathered_backward(shape: tuple[int, int], index: Array, gradient: Array) -> tuple[Array, None]:
    (lead, n), k = shape, index.shape[1]
    order = jnp.argsort(index, axis=1)
    if k == n:
        back = jnp.take_along_axis(gradient, order[..., None], axis=1)
    else:
        ascending = jnp.take_along_axis(index, order, axis=1)
        place = jax.vmap(lambda one: jnp.searchsorted(one, jnp.arange(n), method="compare_all"))(ascending).clip(0, k - 1)
        named = jnp.take_along_axis(ascending, place, axis=1) == jnp.arange(n)
        rows = jnp.take_along_axis(gradient, jnp.take_along_axis(order, place, axis=1)[..., None], axis=1)
        back = jnp.where(named[..., None], rows, 0)
    return back.sum(0, keepdims=True) if lead == 1 else back, None


_gathered.defvjp(_gathered_forward, _gathered_backward)


class Positions(nnx.Module):
    """Positions of one encoder or decoder: a table added to tokens (learned or sin-cos), or the rotation of queries and keys.

    `table` is a parameter `(gx, gy, gz, width)` for "learned" and absent otherwise. `scale` (mm) is the length that "rope_mm" measures in;
    "rope_index" measures in tokens.
    """

    def __init__(self, kind: Kind, grid: Triple, width: int, head_dim: int, *, scale: float, base: float, rngs: nnx.Rngs):
        self.kind, self.grid, self.width, self.head_dim, self.scale, self.base = kind, grid, width, head_dim, scale, base
        if kind.startswith("rope") and head_dim < 6:
            raise ConfigError(
                f"rotary positions need at least 6 numbers a head (2 an axis), and width / heads is {head_dim}: use fewer heads"
            )
        if kind == "learned":
            self.table = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, (*grid, width), jnp.float32))

    def added(self, grid: Triple) -> Float[Array, "1 n w"] | None:
        """The table for a token grid, or None where nothing is added to tokens."""
        if self.kind not in ("learned", "sincos"):
            return None
        table = self.table[...] if self.kind == "learned" else jnp.asarray(sincos_table(self.grid, self.width))
        return resize_table(table, grid).reshape(1, -1, self.width)

    def coordinates(self, grid: Triple, token: Triple, spacing: Float[Array, "b 3"] | None) -> Float[Array, "b n 3"] | None:
        """What the rotation is computed from: `(b, n, 3)` in units of `scale` for "rope_mm", `(1, n, 3)` in tokens for "rope_index", else None."""
        if self.kind == "rope_index":
            return token_coordinates(grid, jnp.ones((1, 3), jnp.float32))
        if self.kind != "rope_mm":
            return None
        if spacing is None:
            raise ShapeError(
                "this model knows positions in millimetres (positions='rope_mm') and got no spacing: pass spacing=(b, 3) in mm, "
                "or build it with positions='rope_index'"
            )
        if spacing.ndim != 2 or spacing.shape[1] != 3:
            raise ShapeError(f"spacing has the shape {tuple(spacing.shape)}; expected (b, 3): the voxel size in mm of every sample")
        step = spacing.astype(jnp.float32) * jnp.asarray(token, jnp.float32) / self.scale
        return token_coordinates(grid, step)

    def rotation(self, coordinates: Float[Array, "b n 3"] | None) -> Rotation | None:
        """The rotation for tokens at `coordinates`, or None where there is none."""
        return None if coordinates is None else rope_rotation(coordinates, self.head_dim, self.base)
