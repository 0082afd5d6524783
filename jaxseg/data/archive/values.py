"""One pass over a scan's voxels: hash, range, moments, percentiles, non-finite count. Called by `scan_row`.

Voxels are converted slab by slab, so that a scan is never copied whole and each slab is in the cache for all that is asked of it.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from jaxseg.data.archive.background import find_box
from jaxseg.data.archive.turning import spacing_of, turned_to_ras
from jaxseg.data.fingerprint import fingerprints, quantiles
from jaxseg.data.io.decoded import Decoded
from jaxseg.data.volume import Volume

SAMPLE = 1 << 17  # voxels that percentiles are taken of
_SLAB = 1 << 17
_FORMS = (("u1", 0, 255), ("<i2", -32768, 32767))


@dataclass(frozen=True)
class Values:
    """What the voxels of a scan are. Percentiles come from an even subsample of about 130,000 voxels, all else from every voxel.

    Attributes:
        voxel_hash: see `voxel_hash`.
        nans, infinities: how many; the other numbers are None where there are any.
        wrapped: the share of neighbouring voxels, both not zero, that differ by more than half the range of their integer type.
        perceptual: the fingerprints of all channels, one after the other (`jaxseg.data.fingerprint.split`).
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
    hashing, moments = _Hash(turned, affine, head.slope, head.inter), _Moments()
    moments.add_equal(hashing.background, turned.size - hashing.inside.size)
    for flat, low, high in hashing.slabs():
        moments.add(flat, low, high)
    bad = moments.nans + moments.infinities
    summary = dict.fromkeys(NAMES) if bad else _summary(stored, head.slope, head.inter, moments)
    spread = (moments.high - moments.low) / abs(head.slope) if not bad else 0.0
    look = fingerprints(turned, spacing_of(affine)) if image and not bad else None
    return Values(hashing.hexdigest(), moments.nans, moments.infinities, summary, wrapped_share(stored, spread) if image else 0.0, look)


def voxel_hash(volume: Volume) -> str:
    """SHA-256 of shape, affine (to 1 µm) and float32 voxels in RAS order, x fastest: equal for copies in another file, axis order or scaling.

    Of the background (see `background`) only its value and the box that it leaves are hashed, and slabs of whole numbers as integers of 8 or
    16 bits, which takes a fraction of the time and tells as much.
    """
    turned, affine = turned_to_ras(volume.array, volume.affine)
    hashing = _Hash(turned, affine, 1.0, 0.0)
    for _ in hashing.slabs():
        pass
    return hashing.hexdigest()


