"""A scan's look in half a kilobyte, by which near copies are found: the low spatial frequencies of the anatomy, wherever it lies in the file.

Called by `archive` (a column of the index), `staging` (an entry of a store) and `duplicates` (which compares them).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int8, Shaped

ORDERS = 8  # cosines an axis; 8³ − 1 coefficients
BYTES = ORDERS**3 - 1 + 3 * 4  # the coefficients as int8, then three float32: the anatomy's extent along x, y, z in mm
_SAMPLES = 64  # voxels an axis, at least, that are looked at where there are as many: coarser ones change when a plane is cropped
_MANY = 1 << 15  # voxels above which a quarter of them says where the percentiles are
_ONE_THREAD = 1 << 17  # multiplications; OpenBLAS starts threads above twice that
_FLOOR = 0.1  # share of the intensity range that counts as background, or noise in wide air would decide where the centre lies
_WIDTH = 4.5  # standard deviations that the cosines span


def fingerprint(array: Shaped[np.ndarray, "x y z"], spacing: tuple[float, float, float]) -> bytes | None:
    """The fingerprint of one channel: axes in RAS order, any intensity scale, spacing in mm. None where nothing stands out of the background.

    Intensities are taken between their 1st and 99th percentile, positions relative to the centre and spread of what is bright, so that other
    scaling, number type, compression, padding and a cropped margin change little. Coefficients are a discrete cosine transform evaluated at
    the voxels' own positions, whitened (amplitudes of images fall with frequency), and normalised.
    """
    steps = [max(1, n // _SAMPLES) for n in array.shape]
    some = array[tuple(slice((n - 1) % step // 2, None, step) for n, step in zip(array.shape, steps, strict=True))]
    weight = _weights(some)
    if weight is None:
        return None
    profiles, axes = _profiles(weight), _by_memory(weight)
    waves, extents = weight.transpose(axes), [0.0, 0.0, 0.0]
    for axis in reversed(axes):  # the slowest first: each turn brings the next one to the end
        place = np.arange(len(profiles[axis])) * (steps[axis] * spacing[axis])
        share = profiles[axis] / profiles[axis].sum()
        centre = float(share @ place)
        # A slab's own thickness counts, so that two slices have an extent as well.
        extents[axis] = float(np.sqrt(share @ (place - centre) ** 2 + (steps[axis] * spacing[axis]) ** 2 / 12))
        basis = _cosines((place - centre) / (_WIDTH * extents[axis]) + 0.5)
        waves = np.moveaxis(_contract(waves, basis), 2, 0)
    return _pack(waves.transpose(np.argsort(axes)), extents)


def fingerprints(array: Shaped[np.ndarray, "x y z c"], spacing: tuple[float, float, float]) -> bytes | None:
    """The fingerprints of all channels that have one, joined: a channel of this file may be a file of its own elsewhere. None where none has."""
    found = (fingerprint(array[..., channel], spacing) for channel in range(array.shape[3]))
    return b"".join(look for look in found if look is not None) or None


def split(joined: bytes) -> tuple[bytes, ...]:
    """The fingerprints that `fingerprints` joined; () of what no version of this library can have written."""
    if len(joined) % BYTES:
        return ()
    return tuple(joined[start : start + BYTES] for start in range(0, len(joined), BYTES))


def unpack(fingerprints: list[bytes]) -> tuple[Float[np.ndarray, "n w"], Float[np.ndarray, "n 3"]]:
    """(unit vectors, extents in mm) of fingerprints; the scalar product of two vectors is their likeness, from −1 to 1."""
    raw = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(len(fingerprints), BYTES)
    vectors = raw[:, :-12].view(np.int8).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors, np.ascontiguousarray(raw[:, -12:]).view("<f4").astype(np.float64)


def quantiles(values: Float[np.ndarray, " n"], shares: Sequence[float]) -> tuple[float, ...]:
    """What `numpy.quantile` gives, by a sort, which is several times faster for float32."""
    ordered = np.sort(values)
    places = [share * (len(ordered) - 1) for share in shares]
    pairs = [(float(ordered[math.floor(place)]), float(ordered[math.ceil(place)]), place % 1) for place in places]
    return tuple(low if low == high else low + (high - low) * part for low, high, part in pairs)


def _weights(some: Shaped[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"] | None:
    """Intensities from 0 (background) to 1, or None for a constant or non-finite array."""
    part = some[::2, ::2] if some.size > _MANY else some
    low, high = quantiles(part.astype(np.float32).ravel("K"), (0.01, 0.99))
    if not high > low:
        low, high = float(some.min()), float(some.max())
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return None
    weight = np.subtract(some, low + _FLOOR * (high - low), dtype=np.float32, casting="unsafe")
    weight *= np.float32(1 / (high - low))
    return np.clip(weight, 0, 1 - _FLOOR, out=weight)


def _by_memory(array: np.ndarray) -> tuple[int, ...]:
    """The axes from the fastest to the slowest: passes along the memory take a fraction of the time."""
    return tuple(sorted(range(3), key=lambda axis: array.strides[axis]))


def _profiles(weight: Float[np.ndarray, "x y z"]) -> list[Float[np.ndarray, " n"]]:
    """How much lies at each x, y and z."""
    fast, middle, slow = _by_memory(weight)
    columns, planes = weight.sum(slow, keepdims=True), weight.sum((fast, middle))
    found = {fast: columns.sum((middle, slow)), middle: columns.sum((fast, slow)), slow: planes}
    return [found[axis].astype(np.float64) for axis in range(3)]


def _cosines(u: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """cos(π k u) inside the window, zero outside."""
    inside = (u >= 0) & (u <= 1)
    return (np.cos(np.pi * np.outer(u, np.arange(ORDERS))) * inside[:, None]).astype(np.float32)


def _contract(array: Float[np.ndarray, "a b n"], basis: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "a b k"]:
    """The last axis against the basis, in products too small for BLAS to wake its threads, which other processes need."""
    flat = array.reshape(-1, len(basis), order="F")
    width = max(1, _ONE_THREAD // basis.size)
    parts = [flat[start : start + width] @ basis for start in range(0, len(flat), width)]
    return np.concatenate(parts).reshape(*array.shape[:2], basis.shape[1], order="F")


def _pack(waves: Float[np.ndarray, "k k k"], extents: list[float]) -> bytes:
    radius = np.sqrt(sum(k.astype(float) ** 2 for k in np.indices(waves.shape)))
    # The outline of a head is alike in all heads: the lowest waves are left out, and roots keep a few strong ones from deciding alone.
    flat = np.where(radius < 2.5, 0, waves * radius**2.5).reshape(-1)[1:]
    flat = np.sign(flat) * np.sqrt(np.abs(flat) / (np.abs(flat).max() + 1e-30))
    scaled: Int8[np.ndarray, " w"] = np.round(flat * 127).astype(np.int8)
    return scaled.tobytes() + np.asarray(extents, "<f4").tobytes()
