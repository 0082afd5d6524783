"""LiTS: liver and its tumours in CT, `volume-0.nii` with `segmentation-0.nii`, and `test-volume-0.nii`. Called by `catalogue`."""

import re
from pathlib import Path

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts

_NAME = re.compile(r"(test-)?(volume|segmentation)-(\d+)", re.IGNORECASE)


def _part_of(path: Path) -> Part | None:
    found = _NAME.fullmatch(name_of(path))
    if not found:
        return None
    test, kind, number = found[1] or "", found[2].lower(), int(found[3])
    return Part(f"{test.lower()}volume-{number}", "CT" if kind == "volume" else LABEL, "test" if test else "train")


def _read(root: Path) -> Reading:
    return read_parts(root, _part_of, ("CT",), optional=("test",))


DATASETS = (
    Dataset(
        name="lits",
        title="Liver Tumor Segmentation Benchmark",
        channels=("CT",),
        labels={"liver": [1, 2], "tumour": [2]},  # the benchmark scores the liver with what grows in it
        layout="volume-0.nii with segmentation-0.nii, in folders of any name, and test-volume-0.nii",
        licence="not verified: terms of the challenge, accepted at registration (its copy on Kaggle says CC BY-NC-ND 4.0, the one in CADS CC BY-NC-SA 4.0)",
        citation="Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS), Medical Image Analysis 84 (2023) 102680, doi:10.1016/j.media.2022.102680",
        source="the paper, for labels and sizes; copies, for the licence: the terms at competitions.codalab.org/competitions/17094 could not be read",
        read=_read,
        sizes={"train": 131, "test": 70},
    ),
)
