"""What of a scan differs from its background: the box outside which every voxel equals the first one. Called by `values`.

Skull-stripped heads, label maps and padded scans are mostly one value, which need not be hashed or added up voxel by voxel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

_SMALL = 1 << 16  # voxels
_THICK = 16  # planes looked at together: a plane across the fastest axis touches as much memory as sixteen


@dataclass(frozen=True)
class Box:
    """Half-open ranges of voxels along the three axes; all of them are empty in a constant scan."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    def of(self, array: Shaped[np.ndarray, "x y z c"]) -> Shaped[np.ndarray, "a b d c"]:
        """The part of an array that lies inside."""
        return array[tuple(slice(a, b) for a, b in zip(self.low, self.high, strict=True))]


def find_box(
    stored: Shaped[np.ndarray, "x y z c"], decode: Callable[[np.ndarray], np.ndarray], *, one_to_one: bool
) -> tuple[Box, np.ndarray]:
    """The smallest box outside which every voxel decodes to what the first one does, and that value. Where it is NaN, the box is whole.

    Args:
        decode: stored values to intensities.
        one_to_one: whether different stored values always mean different intensities.
    """
    first, background = stored[0, 0, 0, 0], decode(stored[:1, :1, :1, :1])[0, 0, 0, 0]
    if one_to_one and stored.size <= _SMALL:
        return _box_of_small(stored != first), background
    backwards = [stride < 0 for stride in stored.strides[:3]]
    forwards = stored[tuple(slice(None, None, -1 if turn else 1) for turn in backwards)]  # numpy compares it several times faster
    ranges = _shrink(forwards, [(0, n) for n in stored.shape[:3]], lambda part: part != first, _THICK)
    if not one_to_one:
        ranges = _shrink(forwards, ranges, lambda part: decode(part) != background, 1)
    pairs = [(n - high, n - low) if turn else (low, high) for n, turn, (low, high) in zip(stored.shape, backwards, ranges)]
    (x, a), (y, b), (z, c) = pairs if all(low < high for low, high in ranges) else [(0, 0)] * 3
    return Box((x, y, z), (a, b, c)), background


def _box_of_small(differs: np.ndarray) -> Box:
    """The box of the true voxels by looking at all of them, which for few is faster than going from plane to plane."""
    lines = np.logical_or.reduce(differs, axis=3)
    plane = np.logical_or.reduce(lines, axis=2)
    where = [np.flatnonzero(np.logical_or.reduce(part, axis=axes)) for part, axes in ((plane, (1,)), (plane, (0,)), (lines, (0, 1)))]
    if not where[0].size:
        return Box((0, 0, 0), (0, 0, 0))
    (x, a), (y, b), (z, c) = ((int(places[0]), int(places[-1]) + 1) for places in where)
    return Box((x, y, z), (a, b, c))


def _shrink(
    stored: np.ndarray, ranges: list[tuple[int, int]], differs: Callable[[np.ndarray], np.ndarray], thick: int
) -> list[tuple[int, int]]:
    """Cut planes without a difference off both ends of every axis, the slowest in memory first, where a plane costs least."""
    ranges = list(ranges)
    for axis in sorted(range(3), key=lambda axis: -abs(stored.strides[axis])):
        others = tuple(other for other in range(4) if other != axis)

        def planes(start: int, stop: int, axis: int = axis, others: tuple[int, ...] = others) -> np.ndarray:
            index = [slice(*ranges[other]) for other in range(3)]
            index[axis] = slice(start, stop)
            return np.flatnonzero(differs(stored[tuple(index)]).any(axis=others))

        low, high = ranges[axis]
        size = thick if abs(stored.strides[axis]) == stored.itemsize else 1
        while low < high and not len(found := planes(low, min(low + size, high))):
            low, size = min(low + size, high), 2 * size
        if low == high:
            return [(0, 0)] * 3
        low, size = low + int(found[0]), min(size, thick)
        while not len(found := planes(max(low, high - size), high)):
            high, size = max(low, high - size), 2 * size
        ranges[axis] = low, max(low, high - size) + int(found[-1]) + 1
    return ranges
