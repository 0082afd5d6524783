"""A folder of scans as a store: which cases there are, the recipe, the build. Called by `jaxseg prepare` and the main job."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.config import from_json
from jaxseg.data.cases import find_cases
from jaxseg.data.preprocess import Recipe, guess_recipe
from jaxseg.data.store import Store, build_store, open_store
from jaxseg.errors import InputError
from jaxseg.zoo.folder import read_card


def prepare_folder(
    source: str | Path,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    label_name: str | None = None,
    spacing: Sequence[float] | None = None,
    like: str | Path | None = None,
    progress: Any = None,
) -> Store:
    """Prepare every case of a folder.

    Args:
        source: scans in a layout that `find_cases` knows.
        out: the store; what is there already and unchanged is kept.
        channels: their names and order; by default those found.
        label_name: which file of a case is its label, where names do not tell.
        spacing: voxel size in mm; by default the median of the scans.
        like: a store or model folder whose recipe is used, so that scans fit that model.

    Raises:
        InputError, GeometryError, StorageError: see `jaxseg.errors`; a single bad case is left out and listed in the store.
    """
    recipe = None if like is None else recipe_of(Path(like))
    wanted = tuple(channels) if channels else (recipe.channels if recipe else None)
    cases = find_cases(source, channels=wanted, label=label_name)
    recipe = recipe or guess_recipe(cases)
    if spacing is not None:
        recipe = dataclasses.replace(recipe, spacing=tuple(float(value) for value in spacing))
    return build_store(cases, recipe, out, progress=progress)


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a store or model folder. InputError if it is neither."""
    if (folder / "store.json").is_file():
        return open_store(folder).recipe
    if (folder / "model.json").is_file():
        return from_json(Recipe, read_card(folder)["recipe"])
    raise InputError(f"{folder}: neither a store (store.json) nor a model folder (model.json)")
