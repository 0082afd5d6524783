"""AMOS 2022: fifteen abdominal organs in CT and MR, `imagesTr/amos_0001.nii.gz` with `labelsTr/`, `imagesVa/`, `imagesTs/`.

Called by `catalogue`. The id says the modality: below 500 it is CT (the readme that comes with the data).
"""

import re
from pathlib import Path

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts

_NAME = re.compile(r"amos_(\d{4})", re.IGNORECASE)
_FIRST_MR = 500
_SPLITS = {"tr": "train", "va": "validation", "ts": "test"}
_ORGANS = (
    "spleen,right kidney,left kidney,gallbladder,oesophagus,liver,stomach,aorta,inferior vena cava,pancreas,right adrenal gland,"
    "left adrenal gland,duodenum,bladder,prostate or uterus"
).split(",")


def modality_of(case: str) -> str:
    """ "CT" or "MR" by the number of a case id such as amos_0507."""
    return "CT" if int(case[-4:]) < _FIRST_MR else "MR"


def _read(root: Path, wanted: str) -> Reading:
    def part_of(path: Path) -> Part | None:
        found = _NAME.fullmatch(name_of(path))
        place = re.fullmatch(r"(images|labels)(tr|va|ts)", path.parent.name or root.name, re.IGNORECASE)
        if not found or not place or modality_of(found[0]) not in wanted.split("_"):
            return None
        return Part(found[0].lower(), wanted if place[1].lower() == "images" else LABEL, _SPLITS[place[2].lower()])

    return read_parts(root, part_of, (wanted,), optional=("test",))


def _dataset(name: str, channel: str, what: str, sizes: dict[str, int]) -> Dataset:
    return Dataset(
        name=name,
        title=f"AMOS 2022, multi-modality abdominal organs: {what}",
        channels=(channel,),
        labels={organ: value for value, organ in enumerate(_ORGANS, 1)},
        layout="imagesTr/amos_0001.nii.gz with labelsTr/amos_0001.nii.gz, the same in imagesVa/ and labelsVa/, and imagesTs/",
        licence="not verified: CC BY 4.0 by what others report of Zenodo's record 7155725, CC BY-NC by the paper's page (openreview.net/forum?id=Vk4-HUnkEak)",
        citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image Segmentation, NeurIPS 2022, arXiv:2206.08023",
        source="the readme that comes with the data, for modalities and sizes; labels: the list of huggingface.co/datasets/GoodBaiBai88/M3D-Seg "
        "(nnU-Net's converters take them from the data's own dataset.json)",
        read=lambda root: _read(root, channel),
        sizes=sizes,
    )


DATASETS = (
    # One network for both modalities has one input channel; CT_MR counts as MR where an intensity rule is chosen: a z-score suits both.
    _dataset("amos22", "CT_MR", "CT and MR", {"train": 240, "validation": 120}),
    _dataset("amos22_ct", "CT", "CT alone", {"train": 200, "validation": 100}),
    _dataset("amos22_mr", "MR", "MR alone", {"train": 40, "validation": 20}),
)
