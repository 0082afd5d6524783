"""A case becomes arrays: oriented, on the recipe's spacing, normalised, cropped to the body. Called by the store (with labels) and by
`infer` (without): one function, `apply_recipe`, does it for both.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxseg.data.anonymised import anonymised_voxels
from jaxseg.data.cases import Case
from jaxseg.data.intensity import body_mask, check_rule, own_foreground, scan_landmarks, tracer_foreground
from jaxseg.data.io import load_label, read_grid
from jaxseg.data.io.decoded import Rules, slices_of
from jaxseg.data.itk import correct_bias
from jaxseg.data.nyul import standard_scale
from jaxseg.data.recipe import IGNORE, Recipe
from jaxseg.data.recipe_guess import evenly_picked, guess_recipe
from jaxseg.data.scan_names import modalities_differ, modality, modality_of_file, only_pet
from jaxseg.data.skull import brain_mask
from jaxseg.data.stacking import channels_of, load_case, stack_case, stack_loaded
from jaxseg.data.volume import Grid, Volume, to_ras
from jaxseg.data.working_grid import Placed, body_on, place, resampled
from jaxseg.errors import GeometryError, InputError, ShapeError

__all__ = ["Prepared", "Recipe", "apply_recipe", "check_label", "guess_recipe", "learn_scales", "load_case", "prepare_case"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as training sees it; all arrays lie on `grid` (RAS). `present` says which channels the case has (absent ones are 0).

    `label` holds `i + 1` for `recipe.values[i]`, 0 for background, 255 for "ignore". `info` is JSON. `anonymised` says where voxels are that
    anonymisation took away, None where that is nowhere.
    """

    image: Float[np.ndarray, "x y z c"]
    label: UInt8[np.ndarray, "x y z"] | None
    mask: Bool[np.ndarray, "x y z"]
    grid: Grid
    present: Bool[np.ndarray, " c"]
    info: dict[str, Any]
    anonymised: Bool[np.ndarray, "x y z"] | None = None


def prepare_case(case: Case, recipe: Recipe) -> Prepared:
    """Load a case and bring image and label onto the recipe's grid.

    Channels on different grids are stacked onto the grid that the label was drawn on, or the first channel's.

    Raises:
        InputError: a file cannot be read, the case has none of the channels, or its label has values that the recipe does not name.
        GeometryError: the label lies on no channel's grid, or a mask of anonymised voxels lies beside the scan.

    A constant channel becomes 0 with a warning, and is named in `info["constant"]`; a case without a label all of whose channels are constant is
    an InputError.
    """
    volumes = load_case(case, recipe.channels)
    label = load_label(case.label, rules=case.rules) if case.label is not None and recipe.labels else None
    reference = 0 if label is None else _reference(case, [(volume.channels, volume.grid) for volume in volumes], label.grid)
    mapped = None if label is None else _map_values(case, label, recipe)
    del label
    try:
        stacked = stack_loaded(case, volumes, recipe, on=reference)
        if not recipe.defaced:
            volumes = []  # of several channels, a second copy of all
        placed, present = _apply(stacked, recipe, mapped)
    except ShapeError as error:
        raise InputError(f"case {case.id}: {error}") from None
    original = stacked.grid.describe()
    del stacked  # as large as what was made of it
    image, mask, grid, found = placed.image, placed.mask, placed.grid, placed.label
    if mapped is None and len(placed.constant) == present.sum():
        raise InputError(
            f"case {case.id}: every voxel has the same value ({', '.join(placed.constant)}): there is nothing to learn from it"
        )
    _warn_of(f"case {case.id}", placed.constant)
    info: dict[str, Any] = {"original": original, "body_ml": round(float(mask.sum() * grid.voxel_volume_ml), 2)}
    if placed.constant:
        info["constant"] = list(placed.constant)
    if mapped is not None and found is not None:
        info["label_ml"] = {str(value): _millilitres(mapped.array, i + 1, mapped.grid) for i, value in enumerate(recipe.values)}
        info["label_ml_prepared"] = {str(value): _millilitres(found, i + 1, grid) for i, value in enumerate(recipe.values)}
        info["label_empty"] = not bool(found.any())
        # A dark lesion may look like air; who contoured it knows better.
        labelled = (found > 0) & (found != IGNORE)
        if (outside := np.count_nonzero(labelled & ~mask)) > 0.01 * np.count_nonzero(labelled):
            info["label_outside_body"] = round(outside / np.count_nonzero(labelled), 4)
    anonymised = _anonymised(case, volumes, recipe, grid, reference)
    if anonymised is not None:
        info["anonymised_ml"] = round(float(np.count_nonzero(anonymised) * grid.voxel_volume_ml), 2)
    return Prepared(image, found, mask, grid, present, info, anonymised)


