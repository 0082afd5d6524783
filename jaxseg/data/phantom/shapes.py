"""Level functions (mm, negative inside), soft membership and smooth random fields: what the phantom's anatomy and tumours are drawn with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.sparse import csr_array

Array = np.ndarray
Points = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Lattice:
    """An axis-aligned RAS+ grid: voxel (0, 0, 0) lies at `origin` mm, neighbours `spacing` mm apart."""

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]

    def axes(self) -> list[Array]:
        """The world coordinates along each axis, float32 mm."""
        return [(o + s * np.arange(n)).astype(np.float32) for o, s, n in zip(self.origin, self.spacing, self.shape)]

    @property
    def affine(self) -> Array:
        """(4, 4) float64, voxel → RAS+ mm."""
        matrix = np.diag([*self.spacing, 1.0])
        matrix[:3, 3] = self.origin
        return matrix


def ellipsoid(p: Points, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """First-order distance (mm) to an ellipsoid: exact on its surface, of the right sign everywhere."""
    a, b, c = ((q - m) / r for q, m, r in zip(p, centre, radii))
    rho = np.sqrt(a * a + b * b + c * c)
    slope = np.sqrt((a / radii[0]) ** 2 + (b / radii[1]) ** 2 + (c / radii[2]) ** 2)
    return (rho - 1) * rho / np.maximum(slope, 1e-6)


def tube(p: Points, knots: Sequence[tuple[float, float, float, float]]) -> Array:
    """Distance (mm) to a chain of cones through `knots` (x, y, z, radius)."""
    best: Array | None = None
    for (ax, ay, az, ar), (bx, by, bz, br) in pairwise(knots):
        dx, dy, dz = bx - ax, by - ay, bz - az
        qx, qy, qz = p[0] - ax, p[1] - ay, p[2] - az
        t = np.clip((qx * dx + qy * dy + qz * dz) / (dx * dx + dy * dy + dz * dz), 0, 1)
        distance = np.sqrt((qx - t * dx) ** 2 + (qy - t * dy) ** 2 + (qz - t * dz) ** 2) - (ar + t * (br - ar))
        best = distance if best is None else np.minimum(best, distance)
    assert best is not None
    return best


def blend(a: Array, b: Array, k: float) -> Array:
    """Union of two level functions, rounded over `k` mm where they meet."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * (k / 4)


def membership(level: Array, width: float) -> Array:
    """The part of a voxel inside a surface: 1 at depth width/2, 0 at that distance outside, linear between (partial volume)."""
    return np.clip(0.5 - level / width, 0, 1).astype(np.float32)


def _spline_basis(size: int, knots: int) -> Array:
    """(size, knots) weights of uniform cubic B-splines whose centres span the axis."""
    t = np.abs(np.linspace(0.5, knots - 1.5, size)[:, None] - np.arange(knots)[None])
    inner = 2 / 3 - t**2 + t**3 / 2
    outer = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, inner, outer).astype(np.float32)


def separable(values: Array, matrices: list[Array]) -> Array:
    """Apply one banded matrix (new, old) along each of the three axes.

    Sparse, not BLAS: its last bit depends on the number of threads, and the same seed must give the same bytes on any number of cores.
    """
    for matrix in matrices:
        shape = values.shape
        turned = csr_array(matrix) @ values.reshape(shape[0], -1)
        values = np.moveaxis(turned.reshape(-1, *shape[1:]), 0, -1)  # the axis worked on goes last, so three turns restore the order
    return np.ascontiguousarray(values)


def smooth_noise(rng: np.random.Generator, lattice: Lattice, scale: float) -> Array:
    """A Gaussian random field of about unit variance whose bumps are some `scale` mm apart, float32 of the lattice's shape."""
    extents = [n * s for n, s in zip(lattice.shape, lattice.spacing)]
    knots = [max(4, int(np.ceil(e / scale)) + 2) for e in extents]
    values = rng.standard_normal(knots, dtype=np.float32)
    bases = [_spline_basis(n, k) for n, k in zip(lattice.shape, knots)]
    return separable(values, bases) * np.float32(3.0)


class Labyrinth:
    """Winding sheets some `wavelength`/2 mm apart: the zero set of a random wave of one wavelength, periodic in space.

    Such a zero set winds like the folds of the cortex: long, branching, evenly spaced, never the same twice.
    """

    def __init__(self, rng: np.random.Generator, wavelength: float, size: int = 64, step: float = 2.0) -> None:
        frequency = np.fft.fftfreq(size, step)
        k = [f.astype(np.float32) for f in np.meshgrid(frequency, frequency, np.fft.rfftfreq(size, step), indexing="ij")]
        radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
        band = np.exp(-(((radius * wavelength - 1) / 0.22) ** 2))
        spectrum = np.fft.rfftn(rng.standard_normal((size,) * 3)) * band
        wave = np.fft.irfftn(spectrum)
        slope2 = sum(np.fft.irfftn(2j * np.pi * q * spectrum) ** 2 for q in k)
        # where the wave is flat its zero set would swell into blobs: the floor on the slope keeps the sheets thin
        self.distance = (wave / np.sqrt(slope2 + 0.15 * np.mean(slope2))).astype(np.float32)
        self.step = step

    def __call__(self, p: Points) -> Array:
        """Signed distance (about mm) from points (mm) to the nearest sheet."""
        coordinates = np.stack([q / self.step for q in p])
        return map_coordinates(self.distance, coordinates, order=1, mode="grid-wrap", prefilter=False)
