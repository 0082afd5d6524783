"""One pass over a scan's voxels: hash, range, moments, percentiles, non-finite count. Called by `scan_row`.

Voxels are converted slab by slab, so that a scan is never copied whole and each slab is in the cache for all that is asked of it.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxseg.data.archive.turning import spacing_of, turned_to_ras
from jaxseg.data.fingerprint import fingerprint, quantiles
from jaxseg.data.io.decoded import Decoded
from jaxseg.data.volume import Volume

SAMPLE = 1 << 17  # voxels that percentiles are taken of
_SLAB = 1 << 17


@dataclass(frozen=True)
class Values:
    """What the voxels of a scan are. Percentiles come from an even subsample of about 130,000 voxels, all else from every voxel.

    Attributes:
        voxel_hash: see `voxel_hash`.
        nans, infinities: how many; the other numbers are None where there are any.
        wrapped: the share of neighbouring voxels, both not zero, that differ by more than half the range of their integer type.
    """

    voxel_hash: str
    nans: int
    infinities: int
    summary: dict[str, float | None]
    wrapped: float
    perceptual: bytes | None


NAMES: tuple[str, ...] = ("min", "p01", "p25", "median", "p75", "p99", "max", "mean", "std")


def examine(decoded: Decoded, *, image: bool) -> Values:
    """Everything about a scan's voxels. `image`: whether they are intensities, which a fingerprint and overflow are asked of."""
    head = decoded.header
    stored = decoded.stored if decoded.stored.ndim == 4 else decoded.stored[..., None]
    turned, affine = turned_to_ras(stored, head.grid.affine)
    digest, range_, moments = _begin_hash(turned.shape, affine), [math.inf, -math.inf], _Moments()
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted, not warned of
        for slab in _slabs(turned):
            flat = decoded_values(slab, head.slope, head.inter).reshape(-1, order="F")
            _add_to_hash(digest, flat)
            low, high = float(flat.min()), float(flat.max())
            range_ = [low if math.isnan(low) else min(range_[0], low), high if math.isnan(high) else max(range_[1], high)]
            moments.add(flat)
            if not (math.isfinite(low) and math.isfinite(high)):
                moments.count_bad(flat)
    bad = moments.nans + moments.infinities
    summary = dict.fromkeys(NAMES) if bad else _summary(stored, head.slope, head.inter, range_, moments)
    spread = float(np.ptp(range_)) / abs(head.slope) if not bad else 0.0
    look = fingerprint(turned[..., 0], spacing_of(affine)) if image and not bad else None
    return Values(digest.hexdigest(), moments.nans, moments.infinities, summary, _wrapped(stored, spread) if image else 0.0, look)


def voxel_hash(volume: Volume) -> str:
    """SHA-256 of shape, affine (to 1 µm) and float32 voxels in RAS order, x fastest: equal for copies in another file, axis order or scaling.

    Slabs of whole numbers are hashed as 16-bit integers, which takes half the time and tells as much.
    """
    turned, affine = turned_to_ras(volume.array, volume.affine)
    digest = _begin_hash(turned.shape, affine)
    for slab in _slabs(turned):
        _add_to_hash(digest, decoded_values(slab, 1.0, 0.0).reshape(-1, order="F"))
    return digest.hexdigest()


def decoded_values(stored: np.ndarray, slope: float, inter: float) -> Float[np.ndarray, "..."]:
    """Stored numbers as intensities, by the arithmetic of `Decoded.values`; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if slope == 1 and inter == 0:
            return stored.astype(np.float32, order="F", copy=False)
        wide = np.float64 if stored.dtype.itemsize > 2 else np.float32
        return (stored.astype(wide, order="F") * wide(slope) + wide(inter)).astype(np.float32, copy=False)


class _Moments:
    """Mean and standard deviation gathered slab by slab, about the first slab's mean so that large offsets cost no digits."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares, self.shift = 0, 0.0, 0.0, None
        self.nans = self.infinities = 0

    def add(self, flat: Float[np.ndarray, " n"]) -> None:
        if self.shift is None:
            first = float(flat.mean())
            self.shift = np.float32(first if math.isfinite(first) else 0.0)
        away = flat - self.shift
        self.count += flat.size
        self.sum += float(away.sum())
        self.squares += float(np.einsum("i,i->", away, away))

    def count_bad(self, flat: Float[np.ndarray, " n"]) -> None:
        nans = int(np.count_nonzero(np.isnan(flat)))
        self.nans += nans
        self.infinities += int(np.count_nonzero(~np.isfinite(flat))) - nans

    @property
    def mean(self) -> float:
        return self.sum / self.count + float(self.shift or 0.0)

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - (self.sum / self.count) ** 2))


def _summary(stored: np.ndarray, slope: float, inter: float, range_: list[float], moments: _Moments) -> dict[str, float | None]:
    flat = stored.reshape(-1, order="F")
    # An odd step meets every column of a volume whose sides are powers of two.
    some = decoded_values(flat[:: max(1, flat.size // SAMPLE) | 1], slope, inter)
    p01, p25, median, p75, p99 = quantiles(some, (0.01, 0.25, 0.5, 0.75, 0.99))
    facts = dict(zip(NAMES, (range_[0], p01, p25, median, p75, p99, range_[1], moments.mean, moments.std), strict=True))
    return {name: value if math.isfinite(value) else None for name, value in facts.items()}


def _slabs(turned: Shaped[np.ndarray, "x y z c"]) -> Iterator[np.ndarray]:
    """Slabs across z, then channel by channel: in the order of the file where that is x fastest."""
    depth = max(1, _SLAB // (turned.shape[0] * turned.shape[1]))
    for channel in range(turned.shape[3]):
        for start in range(0, turned.shape[2], depth):
            yield turned[:, :, start : start + depth, channel]


def _begin_hash(shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"]):
    digest = hashlib.sha256(np.asarray(shape, "<i8").tobytes())
    digest.update((np.round(affine, 3) + 0.0).astype("<f8").tobytes())
    return digest


def _add_to_hash(digest: Any, flat: Float[np.ndarray, " n"]) -> None:
    """Add a slab in the shortest form that holds its values; the form follows from the values alone, and is hashed with them."""
    with np.errstate(invalid="ignore"):
        whole = flat.astype("<i2") if np.array_equal(flat[:256], flat[:256].astype("<i2")) else None
    if whole is not None and np.array_equal(whole, flat):
        digest.update(b"i2")
        digest.update(whole.data)
    else:
        digest.update(b"f4")
        digest.update(np.ascontiguousarray(flat, "<f4").data)


def _wrapped(stored: np.ndarray, spread: float) -> float:
    if stored.dtype.kind not in "iu":
        return 0.0
    size = 2 ** (8 * stored.dtype.itemsize - 1)
    if spread <= size:
        return 0.0
    some = stored[:, :: max(1, stored.shape[1] // 32), :: max(1, stored.shape[2] // 32), 0].astype(np.float64)
    here, there = some[:-1], some[1:]
    body = (here != 0) & (there != 0)
    return float(np.mean(np.abs(here[body] - there[body]) > size)) if body.any() else 0.0
