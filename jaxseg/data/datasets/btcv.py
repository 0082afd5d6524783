"""BTCV (Beyond the Cranial Vault): thirteen abdominal organs in CT, `img0001.nii.gz` with `label0001.nii.gz`. Called by `catalogue`.

`btcv` has the split of the challenge (30 training scans, 20 test scans without labels), `synapse` the one that TransUNet made of the
30 (18 for training, 12 for testing), which most papers on transformers report.
"""

import re
from pathlib import Path

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts

_NAME = re.compile(r"(img|label)(\d{4})", re.IGNORECASE)
_ORGANS = (
    "spleen,right kidney,left kidney,gallbladder,oesophagus,liver,stomach,aorta,inferior vena cava,portal and splenic veins,pancreas,"
    "right adrenal gland,left adrenal gland"
).split(",")
_TRAINING = {*range(1, 11), *range(21, 41)}
_CHALLENGE = {number: "train" if number in _TRAINING else "test" for number in (*_TRAINING, *range(61, 81))}
_TRANSUNET_TEST = {1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38}
_TRANSUNET = {number: "test" if number in _TRANSUNET_TEST else "train" for number in _TRAINING}


def _read(root: Path, splits: dict[int, str], optional: tuple[str, ...]) -> Reading:
    def part_of(path: Path) -> Part | None:
        found = _NAME.fullmatch(name_of(path))
        if not found or int(found[2]) not in splits:
            return None
        return Part(f"img{found[2]}", "CT" if found[1].lower() == "img" else LABEL, splits[int(found[2])])

    return read_parts(root, part_of, ("CT",), optional=optional)


def _dataset(name: str, title: str, citation: str, splits: dict[int, str], optional: tuple[str, ...]) -> Dataset:
    return Dataset(
        name=name,
        title=title,
        channels=("CT",),
        labels={organ: value for value, organ in enumerate(_ORGANS, 1)},
        layout="Training/img/img0001.nii.gz with Training/label/label0001.nii.gz, and Testing/img/img0061.nii.gz",
        licence="not verified: terms of the challenge, accepted at registration (synapse.org, syn3193805)",
        citation=citation,
        source="labels: MONAI Label's radiology app and huggingface.co/datasets/Live12/btcv; split: lists_Synapse of github.com/Beckschen/TransUNet; "
        "the challenge's own pages (synapse.org, syn3193805, wiki 217789) could not be read",
        read=lambda root: _read(root, splits, optional),
        sizes={split: sum(value == split for value in splits.values()) for split in ("train", "test")},
    )


_LANDMAN = "Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault: Workshop and Challenge (2015), doi:10.7303/syn3193805"
DATASETS = (
    _dataset("btcv", "Multi-Atlas Labeling Beyond the Cranial Vault, abdomen", _LANDMAN, _CHALLENGE, ("test",)),
    _dataset(
        "synapse",
        "BTCV's 30 labelled scans in TransUNet's split of 18 and 12",
        f"{_LANDMAN}; split: Chen et al., TransUNet, arXiv:2102.04306 (2021)",
        _TRANSUNET,
        (),
    ),
)