def check_label(case: Case, recipe: Recipe) -> None:
    """Refuse the label of a case that is tested on and never prepared, for what preparing it would be refused for.

    Channels that cannot be read are not judged here: segmenting the case says what is wrong with them.

    Raises:
        InputError: the label cannot be read, or has values that the recipe does not name (with counts).
        GeometryError: it lies on no channel's grid.
    """
    if case.label is None:
        return
    label = load_label(case.label, rules=case.rules)
    _places_of_values(case, *_counted(label.array), recipe)
    try:
        names = channels_of(case, recipe.channels)
        grids = [((name,), _grid_in_ras(case.images[name], case.rules)) for name in names]
    except InputError:
        return
    _reference(case, grids, label.grid)


def _grid_in_ras(path: Path, rules: Rules) -> Grid:
    grid = read_grid(path, rules)
    return to_ras(Volume(np.broadcast_to(np.uint8(0), (*grid.shape, 1)), grid.affine, ("voxels",))).grid


def _anonymised(case: Case, volumes: list[Volume], recipe: Recipe, grid: Grid, reference: int) -> Bool[np.ndarray, "x y z"] | None:
    # A registered channel no longer lies where it was loaded.
    looked = (volumes if not recipe.register else [volumes[reference]]) if recipe.defaced else []
    planes = [
        (Volume(scan.array[..., i : i + 1], scan.affine, (name,)), recipe.intensity[_place(name, recipe)])
        for scan in looked
        for i, name in enumerate(scan.channels)
    ]
    return anonymised_voxels(case, grid, [scan for scan, _ in planes], [rule for _, rule in planes])


def _place(name: str, recipe: Recipe) -> int:
    return 0 if len(recipe.channels) == 1 else [channel.lower() for channel in recipe.channels].index(name.lower())


def apply_recipe(
    volume: Volume, recipe: Recipe
) -> tuple[Float[np.ndarray, "x y z c"], Bool[np.ndarray, "x y z"], Grid, Bool[np.ndarray, " c"]]:
    """(image, mask, grid, present) of a loaded scan: RAS, the recipe's spacing and intensities, cropped to the body if it says so.

    Channels are matched by name (any case of letters); a single channel fits a recipe of one whatever its name, unless that states another
    modality. Missing ones become 0 and `present` False. A constant channel becomes 0 with a warning. Results on `grid` go back to the scan with `to_grid`.

    Raises:
        ShapeError: the scan has channels that the recipe does not know, or none that it does, or a lone one of another modality.
    """
    placed, present = _apply(volume, recipe, None)
    _warn_of(_name(volume), placed.constant)
    return placed.image, placed.mask, placed.grid, present


def _apply(volume: Volume, recipe: Recipe, label: Volume | None) -> tuple[Placed, Bool[np.ndarray, " c"]]:
    scan, places = _oriented(volume, recipe)
    placed = place(scan, places, lambda: _body(scan, places, recipe), label, recipe)
    return placed, np.array([number in places for number in range(len(recipe.channels))])


def _warn_of(name: str, constant: Sequence[str]) -> None:
    for channel in constant:
        warnings.warn(f"{name}: channel {channel} is constant; it becomes 0 everywhere", stacklevel=3)


def learn_scales(cases: Sequence[Case], recipe: Recipe, channels: Sequence[str], *, sample: int = 32) -> Recipe:
    """`recipe` with the rule "nyul" for `channels`, and their landmarks learnt from at most `sample` of the cases, evenly picked.

    Scans that cannot be read are passed over here (preparing them says what is wrong).

    Raises:
        InputError: a channel that no readable scan has, or that is constant in all of them.
    """
    plain = tuple("percentile" if name in channels else rule for name, rule in zip(recipe.channels, recipe.intensity))
    recipe = replace(recipe, intensity=plain, landmarks={})
    found: dict[str, list[np.ndarray]] = {name: [] for name in channels}
    for case in evenly_picked(cases, sample):
        try:
            scan, places = _oriented(stack_case(case, recipe), recipe)
            mask = _body(scan, places, recipe)
        except (InputError, ShapeError):
            continue
        volume = resampled(scan, recipe)
        mask = body_on(mask, scan, volume.grid)
        for plane, number in zip(np.moveaxis(volume.array, 3, 0), places, strict=True):
            if (name := recipe.channels[number]) in found:
                found[name].append(scan_landmarks(plane, mask))
    rules = tuple("nyul" if name in channels else rule for name, rule in zip(recipe.channels, recipe.intensity))
    return replace(recipe, intensity=rules, landmarks={name: list(standard_scale(marks)) for name, marks in found.items()})


def _oriented(volume: Volume, recipe: Recipe) -> tuple[Volume, list[int]]:
    """(scan in RAS without bias fields, the place in the recipe of each channel)."""
    places = _match(volume, recipe.channels)
    scan = to_ras(volume)
    rules = [recipe.intensity[place] for place in places]
    if recipe.n4:
        planes = [
            plane if check_rule(rule) else correct_bias(plane, own_foreground(plane, rule), scan.spacing)
            for plane, rule in zip(np.moveaxis(scan.array, 3, 0), rules, strict=True)
        ]
        scan = replace(scan, array=np.stack(planes, -1))
    return scan, places