def decoded_values(stored: np.ndarray, slope: float, inter: float) -> Float[np.ndarray, "..."]:
    """Stored numbers as intensities, by the arithmetic of `Decoded.values`; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if slope == 1 and inter == 0:
            return stored.astype(np.float32, order="F", copy=False)
        wide = np.float64 if stored.dtype.itemsize > 2 else np.float32
        return (stored.astype(wide, order="F") * wide(slope) + wide(inter)).astype(np.float32, copy=False)


class _Hash:
    """The hash of a scan, which is complete when its slabs have been gone through."""

    def __init__(self, turned: Shaped[np.ndarray, "x y z c"], affine: Float[np.ndarray, "4 4"], slope: float, inter: float) -> None:
        self._slope, self._inter, stored = slope, inter, turned.dtype
        self._plain = slope == 1 and inter == 0
        self._whole = self._plain and stored.kind in "iu" and stored.itemsize <= 2
        one_to_one = self._plain and (self._whole or stored == np.float32)
        box, value = find_box(turned, lambda part: decoded_values(part, slope, inter), one_to_one=one_to_one)
        self.background, self.inside = float(value), box.of(turned)
        self._digest = hashlib.sha256(np.asarray([*turned.shape, *box.low, *box.high], "<i8").tobytes())
        self._digest.update((np.round(affine, 3) + 0.0).astype("<f8").tobytes())
        self._digest.update(np.asarray(value + 0.0, "<f4").tobytes())

    def slabs(self) -> Iterator[tuple[Float[np.ndarray, " n"], float, float]]:
        """(intensities, smallest, largest) slab by slab of what is inside the box; NaN where there is any."""
        for slab in _slabs(self.inside):
            flat = decoded_values(slab, self._slope, self._inter).reshape(-1, order="F")
            low, high = float(flat.min()), float(flat.max())
            self._add(flat, low, high)
            yield flat, low, high

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _add(self, flat: Float[np.ndarray, " n"], low: float, high: float) -> None:
        """Add a slab in the shortest form that holds its values; the form follows from the values alone, and is hashed with them."""
        form = next((name for name, least, most in _FORMS if least <= low and high <= most), None)
        if form is not None and (self._whole or np.array_equal(flat[:256], flat[:256].astype(form))):
            short = flat.astype(form)
            if self._whole or np.array_equal(short, flat):
                self._digest.update(form.encode())
                self._digest.update(short.data)
                return
        self._digest.update(b"f4")
        self._digest.update(np.ascontiguousarray(flat, "<f4").data)


class _Moments:
    """Range, mean and standard deviation gathered slab by slab, about the first slab's mean so that large offsets cost no digits."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.nans = self.infinities = 0
        self._count, self._sum, self._squares = 0, 0.0, 0.0
        self._shift: np.float32 | None = None
        self._equal = (0.0, 0)

    def add_equal(self, value: float, count: int) -> None:
        """Add `count` voxels of one value."""
        self._equal = value, count
        if count:
            self.low = self.high = value
            if not math.isfinite(value):
                self.infinities += count  # NaN is never a background

    def add(self, flat: Float[np.ndarray, " n"], low: float, high: float) -> None:
        """Add a slab, of which the smallest and the largest value are known (NaN where there is any)."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is counted, not warned of
            if self._shift is None:
                first = float(flat.mean())
                self._shift = np.float32(first if math.isfinite(first) else 0.0)
            away = flat - self._shift
            self._sum += float(away.sum())
            self._squares += float(np.einsum("i,i->", away, away))
        self._count += flat.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            nans = int(np.count_nonzero(np.isnan(flat)))
            self.nans += nans
            self.infinities += int(np.count_nonzero(~np.isfinite(flat))) - nans

    def mean_and_std(self) -> tuple[float, float]:
        """Of all voxels, the background among them."""
        value, count = self._equal
        shift = value if self._shift is None else float(self._shift)
        total, away = self._count + count, value - shift
        mean = (self._sum + count * away) / total
        return mean + shift, math.sqrt(max(0.0, (self._squares + count * away * away) / total - mean * mean))


def _summary(stored: np.ndarray, slope: float, inter: float, moments: _Moments) -> dict[str, float | None]:
    flat = stored.reshape(-1, order="F")
    # An odd step meets every column of a volume whose sides are powers of two.
    some = decoded_values(flat[:: max(1, flat.size // SAMPLE) | 1], slope, inter)
    p01, p25, median, p75, p99 = quantiles(some, (0.01, 0.25, 0.5, 0.75, 0.99))
    facts = dict(zip(NAMES, (moments.low, p01, p25, median, p75, p99, moments.high, *moments.mean_and_std()), strict=True))
    return {name: value if math.isfinite(value) else None for name, value in facts.items()}


def _slabs(turned: Shaped[np.ndarray, "x y z c"]) -> Iterator[np.ndarray]:
    """Slabs across z, then channel by channel: in the order of the file where that is x fastest."""
    if not turned.size:
        return
    depth = max(1, _SLAB // (turned.shape[0] * turned.shape[1]))
    for channel in range(turned.shape[3]):
        for start in range(0, turned.shape[2], depth):
            yield turned[:, :, start : start + depth, channel]


def wrapped_share(stored: Shaped[np.ndarray, "x y z c"], spread: float) -> float:
    """The share of neighbours along x, both not zero, that differ by over half the range of their integer type (`spread`: maximum less minimum)."""
    if stored.dtype.kind not in "iu":
        return 0.0
    size = 2 ** (8 * stored.dtype.itemsize - 1)
    if spread <= size:
        return 0.0
    some = stored[:, :: max(1, stored.shape[1] // 32), :: max(1, stored.shape[2] // 32), 0]
    some = some.astype(np.int32 if stored.dtype.itemsize <= 2 else np.float64)
    here, there = some[:-1], some[1:]
    body = (here != 0) & (there != 0)
    count = np.count_nonzero(body)
    return float(np.count_nonzero((np.abs(here - there) > size) & body) / count) if count else 0.0
