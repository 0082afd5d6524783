"""What the names of files and folders say of a scan: its case, its channel, and whether it is an image, a label or a mask.

Called by `layouts` and its parts, and by the index.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseg.data.io.scans import SUFFIXES, is_dangling, stem

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
_NUMBERED = re.compile(r"(.+)_(\d{4})")
_FIRST_WORD = re.compile(r"([^_\-. ]+)[_\-. ]+(.+)|([^\W\d_]+)(\d+)")  # volume-0, img0
MOST_CHANNELS = 8  # of a case whose channels nothing declares
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
    """Scan files (NIfTI, NRRD, MetaImage) directly in a folder, by name; hidden ones are passed over.

    A link to a file that is not there (not fetched, on a disk that moved) counts: reading it says so, and nothing vanishes without a word.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") and (path.is_file() or is_dangling(path))
    )


def tokens(name: str) -> list[str]:
    """The words of a file name: "STS_T1-tumour" → ["STS", "T1", "tumour"]."""
    return [word for word in re.split(r"[_\-. ]+", name) if word]


def modality(name: str) -> str | None:
    """The modality that a channel's or file's name states (its last word that is one), or None."""
    known = [_MODALITY_OF[word.lower()] for word in tokens(name) if word.lower() in _MODALITY_OF]
    return known[-1] if known else None


def only_pet(names: Collection[str]) -> bool:
    """Whether channels of these names show uptake alone, and no anatomy that says where the body is."""
    return all(modality(name) == "PET" for name in names)


def modality_of_file(name: str) -> str | None:
    """The modality that a file name without suffixes states after its case's id, or as its only word: PT_003 is a patient and no PET."""
    rest = split_name(name, numbered=True)[1]
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


def split_number(name: str) -> tuple[str, int] | None:
    """("case_1", 3) of case_1_0003; None for a name that ends in no four digits."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def numbers_are_channels(names: Collection[str], owners: Collection[str] = (), *, declared: bool = False) -> bool:
    """Whether the four digits at the end of these names, all of a folder's, are nnU-Net's channel numbers rather than part of the case's name.

    Labels decide first: one that belongs to a whole name (case_0001, case_0001_seg) says that numbers count cases, one that belongs to what comes
    before the number (case_1_0000, case_1) that they are channels. Else they are channels where they run from 0000 without a gap, no further than
    a case has channels, and at least half of the cases have them all. Of a lone case that is known only where its name has a digit of its own
    (BRATS_001_0000 and _0001, but not scan_0000 and scan_0001), or there is no other number than 0000.

    Args:
        names: names of files without their suffixes.
        owners: names that labels in another folder belong to.
        declared: a dataset.json names the channels, so that any number is one unless a label says otherwise.
    """
    numbered = {name: found for name in names if (found := split_number(name))}
    apart = (split_name(name, numbered=False) for name in names if name not in numbered)
    owners = {*owners, *(case for case, rest in apart if role_of(rest) != "image")}
    if not numbered or owners & numbered.keys():
        return False
    if declared or owners & {case for case, _ in numbered.values()}:
        return True
    channels_of: dict[str, set[int]] = {}
    for case, number in numbered.values():
        channels_of.setdefault(case, set()).add(number)
    channels = set(range(max(number for _, number in numbered.values()) + 1))
    if len(channels) > MOST_CHANNELS or set().union(*channels_of.values()) != channels:
        return False
    if len(channels_of) == 1:
        return len(channels) == 1 or any(character.isdigit() for character in next(iter(channels_of)))
    return 2 * sum(found == channels for found in channels_of.values()) >= len(channels_of)


def split_name(name: str, shared: frozenset[str] = frozenset(), *, numbered: bool | None = None) -> tuple[str, str]:
    """(case id, the rest) of a flat file name: trailing words that name a modality, a label, a channel number or are `shared` come off.

    Four digits at the end are a channel where `numbered`, which is for `numbers_are_channels` of the whole folder to say; None: by this name alone.
    """
    if (mask := _ANONYMISED.search(name)) and mask.start():
        case, channel = split_name(name[: mask.start()].rstrip("_-. "), shared, numbered=numbered)
        return case, f"{channel}_{name[mask.start() :]}".lstrip("_")
    parts = re.split(r"([_\-. ]+)", name)
    cut = len(parts)
    if _ends_in_channel(name, parts, numbered) or (cut > 2 and parts[-1] in shared):
        cut -= 2
    while cut > 2 and _is_suffix(parts[cut - 1]):
        cut -= 2
    return "".join(parts[: max(cut, 1)]), "".join(parts[cut + 1 :])


def _ends_in_channel(name: str, parts: list[str], numbered: bool | None) -> bool:
    """Also where a label's word comes before the number: case_seg_0001 is no image, whatever the number counts."""
    found = split_number(name)
    if found is None:
        return False
    of_label = len(parts) > 4 and role_of(parts[-3]) != "image" and found[1] < 1000
    return of_label or (numbers_are_channels([name]) if numbered is None else numbered)


def _is_suffix(word: str) -> bool:
    word = word.lower()
    return word in _CHANNEL_WORDS or word in _LABEL_WORDS or role_of(word) != "image" or word in {"brain", "body", "head"}


def names_with_role_first(names: Collection[str]) -> dict[str, tuple[str, Role, str]] | None:
    """(case id, role, channel) of flat names that begin with what a file is, as volume-0 and segmentation-0, T1_P1 and seg_P1, img0 and label0.

    None unless all begin so: some with a label's word, whose rest is an image's, too, and images with a modality each or with one and the same word.
    """
    split: dict[str, tuple[str, str]] = {}
    for name in names:
        if (found := _FIRST_WORD.fullmatch(name)) is None:
            return None
        split[name] = (found[1] or found[3], found[2] or found[4])
    if any(role_of(rest) != "image" or is_modality(rest) for _, rest in split.values()):
        return None
    labels = {name for name, (word, _) in split.items() if is_label_word(word)}
    images = {name: word.lower() for name, (word, _) in split.items() if name not in labels}
    rests = {split[name][1] for name in images}
    if not labels or not {split[name][1] for name in labels} <= rests:
        return None
    if not all(map(is_modality, images.values())) and len(set(images.values())) > 1:
        return None
    channel = {name: split[name][0] if is_modality(word) else "image" for name, word in images.items()}
    return {name: (rest, "label", word) if name in labels else (rest, "image", channel[name]) for name, (word, rest) in split.items()}


def with_label_said(file: Found, label: str | None) -> Found:
    """The file as a label where `label` means it."""
    if label is None or file.role == "label" or not is_called(file, label):
        return file
    return Found(file.path, file.case, "label", file.channel, file.split)


def is_label_word(word: str) -> bool:
    """Whether one word of a name says that it is of a label, such as seg or tumour."""
    return word.lower() in _LABEL_WORDS
