"""Datasets by name: `list_datasets`, `find_dataset`, and `open_dataset`, which reads a local copy. Called by `prepare`, the command line and users."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data.cases import Case, CaseSet
from jaxseg.data.datasets import amos, brats, btcv, decathlon, kits, lits, luna
from jaxseg.data.datasets.dataset import Dataset, LocalCopy
from jaxseg.errors import ConfigError, InputError

_ALL = {dataset.name: dataset for family in (brats, decathlon, lits, kits, luna, amos, btcv) for dataset in family.DATASETS}


def list_datasets() -> list[Dataset]:
    """Every dataset that is known."""
    return list(_ALL.values())


def find_dataset(name: str) -> Dataset:
    """The dataset of this name (in any case of letters; "Task03_Liver" is msd03_liver). ConfigError, with names like it, if there is none."""
    plain = name.strip().lower().replace("-", "_").replace("task", "msd")
    if plain in _ALL:
        return _ALL[plain]
    near = difflib.get_close_matches(plain, _ALL, n=3, cutoff=0.5) + [other for other in _ALL if plain and plain in other]
    hint = f"perhaps you meant {' or '.join(dict.fromkeys(near))}" if near else f"there is: {', '.join(_ALL)}"
    raise ConfigError(f"no dataset is called {name!r}; {hint} (`jaxseg datasets` lists all)")


def open_dataset(name: str, root: str | Path, *, channels: Sequence[str] | None = None, drawn: str | Path | None = None) -> LocalCopy:
    """A local copy as cases with channels, labels, regions, official split and fold. Names are read, and nothing is downloaded.

    Args:
        name: of the dataset, see `list_datasets`.
        root: where its files lie, at any depth.
        channels: use these in this order (any case of letters); by default all of them.
        drawn: folder for label files made of annotations that are none (LUNA16's nodules); without it such cases have no label.

    Raises:
        ConfigError: no such dataset; InputError: no such folder, no case of this dataset in it (says which other one it looks like),
            or no such channel.
    """
    dataset, root = find_dataset(name), Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: {'this is a file, expected the folder of a dataset' if root.exists() else 'no such folder'}")
    reading = dataset.read(root)
    if not reading.cases:
        raise InputError(_nothing_found(dataset, root, reading.faults))
    names = _chosen(dataset, channels)
    cases = tuple(_with_channels(case, names, root) for case in reading.cases)
    left_out: dict[str, str] = {}
    if dataset.draw is not None and drawn is not None:
        made = dataset.draw(root, cases, Path(drawn))
        cases, left_out = made.cases, made.left_out
    found = CaseSet(cases, names, dict(dataset.labels), dataset.title, dataset.regions)
    return LocalCopy(dataset, root, found, reading.faults, left_out)


def alike(values: frozenset[int], dataset: Dataset) -> list[str]:
    """Other datasets with the same channels whose labels have these values, all of them."""
    return [other.name for other in _ALL.values() if other is not dataset and other.channels == dataset.channels and other.values == values]


def _nothing_found(dataset: Dataset, root: Path, faults: Sequence[str]) -> str:
    others = [other.name for other in _ALL.values() if other is not dataset and other.read(root).cases]
    looks = f"; it looks like {' or '.join(others)}" if others else ""
    return f"{root}: no case of {dataset.name} ({dataset.title}){looks}. Expected {dataset.layout}. {' '.join(faults[:3])}".rstrip()


def _chosen(dataset: Dataset, channels: Sequence[str] | None) -> tuple[str, ...]:
    if channels is None:
        return dataset.channels
    known = {name.lower() for name in dataset.channels}
    if absent := [name for name in channels if name.lower() not in known]:
        raise InputError(f"{dataset.name} has no channel {', '.join(absent)}; there is: {', '.join(dataset.channels)}")
    return tuple(channels)


def _with_channels(case: Case, names: tuple[str, ...], root: Path) -> Case:
    """The case under the names that were asked for, in their order."""
    files = {name.lower(): path for name, path in case.images.items()}
    kept = {name: files[name.lower()] for name in names if name.lower() in files}
    if not kept:
        raise InputError(f"{root}: case {case.id} has none of the channels {', '.join(names)}; it has {', '.join(case.images)}")
    return dataclasses.replace(case, images=kept)
