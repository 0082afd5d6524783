"""A loaded scan in, labels on the scan's own grid out, as the model's card says. Users call `segment`, `infer.folder` calls it for many
scans."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.data.intensity import air_value
from jaxseg.data.io.decoded import refuse_single_slice
from jaxseg.data.preprocess import Recipe, apply_recipe
from jaxseg.data.volume import Grid, Volume, to_grid, to_ras
from jaxseg.errors import CheckpointError, InputError, ShapeError
from jaxseg.infer.window import sliding_window
from jaxseg.zoo import Model

BACKGROUND = "background"


def segment(
    model: Model, volume: Volume, *, overlap: float = 0.5, batch: int | None = None, allow_missing: bool = False, skip_air: bool = True
) -> Volume:
    """Label map of a scan, `(x, y, z, 1)` uint8 (uint16 for values above 255, int32 above 65535), on the scan's grid with axes in RAS+ order.

    Probabilities are resampled onto that grid linearly, one class at a time, and compared there. Labels have the values that the training
    labels had on disk. Regions are those above 0.5, larger ones (of more values) first and those within over them (see `region_values`).
    `save_volume(result, path, like=result.source)` writes them in the axis order of the file that the scan came from.

    Args: see `predict_probabilities`.
    """
    recipe = recipe_of_model(model)
    probabilities = predict_probabilities(model, volume, overlap=overlap, batch=batch, allow_missing=allow_missing, skip_air=skip_air)
    grid = to_ras(volume).grid
    values = region_values(recipe) if recipe.regions else (0, *recipe.values)
    paint = partial(_paint_regions, order=regions_outside_in(recipe)) if recipe.regions else _paint_classes
    label = np.zeros(grid.shape, _smallest_type(max(values, default=0)))
    paint(label, probabilities, grid, values)
    return Volume(label[..., None], grid.affine, ("label",), volume.source)


def _smallest_type(value: int) -> type[np.integer]:
    return next((kind for kind in (np.uint8, np.uint16) if value <= np.iinfo(kind).max), np.int32)


def predict_probabilities(
    model: Model, volume: Volume, *, overlap: float = 0.5, batch: int | None = None, allow_missing: bool = False, skip_air: bool = True
) -> Volume:
    """Probabilities on the network's grid (the card's spacing, cropped to the body): one channel a class, background first, or one a
    region.

    Args:
        model: a segmentation model; its card's recipe prepares the scan.
        volume: the scan, its channels called as the card calls them (a lone channel may be called anything but another modality).
        overlap: of neighbouring windows.
        batch: windows a call of the network, fewer where the device's memory does not suffice; None for one on a CPU and four elsewhere.
        allow_missing: channels that the scan lacks become 0, as in training, instead of being refused.
        skip_air: run no window that holds nothing but air; what no other window sees of it is background.

    Raises ShapeError for a scan whose channels do not fit, InputError for one of a single slice or that holds NaN or infinity, CheckpointError for a
    model whose card says no recipe, or whose answer is not finite.
    """
    recipe = recipe_of_model(model)
    _check_channels(volume, recipe, allow_missing)
    refuse_single_slice(volume.grid.shape, "the scan")
    if not _finite(volume.array):
        raise InputError("the scan holds NaN or infinite voxels, of which nothing can be segmented: replace them (by its air, say) first")
    image, mask, grid, present = apply_recipe(volume, recipe)
    names = tuple(recipe.classes) if recipe.regions else (BACKGROUND, *_class_names(recipe))
    probabilities = sliding_window(
        _network(model, recipe),
        image,
        window=model.card["crop"],
        num_classes=len(names),
        overlap=overlap,
        batch=windows_a_call(batch),
        mask=mask if skip_air else None,
        # A channel that the scan lacks is 0 all over, padding too, as in training.
        fill=[air_value(rule) if there else 0.0 for rule, there in zip(recipe.intensity, present)],
        outside=0.0 if recipe.regions else [1.0] + [0.0] * (len(names) - 1),
    )
    if not _finite(probabilities):
        # Compared with anything NaN is false, so that all of it would be written as background.
        raise CheckpointError(
            "the network's answer to this scan is not finite: its weights are damaged, or overflow on it; nothing was segmented. Train it again, or take "
            "another copy"
        )
    return Volume(probabilities, grid.affine, names, volume.source)


def _finite(array: np.ndarray) -> bool:
    """Whether no voxel is NaN or infinite, by their sum: an array of answers would take a quarter of the scan's memory, or of all its classes'."""
    with np.errstate(invalid="ignore"):  # both infinities
        return bool(np.isfinite(array.sum(dtype=np.float64)))


def windows_a_call(batch: int | None) -> int:
    """`batch`, or where it is None one on a CPU, whose cores a single window fills, and four elsewhere."""
    return batch if batch is not None else 1 if jax.default_backend() == "cpu" else 4


def region_values(recipe: Recipe) -> tuple[int, ...]:
    """The value that each region is written with, in the card's order: the first of its values that no region written after it holds.

    Regions are written in order of `regions_outside_in`. For nested ones that restores the labels: tumour (1, 2, 3), core (1, 3), enhancing (3)
    become 2, 1, 3, whichever of them the card names first.
    """
    regions = _regions(recipe)
    order = regions_outside_in(recipe)
    written = {}
    for place, i in enumerate(order):
        later = {value for other in order[place + 1 :] for value in regions[other]}
        written[i] = next((value for value in regions[i] if value not in later), regions[i][0])
    return tuple(written[i] for i in range(len(regions)))


def regions_outside_in(recipe: Recipe) -> list[int]:
    """In which order regions are written, as numbers of the card's: those of many values first, so that none covers another that lies within it."""
    regions = _regions(recipe)
    return sorted(range(len(regions)), key=lambda i: -len(set(regions[i])))


