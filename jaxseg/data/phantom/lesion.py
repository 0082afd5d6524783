"""A glioma: where it grows, how it pushes the brain, and its necrosis, enhancing rim and oedema. Called by `case.py`."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from jaxseg.data.phantom import anatomy
from jaxseg.data.phantom.anatomy import INDEX
from jaxseg.data.phantom.shapes import Array, Lattice, Points, membership, smooth_noise

KINDS = ("glioblastoma", "glioblastoma", "glioblastoma", "solid", "low_grade", "metastasis")


@dataclass(frozen=True)
class Tumour:
    """One tumour before it is drawn: its centre in world mm, whole volume in ml, and the shares of its parts."""

    kind: str
    centre: tuple[float, float, float]
    volume_ml: float
    core: float  # share of the whole volume that is core
    necrosis: float  # share of the core that does not enhance
    rough: float
    enhancement: float
    stretch: tuple[float, float, float]

    @property
    def radius_mm(self) -> float:
        """Radius of a ball of the whole tumour's volume."""
        return float((self.volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))

    @property
    def core_radius_mm(self) -> float:
        """Radius of a ball of the core's volume."""
        return self.radius_mm * self.core ** (1 / 3)


def draw_tumour(rng: np.random.Generator, subject: anatomy.Subject, p: Points, lattice: Lattice) -> Tumour:
    """A random tumour in the cerebrum: whole volume log-uniform in 0.3-60 ml, centre below the cortex and beside the ventricles."""
    kind = KINDS[rng.integers(len(KINDS))]
    volume = float(np.exp(rng.uniform(np.log(0.3), np.log(60))))
    core, necrosis = {
        "glioblastoma": (rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.65)),
        "solid": (rng.uniform(0.35, 0.8), rng.uniform(0, 0.02)),
        "low_grade": (rng.uniform(0.3, 0.6), rng.uniform(0.9, 1.0)),
        "metastasis": (rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.5)),
    }[kind]
    inside = 5 + 0.35 * (volume * 240) ** (1 / 3)
    index = [rng.integers(0, n, 6000) for n in lattice.shape]
    there = tuple(q[index[0], index[1], index[2]] for q in p)
    lateral, midline = anatomy.ventricles(there, subject.ventricles)  # type: ignore[arg-type]
    allowed = (anatomy.cerebrum(there) < -inside) & (np.minimum(lateral, midline) > 3) & (anatomy.brain_stem(there) > 6)  # type: ignore[arg-type]
    allowed &= np.abs(there[0]) > 8
    chosen = int(np.flatnonzero(allowed)[0])
    centre = tuple(float(axis[i[chosen]]) for axis, i in zip(lattice.axes(), index))
    return Tumour(
        kind=kind,
        centre=(centre[0], centre[1], centre[2]),
        volume_ml=volume,
        core=float(core),
        necrosis=float(necrosis),
        rough=float(rng.uniform(0.18, 0.42) * (0.4 if kind == "metastasis" else 1)),
        enhancement=float(rng.uniform(0.45, 1.0)),
        stretch=tuple(np.exp(rng.normal(0, 0.18, 3)).tolist()),
    )


def _axis_offsets(tumour: Tumour, lattice: Lattice) -> list[Array]:
    return [axis - np.float32(c) for axis, c in zip(lattice.axes(), tumour.centre)]


def offsets(tumour: Tumour, lattice: Lattice) -> Points:
    """World offsets (mm) from the tumour's centre, broadcastable to the lattice."""
    x, y, z = _axis_offsets(tumour, lattice)
    return x[:, None, None], y[None, :, None], z[None, None, :]


def push(tumour: Tumour, subject: anatomy.Subject, p: Points, lattice: Lattice) -> Points:
    """Mass effect: the tissue around the core has moved outwards, less towards the skull, which does not move.

    A voxel at distance r of the centre shows what lay at r (1 - a exp(-r²/s²)): monotone for a < 1, so nothing folds over.
    """
    x, y, z = offsets(tumour, lattice)
    reach = 5 + 1.7 * tumour.core_radius_mm
    shift = 0.75 * np.exp(-(x * x + y * y + z * z) / reach**2) * np.clip(-anatomy.cerebrum(p) / 16, 0, 1)
    matrix = anatomy.canonical_matrix(subject).astype(np.float32)
    moved = [q - shift * (row[0] * x + row[1] * y + row[2] * z) for q, row in zip(p, matrix)]
    return moved[0], moved[1], moved[2]


def _cut(level: Array, allowed: Array, volume_ml: float, lattice: Lattice) -> float:
    """The threshold below which `level` holds `volume_ml` within `allowed`."""
    values = level[allowed]
    count = min(len(values) - 1, max(1, round(1000 * volume_ml / float(np.prod(lattice.spacing)))))
    return float(np.partition(values, count)[count])


