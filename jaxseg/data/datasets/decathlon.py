"""The Medical Segmentation Decathlon's ten tasks: `imagesTr/`, `labelsTr/`, `imagesTs/`, `dataset.json`, several channels in one 4-D file.

Called by `catalogue`.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts
from jaxseg.data.layouts import read_declared

_FOLDERS = {"imagestr": ("image", "train"), "labelstr": (LABEL, "train"), "imagests": ("image", "test")}
_CITATION = (
    "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13 (2022) 4128, doi:10.1038/s41467-022-30695-9; "
    "Simpson et al., arXiv:1902.09063 (2019)"
)


class _Task(NamedTuple):
    """A task: its name, how its files begin, channels and labels in the order of their values, and official numbers of cases."""

    name: str
    prefix: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    train: int
    test: int


_TASKS = (
    _Task("BrainTumour", "BRATS", ("FLAIR", "T1", "T1C", "T2"), ("oedema", "non-enhancing tumour", "enhancing tumour"), 484, 266),
    _Task("Heart", "la", ("MR",), ("left atrium",), 20, 10),
    _Task("Liver", "liver", ("CT",), ("liver", "cancer"), 131, 70),
    _Task("Hippocampus", "hippocampus", ("MR",), ("anterior", "posterior"), 260, 130),
    _Task("Prostate", "prostate", ("T2", "ADC"), ("peripheral zone", "transition zone"), 32, 16),
    _Task("Lung", "lung", ("CT",), ("cancer",), 63, 32),
    _Task("Pancreas", "pancreas", ("CT",), ("pancreas", "cancer"), 281, 139),
    _Task("HepaticVessel", "hepaticvessel", ("CT",), ("vessel", "tumour"), 303, 140),
    _Task("Spleen", "spleen", ("CT",), ("spleen",), 41, 20),
    _Task("Colon", "colon", ("CT",), ("colon cancer primaries",), 126, 64),
)


def _read(root: Path, task: _Task) -> Reading:
    case = re.compile(rf"{task.prefix}_\d+", re.IGNORECASE)
    converted = re.compile(rf"{task.prefix}_\d+_\d{{4}}", re.IGNORECASE)

    def part_of(path: Path) -> Part | None:
        role, split = _FOLDERS.get(path.parent.name.lower(), (None, None))
        if role is None or not case.fullmatch(name_of(path)):
            return None
        return Part(name_of(path), role, split)

    reading = read_parts(root, part_of, task.channels, packed=True, optional=("test",))
    numbered = [path for path in root.rglob("images*/*") if converted.fullmatch(name_of(path))]
    faults = [*reading.faults, *_contradictions(root, task, bool(reading.cases))]
    if numbered:
        faults.append(
            f"{len(numbered)} images end in a channel number ({numbered[0].name}): nnU-Net's conversion, which prepare reads without --dataset"
        )
    return dataclasses.replace(reading, faults=tuple(faults))


def _contradictions(root: Path, task: _Task, found: bool) -> list[str]:
    """Where a dataset.json says something else about channels or label values than the task's makers."""
    files = [path for path in (root / "dataset.json", *sorted(root.glob("*/dataset.json"))) if path.is_file()]
    if not found:
        return []
    if not files:
        return ["dataset.json is missing; channels and labels are taken as its makers publish them"]
    faults = []
    for path in files:
        declared = read_declared(path)
        values = sorted(value for value in (declared.labels or {}).values() if isinstance(value, int))
        if declared.channels and len(declared.channels) != len(task.channels):
            faults.append(f"{path.name}: {len(declared.channels)} channels, expected {len(task.channels)}: {', '.join(task.channels)}")
        if values != list(range(1, len(task.labels) + 1)):
            faults.append(f"{path.name}: label values {values}, expected 1 to {len(task.labels)}: {', '.join(task.labels)}")
    return faults


def _dataset(number: int, task: _Task) -> Dataset:
    return Dataset(
        name=f"msd{number:02d}_{task.name.lower()}",
        title=f"Medical Segmentation Decathlon, Task{number:02d}_{task.name}",
        channels=task.channels,
        labels={label: value for value, label in enumerate(task.labels, 1)},
        layout=f"Task{number:02d}_{task.name}/ with dataset.json, imagesTr/{task.prefix}_001.nii.gz, labelsTr/{task.prefix}_001.nii.gz, imagesTs/",
        licence="CC BY-SA 4.0",
        citation=_CITATION,
        source="http://medicaldecathlon.com, and the dataset.json of each task",
        read=lambda root: _read(root, task),
        sizes={"train": task.train, "test": task.test},
    )


DATASETS = tuple(_dataset(number, task) for number, task in enumerate(_TASKS, 1))
