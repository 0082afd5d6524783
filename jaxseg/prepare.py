"""A folder of scans, or an index of an archive, as a store: which cases there are, the recipe, the build. Called by `jaxseg prepare` and the main job."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.config import from_json
from jaxseg.data.archive.patients import patient_key
from jaxseg.data.bids import patient_of_bids
from jaxseg.data.cases import CaseSet
from jaxseg.data.contoured import DRAWN, find_contoured
from jaxseg.data.datasets import open_dataset
from jaxseg.data.index_cases import cases_of_index
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.preprocess import Recipe, guess_recipe, learn_scales
from jaxseg.data.pseudonyms import kept_salt, may_name_people, pseudonymous
from jaxseg.data.store import Stage, Store, build_store, open_store
from jaxseg.errors import ConfigError, InputError
from jaxseg.files import write_json
from jaxseg.zoo.folder import read_card

NAMES = "names.key"  # in a store: the secret that case ids were turned to keys with
ORIGIN = "origin.json"  # in a store of a public dataset: which one, its licence, and its official splits as a split file


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user says about the recipe; None leaves it to the scans (or to the recipe that is taken over).

    Attributes:
        spacing: voxel size in mm.
        intensity: one rule for all channels, or one each; "nyul" learns its landmarks from the scans.
        resampling, strip, n4, register, defaced: see `Recipe`.
    """

    spacing: Sequence[float] | None = None
    intensity: Sequence[str] | None = None
    resampling: str | None = None
    strip: str | None = None
    n4: bool | None = None
    register: str | None = None
    defaced: bool | None = None

    def applied(self, recipe: Recipe, cases: CaseSet) -> Recipe:
        """`recipe` changed as wished; ConfigError where the number of intensity rules does not fit."""
        given = {name: getattr(self, name) for name in ("resampling", "strip", "n4", "register", "defaced")}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.spacing is not None:
            changes["spacing"] = tuple(float(value) for value in self.spacing)
        recipe = dataclasses.replace(recipe, **changes)
        if self.intensity is None:
            return recipe
        rules = tuple(self.intensity) * (len(recipe.channels) if len(self.intensity) == 1 else 1)
        if len(rules) != len(recipe.channels):
            raise ConfigError(
                f"{len(rules)} intensity rules for the channels {', '.join(recipe.channels)}; give one, or one for each in that order"
            )
        matched = [name for name, rule in zip(recipe.channels, rules) if rule == "nyul"]
        known = {name: scale for name, scale in recipe.landmarks.items() if name in matched}
        unknown = [name for name in matched if name not in known]
        plain = tuple("percentile" if name in unknown else rule for name, rule in zip(recipe.channels, rules))
        recipe = dataclasses.replace(recipe, intensity=plain, landmarks=known)
        return learn_scales(cases.cases, recipe, unknown) if unknown else recipe


