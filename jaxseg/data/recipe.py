"""`Recipe`: how a scan becomes an array, as JSON in cards and stores; and `guess_recipe`, which derives one from the cases at hand.

`preprocess` applies a recipe; this module reads headers, labels and a few scans, but makes no array.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cases import Case, CaseSet
from jaxseg.data.intensity import check_rule
from jaxseg.data.io import load_label, load_volume, read_grid
from jaxseg.data.layouts import modality
from jaxseg.data.nyul import check_scale
from jaxseg.data.volume import Grid
from jaxseg.errors import ConfigError, InputError

IGNORE = 255
RESAMPLING = ("linear", "nnunet")
STRIPPING = ("", "mask", "surface")
REGISTRATION = ("", "rigid", "affine")
_RULES = {"CT": "ct"}
# Fields that came later count in a case's hash only where they are set, so that stores made before stay valid.
_LATER = ("resampling", "landmarks", "strip", "n4", "register")


@dataclass(frozen=True)
class Recipe:
    """How a scan becomes an array: the same for training and for segmenting.

    Attributes:
        channels: names in the order of the array's last axis.
        spacing: mm along x, y, z of the array.
        intensity: one rule a channel: "zscore", "percentile", "nyul", "ct" or "ct:LOW:HIGH" (see `intensity.normalise`).
        orientation: of the array's axes; RAS is the only one.
        crop: whether the array ends at the body's box.
        labels: name → value in the label files, or values of a region; a label called "ignore" is left out of training.
        regions: whether labels are overlapping regions.
        resampling: "linear" (low-pass filtered where voxels get coarser) or "nnunet" (`spline`: cubic, a coarse axis by itself).
        landmarks: for each channel with the rule "nyul", the scale that its histogram is matched to (`nyul.standard_scale`).
        strip: "" keeps the whole head; "mask" keeps what the case's own brain mask holds; "surface" finds the brain (`skull.brain_mask`).
        n4: whether each channel that is no CT is freed of its bias field first (`itk.correct_bias`).
        register: "" trusts the scanner's frame; "rigid" or "affine" lays every channel over the one that labels were drawn on.
    """

    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    intensity: tuple[str, ...]
    orientation: str = "RAS"
    crop: bool = True
    labels: dict[str, int | list[int]] = field(default_factory=dict)
    regions: bool = False
    resampling: str = "linear"
    landmarks: dict[str, list[float]] = field(default_factory=dict)
    strip: str = ""
    n4: bool = False
    register: str = ""

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) != len(self.channels):
            raise ConfigError(f"recipe: channels {self.channels} must be different names, at least one")
        if len(self.intensity) != len(self.channels):
            raise ConfigError(f"recipe: {len(self.intensity)} intensity rules for {len(self.channels)} channels; expected one each")
        for rule in self.intensity:
            check_rule(rule)
        if len(self.spacing) != 3 or not all(np.isfinite(value) and value > 0 for value in self.spacing):
            raise ConfigError(f"recipe: spacing {self.spacing} must be three positive numbers in mm")
        if self.orientation != "RAS":
            raise ConfigError(f"recipe: orientation {self.orientation!r}; arrays are always RAS")
        for name, known in (("resampling", RESAMPLING), ("strip", STRIPPING), ("register", REGISTRATION)):
            if getattr(self, name) not in known:
                raise ConfigError(f"recipe: {name} is {getattr(self, name)!r}; choose among {', '.join(map(repr, known))}")
        for channel, rule in zip(self.channels, self.intensity):
            if rule == "nyul":
                check_scale(channel, self.landmarks.get(channel, ()))
        if any(not isinstance(value, int) for value in self.labels.values()) and not self.regions:
            raise ConfigError("recipe: a label with several values is a region; set regions=True")
        if len(self.values) >= IGNORE or any(value < 0 for value in self.values):
            raise ConfigError(f"recipe: label values must be positive, at most {IGNORE - 1} different ones; found {self.values}")

    def content(self) -> dict[str, Any]:
        """What decides the arrays, as JSON data: the part of a recipe that a case's hash covers."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or (value and value != "linear")}

    @property
    def values(self) -> tuple[int, ...]:
        """The distinct label values on disk, ascending, without 0 and "ignore": `values[i]` is `i + 1` in prepared labels."""
        listed = [value for name, value in self.labels.items() if name != "ignore"]
        flat = {number for value in listed for number in ([value] if isinstance(value, int) else value)}
        return tuple(sorted(flat - {0}))

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Label name → the values it has in prepared labels (one each, several for a region)."""
        place = {value: i + 1 for i, value in enumerate(self.values)}
        named = {name: value for name, value in self.labels.items() if name != "ignore"}
        return {
            name: tuple(place[number] for number in ([value] if isinstance(value, int) else value) if number in place)
            for name, value in named.items()
        }


def guess_recipe(
    cases: CaseSet | Sequence[Case], *, max_voxels: int = 2**24, channels: Sequence[str] | None = None, sample: int = 64
) -> Recipe:
    """A recipe from the cases at hand.

    Spacing: the median over cases on each axis (RAS), the finest axes made coarser until the median scan has at most `max_voxels`.
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
    picked = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(sample, len(found))).round().astype(int))]
    names = listed if channels else _label_channel_first(picked, listed)
    grids = _readable_grids(picked, names)
    declared = cases.labels if isinstance(cases, CaseSet) else None
    return Recipe(
        channels=names,
        spacing=_spacing(grids, max_voxels),
        intensity=tuple(_rule(name, picked) for name in names),
        labels=declared or _labels_found([case.label for case in found if case.label is not None]),
        regions=isinstance(cases, CaseSet) and cases.regions,
    )


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
            grids.append(read_grid(path))
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
            grid = read_grid(case.label)
            first = next((name for name in names if name in case.images and read_grid(case.images[name]).same_as(grid)), None)
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
            volume = load_volume(case.images[name], channels=names)
        except InputError:
            continue  # as above
        return "ct" if volume.array[..., names.index(name)].min() < -500 else "zscore"
    return "zscore"


def _labels_found(paths: Sequence[Path]) -> dict[str, int | list[int]]:
    values: set[int] = set()
    for path in paths:
        try:
            values |= set(np.unique(load_label(path).array).tolist())
        except InputError:
            continue  # preparing the case says what is wrong with it, and lists it
    return {f"label_{value}": int(value) for value in sorted(values - {0})}
