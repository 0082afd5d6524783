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
    weight = _weights(np.asarray(some, np.float32))
    if weight is None:
        return None
    places = [np.arange(n) * step * mm for n, step, mm in zip(weight.shape, steps, spacing, strict=True)]
    extents, bases = [], []
    for axis, place in enumerate(places):
        profile = weight.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
        centre = float(profile @ place / profile.sum())
        # A slab's own thickness counts, so that two slices have an extent as well.
        extent = float(np.sqrt(profile @ (place - centre) ** 2 / profile.sum() + (steps[axis] * spacing[axis]) ** 2 / 12))
        extents.append(extent)
        bases.append(_cosines((place - centre) / (_WIDTH * extent) + 0.5))
    waves = weight
    for basis in bases:  # x, then y, then z: each turn moves the next axis to the front
        waves = _contract(waves, basis)
    return _pack(waves, extents)


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


def _weights(some: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"] | None:
    """Intensities from 0 (background) to 1, or None for a constant or non-finite array."""
    low, high = quantiles(some.reshape(-1)[::3], (0.01, 0.99))
    if not high > low:
        low, high = float(some.min()), float(some.max())
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return None
    return np.clip((some - np.float32(low)) / np.float32(high - low), _FLOOR, 1) - np.float32(_FLOOR)


def _cosines(u: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """cos(π k u) inside the window, zero outside."""
    inside = (u >= 0) & (u <= 1)
    return (np.cos(np.pi * np.outer(u, np.arange(ORDERS))) * inside[:, None]).astype(np.float32)


def _contract(array: Float[np.ndarray, "n a b"], basis: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "a b k"]:
    """The array's first axis against the basis, in products too small for BLAS to wake its threads, which other processes need."""
    flat = array.reshape(len(basis), -1)
    width = max(1, _ONE_THREAD // basis.size)
    parts = [flat[:, start : start + width].T @ basis for start in range(0, flat.shape[1], width)]
    return np.concatenate(parts).reshape(*array.shape[1:], basis.shape[1])


def _pack(waves: Float[np.ndarray, "k k k"], extents: list[float]) -> bytes:
    radius = np.sqrt(sum(k.astype(float) ** 2 for k in np.indices(waves.shape)))
    # The outline of a head is alike in all heads: the lowest waves are left out, and roots keep a few strong ones from deciding alone.
    flat = np.where(radius < 2.5, 0, waves * radius**2.5).reshape(-1)[1:]
    flat = np.sign(flat) * np.sqrt(np.abs(flat) / (np.abs(flat).max() + 1e-30))
    scaled: Int8[np.ndarray, " w"] = np.round(flat * 127).astype(np.int8)
    return scaled.tobytes() + np.asarray(extents, "<f4").tobytes()
