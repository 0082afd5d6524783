"""BraTS, 2018 to 2024: brain tumours in T1, T1 with contrast medium, T2 and FLAIR. Called by `catalogue`.

Until 2021 enhancing tumour is 4 and no label is 3; since 2023 it is 3. Files were called `ID_t1ce.nii.gz`, and since 2023 `ID-t1c.nii.gz`.
Regions are those of the official evaluation of each year.
"""

import dataclasses
import re
from pathlib import Path

from jaxseg.data.datasets.dataset import Dataset, Reading
from jaxseg.data.datasets.files import LABEL, Part, name_of, read_parts, split_of

_CHANNELS = ("T1", "T1C", "T2", "FLAIR")
_NAMES = {
    **{"t1": "T1", "t1ce": "T1C", "t2": "T2", "flair": "FLAIR", "seg": LABEL},
    **{"t1n": "T1", "t1c": "T1C", "t2w": "T2", "t2f": "FLAIR", "gtv": LABEL},
}
_SPLITS = {"train": "train", "valid": "validation"}  # test scans were never handed out

_UNTIL_2021 = {"whole tumour": [1, 2, 4], "tumour core": [1, 4], "enhancing tumour": [4]}
_SINCE_2023 = {"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": [3]}
_AFTER_TREATMENT = {
    **{"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing tumour": [3]},
    **{"non-enhancing core": [1], "FLAIR hyperintensity": [2], "resection cavity": [4]},
}
_CHILDREN_2024 = {
    **{"whole tumour": [1, 2, 3, 4], "tumour core": [1, 2, 3], "enhancing tumour": [1]},
    **{"non-enhancing tumour": [2], "cystic component": [3], "oedema": [4]},
}

_MENZE = (
    "Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS), IEEE TMI 34 (2015) 1993–2024, doi:10.1109/TMI.2014.2377694; "
    "Bakas et al., Advancing The Cancer Genome Atlas glioma MRI collections, Scientific Data 4 (2017) 170117, doi:10.1038/sdata.2017.117; "
    "Bakas et al., arXiv:1811.02629 (2018)"
)
_BAID = "Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314 (2021); " + _MENZE
_SOURCE_UNTIL_2021 = (
    "https://www.med.upenn.edu/cbica/brats2020/data.html; nnU-Net's Dataset042_BraTS18, Dataset043_BraTS19, Dataset137_BraTS21"
)
_SOURCES = {
    **{
        (2023, kind): "https://www.synapse.org/Synapse:syn51156910/wiki/622351 (label values)"
        for kind in ("GLI", "SSA", "MEN", "MET", "PED")
    },
    (2024, "GLI"): "https://www.synapse.org/Synapse:syn53708249/wiki/627500; nnU-Net's Dataset226_BraTS2024-BraTS-GLI",
    (2024, "MET"): "https://www.synapse.org/Synapse:syn53708249 (label values)",
    (
        2024,
        "PED",
    ): "https://www.synapse.org/Synapse:syn53708249: annotation protocol of BraTS-PEDs (enhancing 1, non-enhancing 2, cystic 3, oedema 4)",
}
_REGISTERED = "terms of the challenge, accepted at registration"


def _read(root: Path, case: str, channels: tuple[str, ...]) -> Reading:
    """`case` is the pattern of a case id. Labels are public for training cases only: where no folder says so, having one makes a case `train`."""
    named = re.compile(rf"({case})[-_]({'|'.join(_NAMES)})", re.IGNORECASE)
    folder = re.compile(case, re.IGNORECASE)

    def part_of(path: Path) -> Part | None:
        found, split = named.fullmatch(name_of(path)), split_of(Path(root.name, path), _SPLITS)
        if found:
            return Part(found[1], _NAMES[found[2].lower()], split)
        # The label of BraTS20_Training_355 was handed out under a name of its own, W39_1998.09.19_Segm.nii
        if folder.fullmatch(path.parent.name) and re.search(r"segm?$", name_of(path), re.IGNORECASE):
            return Part(path.parent.name, LABEL, split)
        return None

    reading = read_parts(root, part_of, channels, optional=("validation",))
    cases = (dataclasses.replace(case, split=case.split or ("train" if case.label else "validation")) for case in reading.cases)
    return dataclasses.replace(reading, cases=tuple(cases))


