"""A case becomes arrays: oriented, on the recipe's spacing, normalised, cropped to the body. Called by the store (with labels) and by
`infer` (without): one function, `apply_recipe`, does it for both.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxseg.data.cases import Case
from jaxseg.data.intensity import body_mask, check_rule, normalise, own_foreground, scan_landmarks
from jaxseg.data.io import load_label
from jaxseg.data.itk import correct_bias
from jaxseg.data.nyul import standard_scale
from jaxseg.data.recipe import IGNORE, Recipe, guess_recipe
from jaxseg.data.skull import brain_mask
from jaxseg.data.spline import resample_by_splines, sample_by_splines
from jaxseg.data.stacking import load_case, stack_case, stack_loaded
from jaxseg.data.volume import Grid, Volume, resample_to_spacing, to_grid, to_ras
from jaxseg.errors import GeometryError, InputError, ShapeError

__all__ = ["Prepared", "Recipe", "apply_recipe", "guess_recipe", "learn_scales", "load_case", "prepare_case"]

MARGIN = 3  # voxels kept around the body's box


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as training sees it; all arrays lie on `grid` (RAS). `present` says which channels the case has (absent ones are 0).

    `label` holds `i + 1` for `recipe.values[i]`, 0 for background, 255 for "ignore". `info` is JSON.
    """

    image: Float[np.ndarray, "x y z c"]
    label: UInt8[np.ndarray, "x y z"] | None
    mask: Bool[np.ndarray, "x y z"]
    grid: Grid
    present: Bool[np.ndarray, " c"]
    info: dict[str, Any]


def prepare_case(case: Case, recipe: Recipe) -> Prepared:
    """Load a case and bring image and label onto the recipe's grid.

    Channels on different grids are stacked onto the grid that the label was drawn on, or the first channel's.

    Raises:
        InputError: a file cannot be read, the case has none of the channels, or its label has values that the recipe does not name.
        GeometryError: the label lies on no channel's grid.
    """
    volumes = load_case(case, recipe.channels)
    label = load_label(case.label) if case.label is not None and recipe.labels else None
    reference = 0 if label is None else _reference(case, volumes, label)
    mapped = None if label is None else _map_values(case, label, recipe)
    try:
        stacked = stack_loaded(case, volumes, recipe, on=reference)
        image, mask, grid, present, found = _apply(stacked, recipe, mapped)
    except ShapeError as error:
        raise InputError(f"case {case.id}: {error}") from None
    info: dict[str, Any] = {"original": stacked.grid.describe(), "body_ml": round(float(mask.sum() * grid.voxel_volume_ml), 2)}
    if mapped is not None and found is not None:
        info["label_ml"] = {str(value): _millilitres(mapped.array, i + 1, mapped.grid) for i, value in enumerate(recipe.values)}
        info["label_ml_prepared"] = {str(value): _millilitres(found, i + 1, grid) for i, value in enumerate(recipe.values)}
        info["label_empty"] = not bool((found > 0).any())
    return Prepared(image, found, mask, grid, present, info)


def apply_recipe(
    volume: Volume, recipe: Recipe
) -> tuple[Float[np.ndarray, "x y z c"], Bool[np.ndarray, "x y z"], Grid, Bool[np.ndarray, " c"]]:
    """(image, mask, grid, present) of a loaded scan: RAS, the recipe's spacing and intensities, cropped to the body if it says so.

    Channels are matched by name (any case of letters); a single channel fits a recipe of one whatever its name. Missing ones
    become 0 and `present` False. A constant channel becomes 0 with a warning. Results on `grid` go back to the scan with `to_grid`.

    Raises:
        ShapeError: the scan has channels that the recipe does not know, or none that it does.
    """
    image, mask, grid, present, _ = _apply(volume, recipe, None)
    return image, mask, grid, present