def _body(scan: Volume, places: list[int], recipe: Recipe) -> Bool[np.ndarray, "x y z"]:
    """The body at the scan's own resolution, and not on the new grid: resampling blurs the edge of a constant background outwards."""
    rules = [recipe.intensity[place] for place in places]
    if only_pet([recipe.channels[place] for place in places]):
        mask = body_mask(tracer_foreground(scan.array[..., i]) for i in range(len(places)))
    else:
        mask = body_mask(own_foreground(scan.array[..., i], rule) for i, rule in enumerate(rules))
    return mask & _brain(scan, rules) if recipe.strip == "surface" else mask


def _brain(scan: Volume, rules: list[str]) -> Bool[np.ndarray, "x y z"]:
    magnetic = [i for i, rule in enumerate(rules) if check_rule(rule) is None]
    if not magnetic:
        raise InputError(f"{_name(scan)}: skull stripping needs a channel that is no CT; found {', '.join(scan.channels)}")
    return brain_mask(scan.array[..., magnetic[0]], scan.spacing)


def _name(volume: Volume) -> str:
    return ", ".join(path.name for path in volume.source.paths) if volume.source else "scan"


def _match(volume: Volume, wanted: tuple[str, ...]) -> list[int]:
    """The place in the recipe of each channel of the scan."""
    if len(volume.channels) == len(wanted) == 1:
        if modalities_differ(modality_of_file(volume.channels[0]), modality(wanted[0])):
            raise ShapeError(
                f"{_name(volume)}: its channel is called {volume.channels[0]}, and {wanted[0]} was expected; give a scan of that modality, or call the "
                f"channel {wanted[0]} if its name is wrong: load_volume({{{wanted[0]!r}: path}})"
            )
        return [0]
    place = {name.lower(): i for i, name in enumerate(wanted)}
    unknown = [name for name in volume.channels if name.lower() not in place]
    if unknown or not volume.channels or len({name.lower() for name in volume.channels}) < len(volume.channels):
        raise ShapeError(
            f"{_name(volume)}: {len(volume.channels)} channels called {', '.join(volume.channels)}, expected {len(wanted)} called "
            f"{', '.join(wanted)}; give one file per channel with its name"
        )
    return [place[name.lower()] for name in volume.channels]


def _reference(case: Case, channels: Sequence[tuple[Sequence[str], Grid]], label: Grid) -> int:
    """Which of a case's files (its channels and its grid) the label was drawn on."""
    offsets = [grid.offset_from(label) for _, grid in channels]
    nearest = int(np.argmin(offsets))
    if offsets[nearest] <= 0.1:
        return nearest
    grids = "; ".join(
        f"{', '.join(names)} on {grid.describe()}" + (f", corners {offset:.1f} voxels away" if np.isfinite(offset) else "")
        for (names, grid), offset in zip(channels, offsets, strict=True)
    )
    raise GeometryError(
        f"case {case.id}: the label {case.label} lies on {label.describe()}, but {grids}. "
        "Resample the label onto the scan it was drawn on (nearest neighbour), or mend the header that is wrong"
    )


def _map_values(case: Case, label: Volume, recipe: Recipe) -> Volume:
    """The label with `i + 1` for `recipe.values[i]` and 255 for "ignore", uint8; InputError for any other value."""
    values, counts = _counted(label.array)
    places = _places_of_values(case, values, counts, recipe)
    mapped = np.zeros_like(label.array, np.uint8)
    for value in values:
        mapped[label.array == value] = places[int(value)]
    return replace(label, array=mapped)


def _places_of_values(case: Case, values: np.ndarray, counts: np.ndarray, recipe: Recipe) -> dict[int, int]:
    """Label value on disk → value in prepared labels; InputError where a label has values that the recipe does not name."""
    places = {0: 0, **{value: i + 1 for i, value in enumerate(recipe.values)}}
    ignored = recipe.labels.get("ignore")
    places |= {} if ignored is None else dict.fromkeys([ignored] if isinstance(ignored, int) else ignored, IGNORE)
    strange = {int(value): int(count) for value, count in zip(values, counts, strict=True) if int(value) not in places}
    if strange:
        listed = ", ".join(f"{value} ({count:,} voxels)" for value, count in list(strange.items())[:10])
        raise InputError(
            f"case {case.id}: its label {case.label} has values that the recipe does not name: {listed}; "
            f"expected 0 and {', '.join(f'{name} = {value}' for name, value in recipe.labels.items())}"
        )
    return places


def _counted(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values there are, ascending, and how often."""
    slices = np.moveaxis(label, 2, 0)
    if label.dtype != np.uint8:
        found = [np.unique(part, return_counts=True) for part in slices]
        values, places = np.unique(np.concatenate([values for values, _ in found]), return_inverse=True)
        return values, np.bincount(places, weights=np.concatenate([counts for _, counts in found])).astype(np.int64)
    # Counting a slice at a time is faster than sorting, and needs no memory.
    counts = sum(np.bincount(part.ravel(order="K"), minlength=256) for part in slices)
    values = np.flatnonzero(counts)
    return values, np.asarray(counts)[values]


def _millilitres(label: np.ndarray, value: int, grid: Grid) -> float:
    return round(float(sum(np.count_nonzero(part == value) for (part,) in slices_of(label)) * grid.voxel_volume_ml), 4)
