"""Where the results of overlapping windows are added up: on the device, in a slab that moves along the scan, or in the host's memory.
Called by `infer.window`."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Start = tuple[int, int, int]


class Blend(Protocol):
    """Sums of weighted windows, which come in order of their first plane along x."""

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
    """Sums on the device, in a slab as deep as a window. Planes that no later window reaches go to the host while the device computes on:
    the device holds neither the whole result, nor the results of more than a batch, and the slab's memory does not grow with the scan's
    extent along x.

    Along y and z the slab is as large as `bucket` says, so that scans of similar sizes share one compiled program.
    """

    def __init__(self, shape: Sequence[int], weight: Float[np.ndarray, "wx wy wz"], num_classes: int, step: int) -> None:
        """`step`: the most planes between a window and the next one along x, where none is left out."""
        self._shape = tuple(shape)
        self._weight = jnp.asarray(weight)
        self._step = step
        self._first = 0
        self._total = np.zeros((*shape, num_classes), np.float32)
        self._leaving: tuple[int, int, Array] | None = None
        # Moved once while it holds nothing, and waited for: a slab that does not fit is known here and not at some later window.
        size = (len(weight), *bucket(shape[1:], weight.shape[1:]), num_classes)
        self._slab, _ = jax.block_until_ready(_advance(jnp.zeros(size, jnp.float32), np.int32(0), step))

    def add(self, starts: Sequence[Start], results: Any) -> None:
        missing = len(results) - len(starts)
        results = jnp.asarray(results, jnp.float32)
        places = np.asarray([*starts, *[(0, 0, 0)] * missing], np.int32)
        number = 0
        for first, same in itertools.groupby(starts, lambda start: start[0]):
            self._move(first)
            until = number + sum(1 for _ in same)
            self._slab = _add_windows(self._slab, results, places[:, 1:], np.int32(number), np.int32(until), self._weight)
            number = until

    def total(self) -> Float[np.ndarray, "x y z k"]:
        self._move(self._shape[0])
        self._store()
        return self._total

    def _move(self, first: int) -> None:
        """Let the slab begin with plane `first` of the scan; the planes before it are done."""
        while self._first < first:
            step = min(first - self._first, self._step)
            self._slab, leaving = _advance(self._slab, np.int32(step), self._step)
            leaving.copy_to_host_async()
            # The planes that left before these have had the time of a window's computation to arrive.
            self._store()
            self._leaving = self._first, step, leaving
            self._first += step

    def _store(self) -> None:
        if self._leaving is not None:
            first, step, planes = self._leaving
            # Cut on the host: a slice on the device would be a program for every size.
            self._total[first : first + step] = np.asarray(planes)[:step, : self._shape[1], : self._shape[2]]
            self._leaving = None


def bucket(shape: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """`shape` rounded up to whole halves of the window along each axis."""
    steps = [max(1, width // 2) for width in window]
    return tuple(-(-size // step) * step for size, step in zip(shape, steps))


def at(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The voxels of a box, by its first voxel and its size."""
    return tuple(slice(first, first + width) for first, width in zip(start, size))


@functools.partial(jax.jit, donate_argnums=0)
def _add_windows(
    slab: Float[Array, "wx y z k"],
    results: Float[Array, "b wx wy wz k"],
    places: Int[Array, "b 2"],
    first: Int[Array, ""],
    until: Int[Array, ""],
    weight: Float[Array, "wx wy wz"],
) -> Float[Array, "wx y z k"]:
    """Add the windows numbered `first` up to but not including `until`, at their places along y and z."""

    def add_one(number: Array, slab: Array) -> Array:
        place = (jnp.int32(0), *places[number], jnp.int32(0))
        old = jax.lax.dynamic_slice(slab, place, results.shape[1:])
        return jax.lax.dynamic_update_slice(slab, old + weight[..., None] * results[number], place)

    return jax.lax.fori_loop(first, until, add_one, slab)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def _advance(
    slab: Float[Array, "wx y z k"], step: Int[Array, ""], most: int
) -> tuple[Float[Array, "wx y z k"], Float[Array, "most y z k"]]:
    """The slab `step` planes further on, zeros in the planes that are new, and the leading `most` planes, the first `step` of which left it."""
    further = jnp.concatenate([slab, jnp.zeros((most, *slab.shape[1:]), slab.dtype)])
    return jax.lax.dynamic_slice_in_dim(further, step, len(slab)), slab[:most]
