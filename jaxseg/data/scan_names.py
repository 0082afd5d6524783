"""What the names of files and folders say of a scan: its case, its channel, and whether it is an image, a label or a mask.

Called by `layouts` and its parts, and by the index.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseg.data.io.scans import SUFFIXES, stem

_LABELLED_BY = (
    "seg segs segm segmentation segmentations label labels mask masks tumour tumours tumor tumors lesion lesions gt truth groundtruth "
    "structure structures roi rois annotation annotations contour contours gtv"
)
_LABEL_WORDS = set(_LABELLED_BY.split())
_MODALITIES = {
    "T1": "t1 t1w t1n t1wi mprage t1mprage",
    "T1C": "t1c t1ce t1gd t1post t1km t1contrast",
    "T2": "t2 t2w t2wi",
    "FLAIR": "flair t2f t2flair",
    "PD": "pd pdw",
    "DWI": "dwi adc swi asl perfusion",
    "CT": "ct cta hu ldct cect ncct",
    "PET": "pet pt suv fdg",
    "MR": "mr mri",
}
_MODALITY_OF = {word: modality for modality, words in _MODALITIES.items() for word in words.split()}
_CHANNEL_WORDS = {*_MODALITY_OF, "image", "img", "scan", "volume", "orig"}
_BODY_MASK = re.compile(r"(^|[^a-z])(brain|body|head|bet|skull|foreground|air|valid)[ _.-]?mask", re.IGNORECASE)
_ANONYMISED = re.compile(r"(^|(?<=[^a-z]))(anon|anonymi[sz](ed|ation)|defac(ed?|ing))[ _.-]?mask(?![a-z])", re.IGNORECASE)

Role = Literal["image", "label", "mask"]


@dataclass(frozen=True)
class Found:
    """One file: the case it belongs to, what it is, and its channel (or, for a label, the part of its name after the case)."""

    path: Path
    case: str
    role: Role
    channel: str
    split: str | None = None


def scans_in(folder: Path) -> list[Path]:
    """Scan files (NIfTI, NRRD, MetaImage) directly in a folder, by name; hidden ones are passed over."""
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
    )


def tokens(name: str) -> list[str]:
    """The words of a file name: "STS_T1-tumour" → ["STS", "T1", "tumour"]."""
    return [word for word in re.split(r"[_\-. ]+", name) if word]


def modality(name: str) -> str | None:
    """The modality that a channel's or file's name states (its last word that is one), or None."""
    known = [_MODALITY_OF[word.lower()] for word in tokens(name) if word.lower() in _MODALITY_OF]
    return known[-1] if known else None


def modality_of_file(name: str) -> str | None:
    """The modality that a file name without suffixes states after its case's id, or as its only word: PT_003 is a patient and no PET."""
    rest = split_name(name)[1]
    return modality(rest or name) if rest or len(tokens(name)) == 1 else None


def modalities_differ(one: str | None, other: str | None) -> bool:
    """Whether two stated modalities exclude each other, such as CT and T1. None agrees with all, and MR with every contrast of it."""
    stated = {one, other}
    return None not in stated and len(stated) == 2 and ("MR" not in stated or bool(stated & {"CT", "PET"}))


def is_modality(name: str) -> bool:
    """Whether a channel name states a modality, such as T1 or CT."""
    return modality(name) is not None


def role_of(name: str) -> Role:
    """Whether the part of a file name after the case id names an image, a label or a mask of brain or anonymised voxels (which is neither)."""
    if _BODY_MASK.search(name) or is_anonymisation(name):
        return "mask"
    words = [word.lower() for word in tokens(name)]
    return "label" if any(word in _LABEL_WORDS or re.fullmatch(r"\w+(seg|mask|label)", word) for word in words) else "image"


def is_anonymisation(name: str) -> bool:
    """Whether a name is that of a mask of the voxels that anonymisation took away, such as anon_mask or defacing-mask."""
    return _ANONYMISED.search(name) is not None


def is_called(file: Found, name: str) -> bool:
    """Whether `name` (a file name, its stem, or the part after the case id, in any case of letters) means this file."""
    full = stem(file.path).lower()
    name = stem(Path(name)).lower()
    return name in {full, file.channel.lower()} or full.endswith((f"_{name}", f"-{name}"))


def split_name(name: str, shared: frozenset[str] = frozenset()) -> tuple[str, str]:
    """(case id, the rest) of a flat file name: trailing words that name a modality, a label, a channel number or are `shared` come off."""
    if (mask := _ANONYMISED.search(name)) and mask.start():
        case, channel = split_name(name[: mask.start()].rstrip("_-. "), shared)
        return case, f"{channel}_{name[mask.start() :]}".lstrip("_")
    parts = re.split(r"([_\-. ]+)", name)
    cut = len(parts)
    while cut > 2 and (_is_suffix(parts[cut - 1], cut == len(parts)) or (cut == len(parts) and parts[-1] in shared)):
        cut -= 2
    return "".join(parts[: max(cut, 1)]), "".join(parts[cut + 1 :])


def _is_suffix(word: str, last: bool) -> bool:
    word = word.lower()
    known = word in _CHANNEL_WORDS or word in _LABEL_WORDS or role_of(word) != "image" or word in {"brain", "body", "head"}
    return known or (last and re.fullmatch(r"0\d{3}", word) is not None)


def with_label_said(file: Found, label: str | None) -> Found:
    """The file as a label where `label` means it."""
    if label is None or file.role == "label" or not is_called(file, label):
        return file
    return Found(file.path, file.case, "label", file.channel, file.split)


def is_label_word(word: str) -> bool:
    """Whether one word of a name says that it is of a label, such as seg or tumour."""
    return word.lower() in _LABEL_WORDS