def _apply(volume: Volume, recipe: Recipe, label: Volume | None):
    scan, places, mask = _oriented(volume, recipe)
    volume = _resample(scan, recipe)
    mask = _on_grid(mask, scan, volume.grid)
    planes = {place: volume.array[..., i] for i, place in enumerate(places)}
    found = None if label is None else _resample_label(label, scan, volume.grid, recipe)
    box = _box(mask if found is None else mask | (found > 0)) if recipe.crop else (slice(None),) * 3
    grid, mask = _cropped(volume.grid, box), np.ascontiguousarray(mask[box])
    image = np.zeros((*grid.shape, len(recipe.channels)), np.float32)
    for place, plane in planes.items():
        channel = recipe.channels[place]
        image[..., place], constant = normalise(plane[box], mask, recipe.intensity[place], recipe.landmarks.get(channel, ()))
        if constant:
            warnings.warn(f"{_name(volume)}: channel {channel} is constant; it becomes 0 everywhere", stacklevel=3)
    present = np.array([place in planes for place in range(len(recipe.channels))])
    return image, mask, grid, present, None if found is None else np.ascontiguousarray(found[box])


def learn_scales(cases: Sequence[Case], recipe: Recipe, channels: Sequence[str], *, sample: int = 32) -> Recipe:
    """`recipe` with the rule "nyul" for `channels`, and their landmarks learnt from at most `sample` of the cases, evenly picked.

    Scans that cannot be read are passed over here (preparing them says what is wrong).

    Raises:
        InputError: a channel that no readable scan has, or that is constant in all of them.
    """
    plain = tuple("percentile" if name in channels else rule for name, rule in zip(recipe.channels, recipe.intensity))
    recipe = replace(recipe, intensity=plain, landmarks={})
    found: dict[str, list[np.ndarray]] = {name: [] for name in channels}
    for i in np.unique(np.linspace(0, len(cases) - 1, min(sample, len(cases))).round().astype(int)):
        try:
            scan, places, mask = _oriented(stack_case(cases[i], recipe), recipe)
        except (InputError, ShapeError):
            continue
        volume = _resample(scan, recipe)
        mask = _on_grid(mask, scan, volume.grid)
        for plane, place in zip(np.moveaxis(volume.array, 3, 0), places, strict=True):
            if (name := recipe.channels[place]) in found:
                found[name].append(scan_landmarks(plane, mask))
    rules = tuple("nyul" if name in channels else rule for name, rule in zip(recipe.channels, recipe.intensity))
    return replace(recipe, intensity=rules, landmarks={name: list(standard_scale(marks)) for name, marks in found.items()})


def _oriented(volume: Volume, recipe: Recipe) -> tuple[Volume, list[int], Bool[np.ndarray, "x y z"]]:
    """(scan in RAS without bias fields, the place in the recipe of each channel, the body): all at the scan's own resolution."""
    places = _match(volume, recipe.channels)
    scan = to_ras(volume)
    rules = [recipe.intensity[place] for place in places]
    if recipe.n4:
        planes = [
            plane if check_rule(rule) else correct_bias(plane, own_foreground(plane, rule), scan.spacing)
            for plane, rule in zip(np.moveaxis(scan.array, 3, 0), rules, strict=True)
        ]
        scan = replace(scan, array=np.stack(planes, -1))
    # Found here and not on the new grid: resampling blurs the edge of a constant background outwards.
    mask = body_mask([own_foreground(scan.array[..., i], rule) for i, rule in enumerate(rules)])
    if recipe.strip == "surface":
        mask = mask & _brain(scan, rules)
    return scan, places, mask


def _brain(scan: Volume, rules: list[str]) -> Bool[np.ndarray, "x y z"]:
    magnetic = [i for i, rule in enumerate(rules) if check_rule(rule) is None]
    if not magnetic:
        raise InputError(f"{_name(scan)}: skull stripping needs a channel that is no CT; found {', '.join(scan.channels)}")
    return brain_mask(scan.array[..., magnetic[0]], scan.spacing)


def _resample(scan: Volume, recipe: Recipe) -> Volume:
    resample = resample_by_splines if recipe.resampling == "nnunet" else resample_to_spacing
    return resample(scan, recipe.spacing)


