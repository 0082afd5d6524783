"""`guess_recipe`: a recipe from the cases at hand. Called by `jaxseg prepare` and the main job, through `data.preprocess`."""

from collections.abc import Sequence

import numpy as np

from jaxseg.data.cases import Case, CaseSet
from jaxseg.data.io import load_label, load_volume, read_grid
from jaxseg.data.recipe import Recipe
from jaxseg.data.scan_names import modality
from jaxseg.data.structure_size import structure_size
from jaxseg.data.volume import Grid
from jaxseg.errors import InputError

_RULES = {"CT": "ct"}
THICK = 6  # voxels across the thinnest structure, at least, of a grid that is coarser than it needs to be
CROPS = 4  # in a scan, at least, of such a grid
SIZED = 8  # labels, at most, that say how large structures are


def guess_recipe(
    cases: CaseSet | Sequence[Case],
    *,
    max_voxels: int = 2**24,
    channels: Sequence[str] | None = None,
    sample: int = 64,
    crop: int | None = None,
    outlined: Sequence[Case] | None = None,
) -> Recipe:
    """A recipe from the cases at hand.

    Spacing: the median over cases on each axis (RAS), the finest axes made coarser until the median scan has at most `max_voxels`. With `crop`, voxels along
    a training crop's finest axis, they are made coarser still while a crop is shorter than the typical structure (`structure_size`), the thinnest one
    stays `THICK` voxels thick and the median scan holds more than `CROPS` crops (nnU-Net's bound: a crop that sees less than a quarter of a scan calls
    for a coarser grid; Isensee et al. 2021, 10.1038/s41592-020-01008-z). `outlined` are the cases whose labels say how large structures are: those
    trained on, where others are kept to test on; None for all.
    Intensity: "ct" where a channel's name says CT or its values go below -500, else "zscore". Labels: as declared by the layout,
    else `label_N` for every value N found. Channels: as found, but first the one that labels were drawn on, so that training and
    segmenting stack the others onto the same grid. Headers of at most `sample` cases are read, evenly picked, and every label file.

    Raises:
        InputError: no case, or none of them readable.
    """
    found = cases.cases if isinstance(cases, CaseSet) else tuple(cases)
    if not found:
        raise InputError("no cases were found, so no recipe can be derived; expected at least one scan")
    listed = tuple(
        channels or (cases.channels if isinstance(cases, CaseSet) else dict.fromkeys(name for case in found for name in case.images))
    )
    picked = evenly_picked(found, sample)
    names = listed if channels else _label_channel_first(picked, listed)
    grids = _readable_grids(picked, names)
    labels = (cases.labels if isinstance(cases, CaseSet) else None) or _labels_found(found)
    spacing = _spacing(grids, max_voxels)
    contoured = [case for case in (found if outlined is None else outlined) if case.label is not None]
    if crop is not None and (size := structure_size(evenly_picked(contoured, SIZED), labels)) is not None:
        wanted, coarsest = round(min(size.extent / crop, size.thickness / THICK), 3), _spacing(grids, min(max_voxels, CROPS * crop**3))
        x, y, z = (min(most, max(least, wanted)) for least, most in zip(spacing, coarsest))
        spacing = (x, y, z)
    return Recipe(
        channels=names,
        spacing=spacing,
        intensity=tuple(_rule(name, picked) for name in names),
        labels=labels,
        regions=isinstance(cases, CaseSet) and cases.regions,
    )


def evenly_picked(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` of the cases, first and last among them."""
    return [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int))]


def _ras(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(spacing, shape) along the world's axes."""
    order = np.argmax(np.abs(grid.affine[:3, :3] / grid.spacing), axis=0)
    spacing, shape = np.empty(3), np.empty(3)
    spacing[order], shape[order] = grid.spacing, grid.shape
    return spacing, shape


def _readable_grids(cases: Sequence[Case], names: Sequence[str]) -> list[Grid]:
    grids, reasons = [], []
    for case in cases:
        path = next((case.images[name] for name in names if name in case.images), None)
        if path is None:
            continue
        try:
            grids.append(read_grid(path, case.rules))
        except InputError as error:
            reasons.append(str(error))
    if not grids:
        reason = reasons[0] if reasons else f"no case has any of the channels {', '.join(names)}"
        raise InputError(f"none of {len(cases)} scans can be read; the first says: {reason}")
    return grids


def _spacing(grids: Sequence[Grid], max_voxels: int) -> tuple[float, float, float]:
    pairs = [_ras(grid) for grid in grids]
    spacing = np.median([spacing for spacing, _ in pairs], axis=0)
    extent = np.median([spacing * shape for spacing, shape in pairs], axis=0)
    low, high = float(spacing.min()), float(max(spacing.max(), extent.max()))
    if np.prod(extent / spacing) > max_voxels:
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if np.prod(extent / np.maximum(spacing, middle)) <= max_voxels else (middle, high)
        spacing = np.where(spacing < high, np.ceil(high * 1000) / 1000, spacing)
    x, y, z = (round(float(value), 4) for value in spacing)
    return x, y, z


def _label_channel_first(cases: Sequence[Case], names: tuple[str, ...]) -> tuple[str, ...]:
    for case in cases:
        if case.label is None:
            continue
        try:
            grid = read_grid(case.label, case.rules)
            first = next((name for name in names if name in case.images and read_grid(case.images[name], case.rules).same_as(grid)), None)
        except InputError:
            continue  # a broken case is reported when it is prepared; another one can answer here
        if first is not None:
            return (first, *(name for name in names if name != first))
    return names


def _rule(name: str, cases: Sequence[Case]) -> str:
    if stated := modality(name):
        return _RULES.get(stated, "zscore")
    for case in cases:
        if name not in case.images:
            continue
        names = case.packed or (name,)
        try:
            volume = load_volume(case.images[name], channels=names, rules=case.rules)
        except InputError:
            continue  # as above
        return "ct" if volume.array[..., names.index(name)].min() < -500 else "zscore"
    return "zscore"


def _labels_found(cases: Sequence[Case]) -> dict[str, int | list[int]]:
    values: set[int] = set()
    for case in cases:
        if case.label is None:
            continue
        try:
            values |= set(np.unique(load_label(case.label, rules=case.rules).array).tolist())
        except InputError:
            continue  # preparing the case says what is wrong with it, and lists it
    return {f"label_{value}": int(value) for value in sorted(values - {0})}