def _dataset(
    name: str, title: str, case: str, labels: dict[str, list[int]], example: str, *, citation: str, source: str,
    licence: str = _REGISTERED, sizes: tuple[int, int] | None = None, patient: str = "(.*)", channels: tuple[str, ...] = _CHANNELS,
) -> Dataset:  # fmt: skip
    return Dataset(
        name=name,
        title=title,
        channels=channels,
        labels=labels,
        layout=f"a folder per case with files such as {example}",
        licence=licence,
        citation=citation,
        source=source,
        read=lambda root: _read(root, case, channels),
        sizes=dict(zip(("train", "validation"), sizes)) if sizes else {},
        patient=patient,
    )


def _until_2021(year: int, case: str, example: str, sizes: tuple[int, int], citation: str = _MENZE) -> Dataset:
    title = f"Multimodal Brain Tumor Segmentation Challenge {year}, adult glioma before treatment"
    return _dataset(
        f"brats{year}",
        title,
        case,
        _UNTIL_2021,
        f"{example}_t1ce.nii.gz and {example}_seg.nii.gz",
        citation=citation,
        source=_SOURCE_UNTIL_2021,
        sizes=sizes,
    )


def _since_2023(
    year: int, kind: str, what: str, labels: dict[str, list[int]], citation: str, sizes: tuple[int, int] | None = None
) -> Dataset:
    """Since 2023 an id ends in the number of the patient's time point: BraTS-GLI-00005-001."""
    return _dataset(
        f"brats{year}_{kind.lower()}",
        f"BraTS {year}, {what}",
        rf"BraTS-{kind}-\d{{5}}-\d{{3}}",
        labels,
        f"BraTS-{kind}-00000-000-t1c.nii.gz and BraTS-{kind}-00000-000-seg.nii.gz",
        citation=citation,
        source=_SOURCES[year, kind],
        licence=f"{_REGISTERED} (synapse.org, BraTS {year})",
        sizes=sizes,
        patient=r"(.+)-\d{3}$",
    )


_RADIOTHERAPY = _dataset(
    "brats2024_menrt", "BraTS 2024, meningioma before radiotherapy (head with its skull, T1 with contrast medium alone)",
    r"BraTS-MEN-RT-\d{4}-\d+", {"gross tumour volume": [1]}, "BraTS-MEN-RT-0000-1_t1c.nii.gz and BraTS-MEN-RT-0000-1_gtv.nii.gz",
    citation="LaBella et al., BraTS Meningioma Radiotherapy Challenge 2024, arXiv:2405.18383 (2024)",
    source="LaBella et al., Scientific Data (2026), PMC12948943: 500 labelled and 70 other cases, one label",
    licence=f"{_REGISTERED} (synapse.org, BraTS 2024)", sizes=(500, 70), patient=r"(.+)-\d+$", channels=("T1C",),
)  # fmt: skip

DATASETS = (
    _until_2021(2018, r"Brats18_\w+", "Brats18_2013_0_1", (285, 66)),
    _until_2021(2019, r"BraTS19_\w+", "BraTS19_2013_0_1", (335, 125)),
    _until_2021(2020, r"BraTS20_(?:Training|Validation)_\d{3}", "BraTS20_Training_001", (369, 125)),
    _until_2021(2021, r"BraTS2021_\d{5}", "BraTS2021_00000", (1251, 219), _BAID),
    _since_2023(2023, "GLI", "adult glioma before treatment", _SINCE_2023, _BAID, (1251, 219)),
    _since_2023(
        2023, "SSA", "glioma in Sub-Saharan Africa", _SINCE_2023, "Adewole et al., BraTS Challenge 2023: BraTS-Africa, arXiv:2305.19369", (60, 15)
    ),
    _since_2023(2023, "MEN", "meningioma", _SINCE_2023, "LaBella et al., BraTS Intracranial Meningioma 2023, arXiv:2305.07642", (1000, 141)),
    _since_2023(2023, "MET", "brain metastases", _SINCE_2023, "Moawad et al., BraTS-METS 2023, arXiv:2306.00838"),
    _since_2023(2023, "PED", "brain tumours of children", _SINCE_2023, "Kazerooni et al., BraTS-PEDs 2023, arXiv:2305.17033", (99, 45)),
    _since_2023(
        2024, "GLI", "adult glioma after treatment", _AFTER_TREATMENT, "de Verdier et al., BraTS 2024 Post-treatment Glioma, arXiv:2405.18368", (1350, 188)
    ),
    _since_2023(2024, "MET", "brain metastases", _SINCE_2023, "Moawad et al., BraTS-METS 2023, arXiv:2306.00838"),
    _since_2023(2024, "PED", "brain tumours of children", _CHILDREN_2024, "Kazerooni et al., BraTS-PEDs 2024, arXiv:2404.15009", (261, 91)),
    _RADIOTHERAPY,
)  # fmt: skip