def _resample_label(label: Volume, scan: Volume, grid: Grid, recipe: Recipe) -> UInt8[np.ndarray, "x y z"]:
    label = to_ras(label)
    # A label drawn on the scan's grid goes the image's way; any other one by world coordinates.
    along = recipe.resampling == "nnunet" and label.grid.same_as(scan.grid)
    return (sample_by_splines(label, grid, labels=True) if along else to_grid(label, grid, labels=True)).array[..., 0]


def _on_grid(mask: Bool[np.ndarray, "x y z"], scan: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    if grid is scan.grid:
        return mask
    share = to_grid(Volume(mask[..., None].astype(np.float32), scan.affine, ("body",)), grid, fill=0.0).array[..., 0]
    return share > 0.5 if (share > 0.5).any() else np.ones(grid.shape, bool)


def _name(volume: Volume) -> str:
    return ", ".join(path.name for path in volume.source.paths) if volume.source else "scan"


def _match(volume: Volume, wanted: tuple[str, ...]) -> list[int]:
    """The place in the recipe of each channel of the scan."""
    if len(volume.channels) == len(wanted) == 1:
        return [0]
    place = {name.lower(): i for i, name in enumerate(wanted)}
    unknown = [name for name in volume.channels if name.lower() not in place]
    if unknown or not volume.channels or len({name.lower() for name in volume.channels}) < len(volume.channels):
        raise ShapeError(
            f"{_name(volume)}: {len(volume.channels)} channels called {', '.join(volume.channels)}, expected {len(wanted)} called "
            f"{', '.join(wanted)}; give one file per channel with its name"
        )
    return [place[name.lower()] for name in volume.channels]


def _reference(case: Case, volumes: list[Volume], label: Volume) -> int:
    """The volume whose grid the label was drawn on."""
    offsets = [volume.grid.offset_from(label.grid) for volume in volumes]
    nearest = int(np.argmin(offsets))
    if offsets[nearest] <= 0.1:
        return nearest
    grids = "; ".join(
        f"{', '.join(volume.channels)} on {volume.grid.describe()}" + (f", corners {offset:.1f} voxels away" if np.isfinite(offset) else "")
        for volume, offset in zip(volumes, offsets, strict=True)
    )
    raise GeometryError(
        f"case {case.id}: the label {case.label.name if case.label else ''} lies on {label.grid.describe()}, but {grids}. "
        "Resample the label onto the scan it was drawn on (nearest neighbour), or mend the header that is wrong"
    )


def _map_values(case: Case, label: Volume, recipe: Recipe) -> Volume:
    """The label with `i + 1` for `recipe.values[i]` and 255 for "ignore", uint8; InputError for any other value."""
    values, counts = np.unique(label.array, return_counts=True)
    places = {0: 0, **{value: i + 1 for i, value in enumerate(recipe.values)}}
    ignored = recipe.labels.get("ignore")
    places |= {} if ignored is None else dict.fromkeys([ignored] if isinstance(ignored, int) else ignored, IGNORE)
    strange = {int(value): int(count) for value, count in zip(values, counts, strict=True) if int(value) not in places}
    if strange:
        listed = ", ".join(f"{value} ({count:,} voxels)" for value, count in list(strange.items())[:10])
        raise InputError(
            f"case {case.id}: its label {case.label.name if case.label else ''} has values that the recipe does not name: {listed}; "
            f"expected 0 and {', '.join(f'{name} = {value}' for name, value in recipe.labels.items())}"
        )
    table = np.array([places[int(value)] for value in values], np.uint8)
    return replace(label, array=table[np.searchsorted(values, label.array)])


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(where[0]) - MARGIN), min(mask.shape[axis], int(where[-1]) + 1 + MARGIN)))
    return tuple(box)


def _cropped(grid: Grid, box: tuple[slice, ...]) -> Grid:
    starts, ends, _ = zip(*(part.indices(size) for part, size in zip(box, grid.shape, strict=True)), strict=True)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(starts, float)
    x, y, z = (end - start for start, end in zip(starts, ends, strict=True))
    return Grid((x, y, z), affine)


def _millilitres(label: np.ndarray, value: int, grid: Grid) -> float:
    return round(float(np.count_nonzero(label == value) * grid.voxel_volume_ml), 4)
