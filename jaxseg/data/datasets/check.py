"""Whether a local copy of a dataset is whole and says what its makers say: `check_dataset`. Called by `jaxseg datasets NAME ROOT`."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.datasets.catalogue import alike, open_dataset
from jaxseg.data.datasets.dataset import Dataset, LocalCopy
from jaxseg.data.io import load_label, read_grid
from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.scans import header_of
from jaxseg.errors import InputError


@dataclass(frozen=True, eq=False)
class Checked:
    """What was found in a local copy: `lines` to be read, and `faults`, each with its case."""

    copy: LocalCopy
    lines: tuple[str, ...]
    faults: tuple[str, ...]


def check_dataset(name: str, root: str | Path, *, voxels: bool = True, progress: Callable[[int, int, str], None] | None = None) -> Checked:
    """Read a copy's names, every header, and (with `voxels`) every label file.

    Checked: channels and labels that are missing, files that cannot be read, labels on another grid than their image, 4-D files with
    another number of channels, label values that the dataset does not have, and how many of the official cases there are.

    Raises:
        ConfigError, InputError: see `open_dataset`.
    """
    copy = open_dataset(name, root)
    faults, values = list(copy.faults), Counter()
    for done, case in enumerate(copy.cases):
        if progress:
            progress(done, len(copy.cases), case.id)
        try:
            found = _look(case, copy.dataset, voxels)
        except InputError as error:
            faults.append(f"{case.id}: {error}")
            continue
        values.update(found)
        if strange := sorted(found - copy.dataset.values):
            faults.append(f"{case.id}: its label has the values {_listed(strange)}; expected {_listed([0, *sorted(copy.dataset.values)])}")
    faults += _scheme(copy.dataset, values)
    said, wrong = copy.dataset.examine(copy.root, copy.cases.cases) if copy.dataset.examine else ([], [])
    return Checked(copy, tuple(_lines(copy, values, said)), tuple(dict.fromkeys([*faults, *wrong])))


def _look(case: Case, dataset: Dataset, voxels: bool) -> frozenset[int]:
    """The label values of a case besides 0; InputError for what is wrong with its files."""
    for path in dict.fromkeys(case.images.values()):
        head = header_of(path, Rules())
        held, said = (head.shape[3] if len(head.shape) > 3 else 1), len(case.packed) or 1
        if held != said:
            raise InputError(f"{path.name} holds {held} channels, expected {said}: {', '.join(case.packed or dataset.channels)}")
    if case.label is None:
        return frozenset()
    image = next(iter(case.images.values()))
    grid, drawn = read_grid(image), read_grid(case.label)
    if not drawn.same_as(grid):
        raise InputError(f"the label lies on {drawn.describe()}, its image {image.name} on {grid.describe()}")
    return frozenset(map(int, np.unique(load_label(case.label).array))) - {0} if voxels else frozenset()


def _scheme(dataset: Dataset, values: Counter[int]) -> list[str]:
    """Values that belong to another year's scheme are named as such, once for the copy."""
    found = frozenset(values)
    if found <= dataset.values or not (others := alike(found, dataset)):
        return []
    return [f"all labels together have the values {_listed(sorted(found))}: those of {' or '.join(others)}; is this another year's copy?"]


def _lines(copy: LocalCopy, values: Counter[int], said: list[str]) -> list[str]:
    dataset, cases = copy.dataset, copy.cases
    counts = Counter(case.split or "no split" for case in cases)
    numbers = [f"{count} {split}" + (f" of {dataset.sizes[split]}" if split in dataset.sizes else "") for split, count in counts.items()]
    lines = [
        f"{dataset.name}: {dataset.title}",
        f"cases: {len(cases)} ({', '.join(numbers)}), {len(set(copy.patients.values()))} patients, {len(cases.labelled)} with a label file",
        f"channels: {', '.join(dataset.channels)}",
        f"{'regions' if dataset.regions else 'labels'}: {', '.join(f'{name} {value}' for name, value in dataset.labels.items())}",
    ]
    if values:
        lines.append("values found: " + ", ".join(f"{value} in {count} cases" for value, count in sorted(values.items())))
    if folds := Counter(case.fold for case in cases if case.fold is not None):
        lines.append("folds: " + ", ".join(f"{fold}: {count}" for fold, count in sorted(folds.items())))
    return [*lines, *said, f"licence: {dataset.licence}", f"cite: {dataset.citation}", f"source: {dataset.source}"]


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
