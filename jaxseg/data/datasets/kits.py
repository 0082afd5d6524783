"""KiTS19 and KiTS23: kidneys, their tumours and cysts in CT, `case_00000/imaging.nii.gz` with `segmentation.nii.gz`. Called by `catalogue`."""

import dataclasses
import re
from pathlib import Path

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts, scans_below

_CASE = re.compile(r"case_\d{5}", re.IGNORECASE)
_FILES = {"imaging": "CT", "segmentation": LABEL}


def _read(root: Path, train_until: int) -> Reading:
    """Cases up to `train_until` are for training; the labels of later ones are not public."""

    def part_of(path: Path) -> Part | None:
        case, channel = (root / path).parent.name.lower(), _FILES.get(name_of(path).lower())
        if channel is None or not _CASE.fullmatch(case):
            return None
        return Part(case, channel, "train" if int(case[5:]) <= train_until else "test")

    reading = read_parts(root, part_of, ("CT",), optional=("test",))
    odd = sorted({path.parent.name for path in scans_below(root) if name_of(path) == "imaging" and not _CASE.fullmatch(path.parent.name)})
    renamed = tuple(f"folder {name}: expected a name such as case_00000, which alone says which case it is; it is left out" for name in odd)
    return dataclasses.replace(reading, faults=reading.faults + renamed)


def _dataset(
    year: int, what: str, labels: dict[str, int | list[int]], train_until: int, sizes: dict[str, int], citation: str, source: str
) -> Dataset:
    return Dataset(
        name=f"kits{year}",
        title=f"Kidney Tumor Segmentation Challenge 20{year}: {what}",
        channels=("CT",),
        labels=labels,
        layout="case_00000/imaging.nii.gz with case_00000/segmentation.nii.gz",
        licence="CC BY-NC-SA 4.0",
        citation=citation,
        source=source,
        read=lambda root: _read(root, train_until),
        sizes=sizes,
    )


DATASETS = (
    _dataset(
        19,
        "kidneys and tumours",
        {"kidney and tumour": [1, 2], "tumour": [2]},
        209,
        {"train": 210, "test": 90},
        "Heller et al., The state of the art in kidney and kidney tumor segmentation in contrast-enhanced CT imaging: results of the KiTS19 "
        "challenge, Medical Image Analysis 67 (2021) 101821, doi:10.1016/j.media.2020.101821; Heller et al., arXiv:1904.00445",
        "https://kits19.grand-challenge.org/data/",
    ),
    _dataset(
        23,
        "kidneys, tumours and cysts",
        {"kidney and masses": [1, 2, 3], "masses": [2, 3], "tumour": [2]},
        588,
        {"train": 489},
        "Heller et al., The KiTS21 Challenge, arXiv:2307.01984 (2023)",
        "https://kits-challenge.org/kits23/; nnU-Net's Dataset220_KiTS2023",
    ),
)
