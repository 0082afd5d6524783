"""One phantom case: a head drawn on a working lattice, perhaps with a tumour, then scanned on the grid asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxseg.data.phantom import anatomy, contrast, lesion
from jaxseg.data.phantom.shapes import Array, Lattice, separable
from jaxseg.errors import ConfigError

FIELD_MM = ((-90.0, 90.0), (-104.0, 108.0), (-76.0, 94.0))
WORKING_MM = 2.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """A made-up patient. Arrays are (x, y, z) in RAS+ voxel order; `affine` is voxel → RAS+ mm."""

    images: dict[str, Array]  # channel → float32
    label: Array  # uint8: 0 healthy, 1 necrosis, 2 oedema, 3 enhancing tumour
    affine: Array  # (4, 4) float64
    tissue: Array  # uint8, index into anatomy.TISSUES
    tumour: lesion.Tumour | None
    scanner: str


def _lattice(spacing: Sequence[float], field: Sequence[tuple[float, float]] = FIELD_MM) -> Lattice:
    shape = [max(2, round((high - low) / s)) for (low, high), s in zip(field, spacing)]
    origin = [low + s / 2 for (low, _), s in zip(field, spacing)]
    return Lattice((origin[0], origin[1], origin[2]), (spacing[0], spacing[1], spacing[2]), (shape[0], shape[1], shape[2]))


def _profile(new: Array, old: Array, thickness: float) -> Array:
    """(new, old) weights: linear interpolation averaged over a slice of `thickness` mm, which is the partial volume of thick slices."""
    step = float(old[1] - old[0])
    samples = max(1, round(2 * thickness / step))
    weights = np.zeros((len(new), len(old)), np.float32)
    for offset in (np.arange(samples) + 0.5) / samples - 0.5:
        where = np.clip((new + offset * thickness - old[0]) / step, 0, len(old) - 1)
        weights += np.clip(1 - np.abs(where[:, None] - np.arange(len(old))[None]), 0, None)
    return weights / np.float32(samples)


def _field_of_view(air: Array, lattice: Lattice, margin: float) -> list[tuple[float, float]]:
    """The box (mm) of the head and `margin` around it, within the working lattice."""
    head = air < 0.5
    box = []
    for axis, (low, high), step in zip(range(3), FIELD_MM, lattice.spacing):
        inside = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        box.append((max(low, low + inside[0] * step - margin), min(high, low + (inside[-1] + 1) * step + margin)))
    return box


def _label(parts: Array, matrices: list[Array], count: int) -> Array:
    """Labels on the new grid: the largest of the three parts in the `count` voxels that hold most tumour.

    Cutting at half a voxel instead would shrink small tumours, which blur as they are resampled.
    """
    fine = np.stack([separable(part, matrices) for part in parts])
    total = fine.sum(axis=0)
    cut = np.clip(np.partition(total.ravel(), -count)[-count], 0.2, 0.6)
    return np.where(total >= cut, np.argmax(fine, axis=0) + 1, 0).astype(np.uint8)


def make_case(
    seed: int | Sequence[int],
    *,
    spacing: Sequence[float] = (2.0, 2.0, 2.0),
    channels: Sequence[str] = contrast.CHANNELS,
    tumour: bool = True,
    scanner: str | None = None,
    working_mm: float = WORKING_MM,
) -> Phantom:
    """A brain-like head from a seed, the same to the bit for the same arguments.

    The anatomy depends on the seed alone: `tumour=False` gives the same person before the tumour. `scanner` is a name out of
    `contrast.SCANNERS`, drawn from the seed if None. `working_mm` is the lattice that the head is drawn on.

    Raises ConfigError for an unknown channel or scanner, or a spacing that is not three positive numbers.
    """
    _check(spacing, channels, scanner)
    person, growth, machine = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    lattice = _lattice((working_mm,) * 3)
    subject = anatomy.draw_subject(person)
    points = anatomy.canonical(person, subject, lattice)
    drawn = None
    if tumour:
        drawn = lesion.draw_tumour(growth, subject, points, lattice)
        points = lesion.push(drawn, subject, points, lattice)
    width = 1.1 * working_mm
    fractions, _ = anatomy.paint_subject(person, subject, points, lattice, width)
    target = _lattice(spacing, _field_of_view(fractions[anatomy.INDEX["air"]], lattice, float(machine.uniform(3, 12))))
    matrices = [_profile(new, old, s) for new, old, s in zip(target.axes(), lattice.axes(), spacing)]
    label = np.zeros(target.shape, np.uint8)
    if drawn is not None:
        parts = lesion.grow(drawn, growth, fractions, lattice, width)
        label = _label(parts, matrices, max(1, round(1000 * drawn.volume_ml / float(np.prod(spacing)))))
    chosen = contrast.scanner_named(scanner) if scanner else contrast.SCANNERS[machine.integers(len(contrast.SCANNERS))]
    signals = contrast.render(machine, chosen, fractions, lattice, drawn.enhancement if drawn else 0.0)
    images = {}
    for number, (name, signal) in enumerate(zip(contrast.CHANNELS, signals)):  # all of them, so that leaving one out changes no other
        scanned = separable(signal, matrices)
        images[name] = contrast.add_noise(machine, chosen, number, scanned, float(np.prod(spacing)) / 1000)
    nearest = [np.argmax(matrix, axis=1) for matrix in matrices]
    tissue = np.argmax(fractions, axis=0).astype(np.uint8)[np.ix_(*nearest)]
    return Phantom({name: images[name] for name in channels}, label, target.affine, tissue, drawn, chosen.name)


def _check(spacing: Sequence[float], channels: Sequence[str], scanner: str | None) -> None:
    unknown = [name for name in channels if name not in contrast.CHANNELS]
    if unknown or not channels:
        raise ConfigError(f"phantom channels {list(channels)}: choose among {', '.join(contrast.CHANNELS)}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ConfigError(f"phantom spacing {tuple(spacing)}: give three positive numbers, in mm along x, y and z")
    names = [known.name for known in contrast.SCANNERS]
    if scanner is not None and scanner not in names:
        raise ConfigError(f"phantom scanner {scanner!r}: choose among {', '.join(names)}")
