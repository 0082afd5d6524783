"""The files of a case as one volume: its channels loaded, laid over each other, and cut to the brain where a mask was supplied.

Called by `preprocess` for the store and by `infer` for scans to segment: the same steps for both.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.io import load_label, load_volume
from jaxseg.data.io.decoded import refuse_single_slice
from jaxseg.data.itk import register
from jaxseg.data.recipe import Recipe
from jaxseg.data.scan_names import modalities_differ, modality
from jaxseg.data.volume import Volume, refuse_apart, stack_channels, to_grid
from jaxseg.errors import GeometryError, InputError


def load_case(case: Case, channels: Sequence[str]) -> list[Volume]:
    """Those of `channels` that the case has, one volume per file, in the order of `channels`; `stack_channels` puts them on one grid.

    Raises:
        InputError: the case has none of them, or a file cannot be read or holds a single slice.
    """
    wanted = channels_of(case, channels)
    if not case.packed:
        return [_load(case, name, [name]) for name in wanted]
    volume = _load(case, wanted[0], case.packed)
    if tuple(wanted) == case.packed:
        return [volume]
    kept = [case.packed.index(name) for name in wanted]
    return [replace(volume, array=volume.array[..., kept], channels=tuple(wanted))]


def _load(case: Case, name: str, channels: Sequence[str]) -> Volume:
    volume = load_volume(case.images[name], channels=channels, rules=case.rules)
    refuse_single_slice(volume.array.shape, case.images[name])
    return volume


def channels_of(case: Case, channels: Sequence[str]) -> list[str]:
    """What the case calls those of `channels` that it has (in any case of letters), in their order; a lone channel needs no name.

    Raises:
        InputError: the case has none of them, or its lone channel is of another modality by its name.
    """
    spelled = {name.lower(): name for name in case.images}
    wanted = [spelled[name.lower()] for name in channels if name.lower() in spelled]
    if len(channels) == len(case.images) == 1:
        wanted = list(case.images)
        if modalities_differ(modality(wanted[0]), modality(channels[0])):
            raise InputError(
                f"case {case.id}: by its name its scan is {wanted[0]}, and {channels[0]} was expected; give scans of that modality, or rename the "
                "file if its name is wrong"
            )
    if not wanted:
        raise InputError(f"case {case.id}: has {', '.join(case.images)}, none of the recipe's channels {', '.join(channels)}")
    return wanted


def stack_case(case: Case, recipe: Recipe) -> Volume:
    """The case as one volume on the grid of its first channel (for segmenting: nothing says which one labels would be drawn on).

    Raises:
        InputError, GeometryError: see `load_case` and `stack_loaded`.
    """
    return stack_loaded(case, load_case(case, recipe.channels), recipe, on=0)


def stack_loaded(case: Case, volumes: Sequence[Volume], recipe: Recipe, *, on: int) -> Volume:
    """Loaded channels on the grid of `volumes[on]`, registered to it and cut to the case's brain mask as far as the recipe says so.

    Raises:
        GeometryError: fields of view hardly meet, or the mask lies on another grid than every channel.
        InputError: the recipe wants a mask that the case lacks, or a registration failed.
    """
    if recipe.register:
        kind = "rigid" if recipe.register == "rigid" else "affine"
        volumes = [volume if i == on else register(volume, volumes[on], kind) for i, volume in enumerate(volumes)]
    refuse_apart(volumes, case.id)
    stacked = stack_channels(volumes, on=on)
    return _within_mask(case, stacked) if recipe.strip == "mask" else stacked


def _within_mask(case: Case, stacked: Volume) -> Volume:
    """Everything outside the case's mask becomes the channel's minimum, which `intensity.own_foreground` knows as background."""
    if case.mask is None:
        raise InputError(
            f"case {case.id}: the recipe cuts scans to a brain mask (strip=mask), and this case has none (or several); expected one file "
            "called such as brainmask beside its images"
        )
    mask = load_label(case.mask, rules=case.rules)
    if not mask.array.any():
        raise InputError(f"{case.mask}: this brain mask of case {case.id} is empty")
    if not mask.grid.same_as(stacked.grid, tol=0.5) and mask.grid.offset_from(stacked.grid) != float("inf"):
        raise GeometryError(f"case {case.id}: its brain mask lies on {mask.grid.describe()}, its scan on {stacked.grid.describe()}")
    inside = to_grid(replace(mask, array=(mask.array > 0).astype(np.uint8)), stacked.grid, labels=True).array > 0
    # Half below the tissue's minimum: a background that differs from the darkest tissue is told apart from it.
    low, high = (function(stacked.array, axis=(0, 1, 2)) for function in (np.min, np.max))
    outside = low - 0.05 * (high - low)
    return replace(stacked, array=np.where(inside, stacked.array, outside).astype(np.float32, copy=False))
