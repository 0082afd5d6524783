"""Percentiles of values that come in parts, which are never together in memory. Called by `intensity`."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

_HALF = 1 << 16
_TOGETHER = 1 << 17  # values counted at once


def percentiles(parts: Callable[[], Iterator[Float[np.ndarray, " n"]]], shares: Sequence[float]) -> Float[np.ndarray, " s"]:
    """`np.percentile` of all parts together, to the bit.

    A float32 is put in order by its bits: counting their upper halves says in which of 65,536 classes each rank falls, and counting the lower
    halves in that class alone says which value it is.

    Args:
        parts: gives the parts anew whenever it is called, float32 without NaN.
        shares: in per cent.
    Raises: ValueError if there are no values.
    """
    upper = np.zeros(_HALF, np.int64)
    for keys in _ordered(parts()):
        upper += np.bincount(keys >> 16, minlength=_HALF)
    ends = np.cumsum(upper)
    if not ends[-1]:
        raise ValueError("percentiles of no values")
    places = np.asarray(shares, float) / 100 * (int(ends[-1]) - 1)
    ranks = np.unique([np.floor(places), np.ceil(places)]).astype(np.int64)
    classes = np.searchsorted(ends, ranks, side="right")
    lower = {int(number): np.zeros(_HALF, np.int64) for number in classes}
    for keys in _ordered(parts()):
        for number, counts in lower.items():
            counts += np.bincount(keys[keys >> 16 == number] & (_HALF - 1), minlength=_HALF)
    values = np.empty(ranks.size, np.float32)
    for i, (rank, number) in enumerate(zip(ranks.tolist(), classes.tolist(), strict=True)):
        before = int(ends[number] - upper[number])
        values[i] = _value(number << 16 | int(np.searchsorted(np.cumsum(lower[number]), rank - before, side="right")))
    low, high = (values[np.searchsorted(ranks, rounded)] for rounded in (np.floor(places), np.ceil(places)))
    # numpy's own interpolation: from the nearer end.
    share = places - np.floor(places)
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))


def _ordered(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Unsigned 32-bit numbers that are ordered as the values are, many at a time."""
    waiting: list[np.ndarray] = []
    for part in parts:
        waiting.append(part)
        if sum(some.size for some in waiting) >= _TOGETHER:
            yield _keys(waiting)
            waiting = []
    if waiting:
        yield _keys(waiting)


def _keys(parts: list[np.ndarray]) -> np.ndarray:
    bits = np.concatenate(parts).astype(np.float32, copy=False).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])