def prepare_folder(
    source: str | Path,
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    label_name: str | None = None,
    dataset: str | None = None,
    wishes: Wishes = Wishes(),
    rules: Rules = PLAIN,
    like: str | Path | None = None,
    keep_names: bool = False,
    names: str | Path | None = None,
    processes: int | None = None,
    memory_gib: float | None = None,
    stage: Stage | None = None,
    progress: Any = None,
) -> Store:
    """Prepare every case of a folder, or every sound case of an index.

    A store that is there already keeps its recipe where channels and labels are still the same, so that added scans do not move the
    median spacing and with it every other case; `wishes` and `like` change it.

    Args:
        source: scans in a layout that `find_cases` knows (labels also as DICOM SEG or RTSTRUCT), or the folder that `jaxseg index` wrote.
        out: the store; what is there already and unchanged is kept.
        channels: their names and order; by default those found.
        label_name: which file of a case is its label, where names do not tell; of DICOM contours the structures that are (`find_contoured`).
        dataset: the public dataset that `source` is a copy of (`jaxseg.data.datasets`); its ids are public and kept as they are.
        wishes: what the recipe shall be, where the scans shall not decide.
        rules: what holds for files that state no orientation, or two. An index was told when it was made: others are refused.
        like: a store or model folder whose recipe is used, so that scans fit that model.
        keep_names: keep case ids that may name people; without it they become keys, made with the secret in `OUT/names.key`.
        names: a file to write, readable by its owner alone, that says which key stands for which case id (where none was replaced, nothing).
        processes, memory_gib, stage: see `build_store`.

    Raises:
        InputError, GeometryError, ConfigError, StorageError: see `jaxseg.errors`; a single bad case is left out and listed in the store.
    """
    if names is not None and Path(out).resolve() in Path(names).resolve().parents:
        raise ConfigError(f"{names}: lies within the store, which is what leaves the archive; choose a place outside of it")
    recipe = None if like is None else recipe_of(Path(like))
    wanted = tuple(channels) if channels else (recipe.channels if recipe else None)
    if dataset is not None and label_name is not None:
        raise ConfigError(f"--label-name was given, but {dataset} itself says which file is the label; leave it out")
    left_out: Mapping[str, str] = {}
    # Of a recipe that is given its labels' values count, whatever else is contoured here.
    labels = recipe.labels if recipe is not None and recipe.labels else None
    copy = None if dataset is None else open_dataset(dataset, source, channels=wanted, drawn=Path(out) / DRAWN)
    if copy is not None:
        cases, left_out = copy.cases.read_by(rules), copy.left_out
    elif (Path(source) / "scans.parquet").is_file():
        indexed = cases_of_index(source, Path(out) / DRAWN, channels=wanted, label=label_name, labels=labels)
        if rules not in (PLAIN, *(case.rules for case in indexed.cases)):
            raise ConfigError(
                f"{source}: what holds for files without an orientation, or with two, is said when the index is made (jaxseg index)"
            )
        cases, left_out = indexed.cases, indexed.left_out
    else:
        contoured = find_contoured(source, Path(out) / DRAWN, channels=wanted, label=label_name, labels=labels)
        cases, left_out = contoured.cases.read_by(rules), contoured.left_out
    recipe = wishes.applied(recipe or _kept_recipe(Path(out), guess_recipe(cases)), cases)
    if copy is None and (tests := [case.id for case in cases if case.split == "test"]):
        warnings.warn(
            f"{source}: {len(tests)} of {len(cases.cases)} cases are the data set's own test scans (imagesTs, or test in dataset.json), and are in the "
            "store as well: pretrain with a --split that leaves them out if you will test on them",
            RuntimeWarning,
            stacklevel=2,
        )
    patients = {case.id: case.patient or patient_of_bids(case.id) for case in cases} if copy is None else copy.patients
    if not keep_names and copy is None and may_name_people([*patients, *(name.partition("/")[0] for name in left_out)]):
        salt = kept_salt(Path(out) / NAMES)
        if names is not None:
            ids = {*patients, *(name.partition("/")[0] for name in left_out)}
            write_json(Path(names), {patient_key(case, salt): case for case in sorted(ids)}, mode=0o600)
        cases = pseudonymous(cases, salt)
        patients = {patient_key(case, salt): patient_key(patient, salt) for case, patient in patients.items()}
        left_out = {patient_key(name.partition("/")[0], salt) + "".join(name.partition("/")[1:]): why for name, why in left_out.items()}
    store = build_store(
        cases,
        recipe,
        out,
        patients=patients,
        left_out=left_out,
        processes=processes,
        memory_gib=memory_gib,
        stage=stage,
        progress=progress,
    )
    if copy is not None:
        write_json(Path(out) / ORIGIN, copy.origin(store.names))
    return store


def _kept_recipe(out: Path, guess: Recipe) -> Recipe:
    """The recipe of the store that is there, if it was made for the same channels and labels; else the guess."""
    if not (out / "store.json").is_file():
        return guess
    old = open_store(out).recipe
    same = set(old.channels) == set(guess.channels) and (old.labels, old.regions) == (guess.labels, guess.regions)
    return old if same else guess


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a store or model folder. InputError if it is neither, or a model whose card says no recipe."""
    if (folder / "store.json").is_file():
        return open_store(folder).recipe
    if (folder / "model.json").is_file():
        fields = read_card(folder).get("recipe")
        if not isinstance(fields, dict):
            raise InputError(f"{folder}: the card of this model (model.json) names no recipe; give a store, or a model that jaxseg trained")
        return from_json(Recipe, fields)
    raise InputError(f"{folder}: neither a store (store.json) nor a model folder (model.json)")