def _regions(recipe: Recipe) -> list[tuple[int, ...]]:
    return [(value,) if isinstance(value, int) else tuple(value) for name, value in recipe.labels.items() if name != "ignore"]


def recipe_of_model(model: Model) -> Recipe:
    """How the model's card says that a scan becomes an array; CheckpointError where it says nothing of it."""
    fields = model.card.get("recipe")
    if not isinstance(fields, dict) or not fields.get("labels") or not model.card.get("crop"):
        raise CheckpointError(
            "this model cannot segment: its card names no recipe with labels, or no crop; fine-tune it first (`jaxseg finetune`), "
            "or take a model folder that fine-tuning wrote"
        )
    if "objective" in model.card:
        raise CheckpointError(
            f"this is a pretrained network ({model.card['objective']}) that has learnt no labels yet: fine-tune it first "
            "(`jaxseg finetune … --init RUN`)"
        )
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return Recipe(**values)
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"the recipe in this model's card (model.json) cannot be read ({error}); it may be from another version: {model.card.get('versions')}"
        ) from None


def _check_channels(volume: Volume, recipe: Recipe, allow_missing: bool) -> None:
    if not isinstance(volume, Volume):
        raise InputError(f"{volume!r}: expected a Volume, as jaxseg.load_volume(path) or load_volume({{channel: path}}) gives it")
    given, wanted = len(volume.channels), len(recipe.channels)
    if given > wanted or (given < wanted and not allow_missing):
        raise ShapeError(
            f"the scan has {given} channel{'s' * (given != 1)} ({', '.join(volume.channels)}), but this model takes {wanted} "
            f"({', '.join(recipe.channels)}); load one file a channel: load_volume({{channel: path}})"
        )


def _class_names(recipe: Recipe) -> list[str]:
    """Label names in the order of the network's classes, which is that of the values."""
    by_class = {places[0]: name for name, places in recipe.classes.items() if places}
    return [by_class[i + 1] for i in range(len(recipe.values))]


@partial(jax.jit, static_argnames=("graph", "regions"))
def _forward(graph: Any, state: Any, x: jax.Array, spacing: jax.Array, regions: bool) -> jax.Array:
    logits = nnx.merge(graph, state)(x, spacing=spacing).astype(jnp.float32)
    return jax.nn.sigmoid(logits) if regions else jax.nn.softmax(logits)


def _network(model: Model, recipe: Recipe):
    """Windows → probabilities. Compiled once a window shape and architecture, whatever the number of scans."""
    graph, state = nnx.split(model.network)
    spacing = np.asarray([recipe.spacing], np.float32)
    return lambda x: _forward(graph, state, x, np.repeat(spacing, len(x), 0), recipe.regions)


def _paint_classes(label: np.ndarray, probabilities: Volume, grid: Grid, values: tuple[int, ...]) -> None:
    """The most probable class of every voxel; one class is resampled at a time, so that memory does not grow with their number."""
    best = _resampled(probabilities, 0, grid, outside=1.0)
    for i in range(1, len(values)):
        # Probabilities add up to 1, so one that stays below 1/k is nowhere the largest: nothing to resample.
        if probabilities.array[..., i].max() < 1 / len(values):
            continue
        candidate = _resampled(probabilities, i, grid, outside=0.0)
        wins = candidate > best
        label[wins] = values[i]
        best[wins] = candidate[wins]


def _paint_regions(label: np.ndarray, probabilities: Volume, grid: Grid, values: tuple[int, ...], *, order: Sequence[int]) -> None:
    for i in order:
        if probabilities.array[..., i].max() > 0.5:
            label[_resampled(probabilities, i, grid, outside=0.0) > 0.5] = values[i]


def _resampled(probabilities: Volume, channel: int, grid: Grid, outside: float) -> np.ndarray:
    one = replace(probabilities, array=probabilities.array[..., channel : channel + 1], channels=(probabilities.channels[channel],))
    return np.array(to_grid(one, grid, fill=outside).array[..., 0])
