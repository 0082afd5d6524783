"""A scan whose body is known, brought onto the recipe's spacing, cropped and normalised, in either order of these steps. Called by `preprocess`.

"linear" resamples by world coordinates and normalises what came out; "nnunet" keeps nnU-Net's order: crop, normalise, resample (Isensee et al.,
Nat. Methods 18, 2021). Memory: beside the scan only the result, and a few slices at a time. Hence masks and labels are views of what they are
cut from, and the body is found here, by the caller's function: nobody else holds it then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxseg.data.intensity import Normaliser, bounding_box, normaliser
from jaxseg.data.recipe import Recipe
from jaxseg.data.separable import Change
from jaxseg.data.spline import sample_by_splines, spline_channel, stretched_grid
from jaxseg.data.volume import Grid, Volume, resample_to_spacing, sample_channel, spacing_grid, to_grid, to_ras

Body = Callable[[], Bool[np.ndarray, "x y z"]]
MARGIN = 3  # voxels kept around the body's box
_SLICES = 8  # normalised together


@dataclass(frozen=True, eq=False)
class Placed:
    """A scan on its working grid, channels in the recipe's order; `constant` names those that had a single value and are 0 now."""

    image: Float[np.ndarray, "x y z c"]
    mask: Bool[np.ndarray, "x y z"]
    label: UInt8[np.ndarray, "x y z"] | None
    grid: Grid
    constant: tuple[str, ...]


def place(scan: Volume, places: Sequence[int], body: Body, label: Volume | None, recipe: Recipe) -> Placed:
    """`scan` (RAS) by the recipe.

    Args:
        places: the place in the recipe of each of its channels; channels that it lacks become 0.
        body: finds the body, at the scan's own resolution.
        label: drawn on the scan's grid or another.
    """
    placed = _as_nnunet if recipe.resampling == "nnunet" else _by_world
    return placed(scan, places, body, label, recipe)


def body_on(mask: Bool[np.ndarray, "x y z"], scan: Volume, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    """The body on another grid: voxels that it fills by more than half; all of them if there is none."""
    if grid is scan.grid:
        return mask
    inside = np.empty(grid.shape, bool)
    sample_channel(Volume(mask[..., None], scan.affine, ("body",)), 0, grid, inside, fill=0.0, finish=lambda part: part > 0.5)
    return inside if inside.any() else np.ones(grid.shape, bool)


def resampled(scan: Volume, recipe: Recipe) -> Volume:
    """The scan as its intensities are measured: where nnU-Net normalises first, as it is."""
    return scan if recipe.resampling == "nnunet" else resample_to_spacing(scan, recipe.spacing)


def _by_world(scan: Volume, places: Sequence[int], body: Body, label: Volume | None, recipe: Recipe) -> Placed:
    whole = spacing_grid(scan.grid, recipe.spacing)
    if np.allclose(scan.spacing, recipe.spacing, rtol=1e-4, atol=0) and whole.shape == scan.shape:
        whole = scan.grid
    mask = body_on(body(), scan, whole)
    found = None if label is None else to_grid(to_ras(label), whole, labels=True).array[..., 0]
    box = _box(mask, found, MARGIN) if recipe.crop else _all(mask)
    grid, mask = _cropped(whole, box), mask[box]
    image, constant = np.zeros((len(recipe.channels), *grid.shape), np.float32), []
    for i, channel in enumerate(places):
        if whole is scan.grid:
            image[channel] = scan.array[..., i][box]
        else:
            sample_channel(scan, i, grid, image[channel])
        if not _normalise(image[channel], mask, recipe, channel):
            constant.append(recipe.channels[channel])
    return Placed(np.moveaxis(image, 0, 3), mask, None if found is None else found[box], grid, tuple(constant))


def _as_nnunet(scan: Volume, places: Sequence[int], body: Body, label: Volume | None, recipe: Recipe) -> Placed:
    mask, label = body(), None if label is None else to_ras(label)
    drawn = label is not None and label.grid.same_as(scan.grid)
    box = _box(mask, label.array[..., 0] if label is not None and drawn else None, 0) if recipe.crop else _all(mask)
    cut = _cropped(scan.grid, box)
    inner, mask = Volume(scan.array[box], cut.affine, scan.channels), mask[box]
    grid = stretched_grid(cut, recipe.spacing)
    inside = _body_by_splines(Volume(mask[..., None], cut.affine, ("body",)), grid, recipe)
    # Before there is an image, which takes as much memory as what the classes are told apart with.
    found = None
    if label is not None and drawn:
        part = Volume(label.array[box], cut.affine, label.channels)
        found = sample_by_splines(part, grid, labels=True, spacing=recipe.spacing).array[..., 0]
    elif label is not None:
        found = to_grid(label, grid, labels=True).array[..., 0]
    image, constant = np.zeros((len(recipe.channels), *grid.shape), np.float32), []
    for i, channel in enumerate(places):
        change = normaliser(inner.array[..., i], mask, *_rule(recipe, channel))
        if change is None:
            constant.append(recipe.channels[channel])
        else:
            spline_channel(inner, i, grid, image[channel], spacing=recipe.spacing, change=_within(change, mask))
    return Placed(np.moveaxis(image, 0, 3), inside, found, grid, tuple(constant))


def _body_by_splines(mask: Volume, grid: Grid, recipe: Recipe) -> Bool[np.ndarray, "x y z"]:
    inside = np.empty(grid.shape, bool)
    spline_channel(mask, 0, grid, inside, spacing=recipe.spacing, order=1, finish=lambda share: share > 0.5)
    return inside


def _rule(recipe: Recipe, channel: int) -> tuple[str, Sequence[float]]:
    return recipe.intensity[channel], recipe.landmarks.get(recipe.channels[channel], ())


def _normalise(plane: np.ndarray, mask: np.ndarray, recipe: Recipe, channel: int) -> bool:
    """In place, because a copy of the plane may be a third of what preparing holds. False where it was constant, and becomes 0."""
    change = normaliser(plane, mask, *_rule(recipe, channel))
    for start in range(0, len(plane), _SLICES):
        rows = slice(start, start + _SLICES)
        plane[rows] = 0 if change is None else change(plane[rows], mask[rows])
    return change is not None


def _within(change: Normaliser, mask: np.ndarray) -> Change:
    return lambda part, box: change(part, mask[box])


def _all(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in mask.shape)


def _box(mask: np.ndarray, label: np.ndarray | None, margin: int) -> tuple[slice, ...]:
    """What holds the body and every labelled voxel, and `margin` voxels around it."""
    boxes = [bounding_box(mask)] + ([bounding_box(label > 0)] if label is not None and label.any() else [])
    low = [min(part.start for part in parts) for parts in zip(*boxes, strict=True)]
    high = [max(part.stop for part in parts) for parts in zip(*boxes, strict=True)]
    return tuple(slice(max(0, a - margin), min(size, b + margin)) for a, b, size in zip(low, high, mask.shape, strict=True))


def _cropped(grid: Grid, box: tuple[slice, ...]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in box], float)
    x, y, z = (part.stop - part.start for part in box)
    return Grid((x, y, z), affine)
