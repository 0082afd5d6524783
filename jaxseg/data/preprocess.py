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
from jaxseg.data.intensity import body_mask, normalise, own_foreground
from jaxseg.data.io import load_label, load_volume
from jaxseg.data.recipe import IGNORE, Recipe, guess_recipe
from jaxseg.data.volume import Grid, Volume, resample_to_spacing, stack_channels, to_grid, to_ras
from jaxseg.errors import GeometryError, InputError, ShapeError

__all__ = ["Prepared", "Recipe", "apply_recipe", "guess_recipe", "load_case", "prepare_case"]

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
        stacked = stack_channels(volumes, on=reference)
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


def load_case(case: Case, channels: Sequence[str]) -> list[Volume]:
    """Those of `channels` that the case has, one volume per file, in the order of `channels`; `stack_channels` puts them on one grid.

    Raises:
        InputError: the case has none of them, or a file cannot be read.
    """
    spelled = {name.lower(): name for name in case.images}
    wanted = [spelled[name.lower()] for name in channels if name.lower() in spelled]
    if len(channels) == len(case.images) == 1:
        wanted = list(case.images)
    if not wanted:
        raise InputError(f"case {case.id}: has {', '.join(case.images)}, none of the recipe's channels {', '.join(channels)}")
    if not case.packed:
        return [load_volume(case.images[name], channels=[name]) for name in wanted]
    volume = load_volume(case.images[wanted[0]], channels=case.packed)
    kept = [case.packed.index(name) for name in wanted]
    return [replace(volume, array=volume.array[..., kept], channels=tuple(wanted))]


def _apply(volume: Volume, recipe: Recipe, label: Volume | None):
    places = _match(volume, recipe.channels)
    scan = to_ras(volume)
    volume = resample_to_spacing(scan, recipe.spacing)
    mask = _body(scan, volume.grid, [recipe.intensity[place] for place in places])
    planes = {place: volume.array[..., i] for i, place in enumerate(places)}
    found = None if label is None else to_grid(label, volume.grid, labels=True).array[..., 0]
    box = _box(mask if found is None else mask | (found > 0)) if recipe.crop else (slice(None),) * 3
    grid, mask = _cropped(volume.grid, box), np.ascontiguousarray(mask[box])
    image = np.zeros((*grid.shape, len(recipe.channels)), np.float32)
    for place, plane in planes.items():
        image[..., place], constant = normalise(plane[box], mask, recipe.intensity[place])
        if constant:
            warnings.warn(f"{_name(volume)}: channel {recipe.channels[place]} is constant; it becomes 0 everywhere", stacklevel=3)
    present = np.array([place in planes for place in range(len(recipe.channels))])
    return image, mask, grid, present, None if found is None else np.ascontiguousarray(found[box])


def _body(scan: Volume, grid: Grid, rules: list[str]) -> Bool[np.ndarray, "x y z"]:
    """The body on `grid`, found at the scan's own resolution: resampling blurs the edge of a constant background outwards."""
    mask = body_mask([own_foreground(scan.array[..., i], rule) for i, rule in enumerate(rules)])
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
