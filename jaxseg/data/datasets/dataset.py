"""What is known of a public dataset (`Dataset`), and what of it lies in a folder (`LocalCopy`).

Each family beside this module publishes its datasets as `DATASETS`; `catalogue` finds them by name and `check` looks into the files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxseg.data.cases import Case, CaseSet


@dataclass(frozen=True)
class Reading:
    """The cases of a folder, in order of their ids, and what is wrong with the copy: one sentence a fault."""

    cases: tuple[Case, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """Cases with the label files that were drawn for them, and those that could not be drawn, with the reason."""

    cases: tuple[Case, ...]
    left_out: dict[str, str]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A public dataset as its makers hand it out.

    Attributes:
        name: what the command line calls it, such as "brats2021".
        title: its full name.
        channels: in jaxseg's own spelling, so that the same contrast is called alike in every dataset.
        labels: name → value in the label files, or values where the official evaluation scores overlapping regions.
        layout: what a copy looks like, for messages.
        licence, citation: what its users owe; the terms that came with a copy decide.
        source: what label values, regions, sizes and licence were compared with, besides the cited papers.
        read: sorts the files below a folder into cases, by names alone.
        sizes: official number of cases of each split, where known.
        patient: pattern whose first group is the patient of a case id; by default each case is a patient of its own.
        draw: for annotations that are no label files: draws those of the cases below a root as label files in a folder.
        examine: what is to be said of such annotations, and what is wrong with them.
    """

    name: str
    title: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    layout: str
    licence: str
    citation: str
    source: str
    read: Callable[[Path], Reading]
    sizes: Mapping[str, int] = field(default_factory=dict)
    patient: str = "(.*)"
    draw: Callable[[Path, tuple[Case, ...], Path], Drawn] | None = None
    examine: Callable[[Path, tuple[Case, ...]], tuple[list[str], list[str]]] | None = None

    @property
    def regions(self) -> bool:
        """Whether labels overlap: each is a list of values."""
        return any(isinstance(value, list) for value in self.labels.values())

    @property
    def values(self) -> frozenset[int]:
        """Every value besides 0 that a label file may hold."""
        return frozenset(number for value in self.labels.values() for number in ([value] if isinstance(value, int) else value))

    def patient_of(self, case: str) -> str:
        """Whose scan a case is: time points of one patient share this."""
        found = re.match(self.patient, case)
        return found[1] if found else case


@dataclass(frozen=True, eq=False)
class LocalCopy:
    """A dataset as it lies in a folder. `faults` are sentences; `left_out` has a reason for each case whose label could not be drawn."""

    dataset: Dataset
    root: Path
    cases: CaseSet
    faults: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def patients(self) -> dict[str, str]:
        """Case id → patient."""
        return {case.id: self.dataset.patient_of(case.id) for case in self.cases}

    def origin(self, names: tuple[str, ...]) -> dict[str, Any]:
        """JSON data: whose dataset this is, and its official splits and folds over the cases in `names`, as split files write them."""
        kept = [case for case in self.cases if case.id in set(names)]
        splits = {split: [case.id for case in kept if case.split == split] for split in sorted({case.split or "" for case in kept} - {""})}
        folds = range(1 + max((case.fold for case in self.cases if case.fold is not None), default=-1))  # a copy may lack one
        return {
            "dataset": self.dataset.name,
            "title": self.dataset.title,
            "licence": self.dataset.licence,
            "citation": self.dataset.citation,
            **splits,
            **({"folds": [[case.id for case in kept if case.fold == fold] for fold in folds]} if folds else {}),
        }