def _main_piece(inside: Array, seed: tuple[int, ...]) -> Array:
    """The connected piece at `seed`, or the largest where the seed lies outside."""
    pieces, count = ndimage.label(inside)  # type: ignore[misc]
    if count <= 1:
        return inside
    pieces = np.asarray(pieces, np.int32)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    wanted = pieces[seed] or int(np.argmax(sizes))
    return pieces == wanted


def grow(tumour: Tumour, rng: np.random.Generator, fractions: Array, lattice: Lattice, width: float) -> Array:
    """Draw the tumour into `fractions` (in place); returns (3, x, y, z) float32 parts of necrosis, oedema and enhancing tumour.

    Core: a noise-warped ball that grows through cortex and white matter. Oedema: around it, cheap along white matter, dear in grey matter
    and impossible in fluid, so that it follows the tracts, spares the cortex and stops at the ventricles.
    """
    x, y, z = offsets(tumour, lattice)
    a, b, c = tumour.stretch
    distance = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    grey = fractions[INDEX["grey"]] + fractions[INDEX["deep"]] + fractions[INDEX["pallidum"]]
    tissue = fractions[INDEX["white"]] + fractions[INDEX["hyperintensity"]] + grey
    level, inside, cut = _core(tumour, rng, distance, tissue, lattice)
    core = membership(np.where(inside, level, np.maximum(level, cut + 0.2)) - cut, width)
    whole = np.maximum(_spread(tumour, rng, level - cut, inside, grey, tissue, lattice, 2 * width), core)
    dead = np.zeros_like(core)
    if tumour.necrosis > 0.02:
        radius = tumour.core_radius_mm
        inner = level + 1.75 * radius * tumour.rough * smooth_noise(rng, lattice, max(5.0, 0.7 * radius))
        inner_cut = _cut(inner, inside, tumour.volume_ml * tumour.core * tumour.necrosis, lattice)
        dead = membership(inner - inner_cut, width) * core
    parts = np.stack([dead, whole - core, core - dead])
    _replace(fractions, parts, distance / tumour.radius_mm)
    return parts


def _core(tumour: Tumour, rng: np.random.Generator, distance: Array, tissue: Array, lattice: Lattice) -> tuple[Array, Array, float]:
    """Level function (mm) of the core, the voxels inside it (one piece), and the level of its surface."""
    radius = tumour.core_radius_mm
    coarse = smooth_noise(rng, lattice, max(7.0, 1.1 * radius))
    fine = smooth_noise(rng, lattice, max(4.5, 0.4 * radius))
    level = distance + radius * tumour.rough * (coarse + 0.6 * fine) + 9 * np.clip(0.9 - tissue, 0, 1) * (distance > 0.35 * radius)
    allowed = (tissue > 0.35) | (distance < 0.5 * radius)
    cut = _cut(level, allowed, tumour.volume_ml * tumour.core, lattice)
    return level, _main_piece((level < cut) & allowed, _seed(tumour, lattice)), cut


def _spread(
    tumour: Tumour, rng: np.random.Generator, beyond: Array, core: Array, grey: Array, tissue: Array, lattice: Lattice, width: float
) -> Array:
    """Membership of the whole tumour; `beyond` is the distance (mm) beyond the core's surface."""
    radius = tumour.radius_mm
    noise = smooth_noise(rng, lattice, max(9.0, 0.9 * radius))
    level = np.maximum(beyond, 0) + radius * (0.4 * noise + 1.2 * grey) + 60 * np.clip(0.75 - tissue, 0, 1)
    level = np.where(core, -3 * radius, level)
    cut = _cut(level, (tissue > 0.35) | core, tumour.volume_ml, lattice)
    inside = _main_piece(level < cut, _seed(tumour, lattice))
    return membership(np.where(inside, level, cut + width) - cut, width)


def _seed(tumour: Tumour, lattice: Lattice) -> tuple[int, ...]:
    return tuple(int(np.argmin(np.abs(axis))) for axis in _axis_offsets(tumour, lattice))


def _replace(fractions: Array, parts: Array, distance: Array) -> None:
    """Put the tumour's parts in place of what was there; oedema lets the anatomy shine through, more so further out."""
    strength = np.clip(1.05 - 0.25 * distance, 0.45, 0.92)
    for name, part in (("necrosis", parts[0]), ("oedema", parts[1] * strength), ("enhancing", parts[2])):
        parts_left = 1 - part
        fractions *= parts_left
        fractions[INDEX[name]] += part
