"""Where the results of overlapping windows are added up: on the device, in a canvas whose size comes in steps, or in the host's memory.
Called by `infer.window`."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Start = tuple[int, int, int]


class Blend(Protocol):
    """Sums of weighted windows."""

    def add(self, starts: Sequence[Start], results: Any) -> None:
        """Add the first `len(starts)` of `results` (batch, *window, k), each times the weight, at its first voxel."""
        ...

    def total(self) -> Float[np.ndarray, "x y z k"]:
        """The sums, on the host."""
        ...


class HostBlend:
    """Sums in the host's memory: on a CPU there is no better place, and on other devices it asks for one batch of results only."""

    def __init__(self, shape: Sequence[int], weight: Float[np.ndarray, "wx wy wz"], num_classes: int) -> None:
        self._weight = weight[..., None]
        self._total = np.zeros((*shape, num_classes), np.float32)

    def add(self, starts: Sequence[Start], results: Any) -> None:
        for start, result in zip(starts, np.asarray(results, np.float32)):
            self._total[at(start, self._weight.shape[:3])] += result * self._weight

    def total(self) -> Float[np.ndarray, "x y z k"]:
        return self._total


class DeviceBlend:
    """Sums on the device: what windows return never leaves it, and the host fetches the whole once.

    The canvas is as large as `bucket` says, so that scans of similar sizes share one compiled program.
    """

    def __init__(self, shape: Sequence[int], weight: Float[np.ndarray, "wx wy wz"], num_classes: int) -> None:
        self._shape = tuple(shape)
        self._weight = jnp.asarray(weight)
        # Waited for, so that a canvas that does not fit is known here and not at the first window.
        self._total = jax.block_until_ready(jnp.zeros((*bucket(shape, weight.shape), num_classes), jnp.float32))

    def add(self, starts: Sequence[Start], results: Any) -> None:
        missing = len(results) - len(starts)
        places = np.asarray([*starts, *[(0, 0, 0)] * missing], np.int32)
        self._total = _add_windows(self._total, jnp.asarray(results, jnp.float32), places, np.int32(len(starts)), self._weight)

    def total(self) -> Float[np.ndarray, "x y z k"]:
        # Cut on the host: a slice on the device would be a program for every size.
        return np.array(np.asarray(self._total)[at((0, 0, 0), self._shape)])


def bucket(shape: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """`shape` rounded up to whole halves of the window along each axis."""
    steps = [max(1, width // 2) for width in window]
    return tuple(-(-size // step) * step for size, step in zip(shape, steps))


def at(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a box, by its first voxel and its size."""
    return tuple(slice(first, first + width) for first, width in zip(start, size))


@functools.partial(jax.jit, donate_argnums=0)
def _add_windows(
    total: Float[Array, "x y z k"],
    results: Float[Array, "b wx wy wz k"],
    starts: Int[Array, "b 3"],
    used: Int[Array, ""],
    weight: Float[Array, "wx wy wz"],
) -> Float[Array, "x y z k"]:
    def add_one(number: Array, total: Array) -> Array:
        place = (*starts[number], jnp.int32(0))
        old = jax.lax.dynamic_slice(total, place, results.shape[1:])
        return jax.lax.dynamic_update_slice(total, old + weight[..., None] * results[number], place)

    return jax.lax.fori_loop(0, used, add_one, total)
