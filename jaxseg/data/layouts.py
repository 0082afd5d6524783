"""The ways in which people lay out a folder of scans, recognised by names alone. Called by `cases` and `archive`."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxseg.data.bids import BidsFile, bids_files, is_bids
from jaxseg.data.io.scans import SUFFIXES, stem
from jaxseg.errors import InputError
from jaxseg.files import read_json

_IMAGES = {"images": None, "image": None, "imagestr": "train", "imagests": "test"}
_LABELS = {
    "labels": None,
    "label": None,
    "masks": None,
    "segmentations": None,
    "annotations": None,
    "labelstr": "train",
    "labelsts": "test",
}
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
UNDERSTOOD = (
    "BIDS (sub-01/anat/sub-01_T1w.nii.gz, labels in derivatives/); "
    "dataset.json with imagesTr/ and labelsTr/ (nnU-Net, Medical Decathlon); images/ and labels/ with equal names; "
    "a folder per case (CASE/T1.nii.gz, CASE/seg.nii.gz); one folder of CASE_T1.nii.gz and CASE_seg.nii.gz"
)

Role = Literal["image", "label", "mask"]


@dataclass(frozen=True)
class Found:
    """One file: the case it belongs to, what it is, and its channel (or, for a label, the part of its name after the case)."""

    path: Path
    case: str
    role: Role
    channel: str
    split: str | None = None


@dataclass(frozen=True)
class Declared:
    """What a dataset.json says."""

    channels: tuple[str, ...] = ()
    labels: dict[str, int | list[int]] | None = None
    regions: bool = False


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


def recognise(folder: Path, label: str | None) -> tuple[list[Found], Declared, str]:
    """Every file of a folder with its case and role, what a dataset.json declares, and the name of the layout."""
    root = _dataset_root(folder)
    if root is not None:
        declared = read_declared(root / "dataset.json")
        files, kind = _from_dataset(root, declared)
        return _found_something(folder, files), declared, kind
    if is_bids(folder):
        return [_from_bids(file) for file in bids_files(folder)], Declared(), "BIDS"
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if any(path.name.lower() in _IMAGES for path in subfolders):
        return _found_something(folder, _images_and_labels(subfolders, Declared())), Declared(), "images and labels"
    per_case = [path for path in subfolders if scans_in(path)]
    flat = scans_in(folder)
    if flat and per_case:
        raise InputError(
            f"{folder}: holds both scans ({flat[0].name}, …) and folders with scans ({per_case[0].name}/, …); "
            "give the one or the other, or move them apart"
        )
    if per_case:
        return [file for path in per_case for file in _case_folder(path, label)], Declared(), "a folder per case"
    return _found_something(folder, _flat(flat, label)), Declared(), "flat folder"


def read_declared(path: Path) -> Declared:
    """Channels and labels of a dataset.json, in nnU-Net's (v1, v2) or Medical Decathlon's spelling. InputError if it makes no sense."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object with channel_names (or modality) and labels")
    names = data.get("channel_names", data.get("modality", {}))
    labels = data.get("labels", {})
    try:
        channels = tuple(str(names[key]) for key in sorted(names, key=int))
        pairs = (
            [(value, int(name)) for name, value in labels.items()] if all(str(key).isdigit() for key in labels) else list(labels.items())
        )
        values = {str(name): sorted(map(int, value)) if isinstance(value, list) else int(value) for name, value in pairs}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f'{path}: channel_names must look like {{"0": "T1"}} and labels like {{"background": 0, "tumour": 1}}') from None
    kept = {name: value for name, value in values.items() if value not in (0, [0])}
    return Declared(channels, kept or None, any(isinstance(value, list) for value in kept.values()))


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


def _found_something(folder: Path, files: list[Found]) -> list[Found]:
    if any(file.role != "mask" for file in files):
        return files
    inside = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")][:10000]
    kinds = Counter("".join(path.suffixes[-2:]) or "no suffix" for path in inside)
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    raise InputError(
        f"{folder}: no cases found; there is {what}. Layouts that are understood, with NIfTI, NRRD or MetaImage files: {UNDERSTOOD}"
    )


def _from_bids(file: BidsFile) -> Found:
    return Found(file.path, file.case, file.role, file.channel)


def _dataset_root(folder: Path) -> Path | None:
    if (folder / "dataset.json").is_file():
        return folder
    below = [path.parent for path in sorted(folder.glob("*/dataset.json"))]
    if len(below) > 1:
        raise InputError(f"{folder}: several datasets lie here: {', '.join(path.name for path in below[:8])}; give one of them")
    return below[0] if below else None


def _from_dataset(root: Path, declared: Declared) -> tuple[list[Found], str]:
    data: Any = read_json(root / "dataset.json")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    if isinstance(data.get("training"), list) and all(isinstance(item, dict) for item in data["training"]) and "channel_names" not in data:
        numbered = any(re.search(r"_\d{4}$", stem(path)) for path in folders for path in _image_files(path))
        if not numbered:
            return _decathlon(root, data, declared), "Medical Decathlon"
    return _images_and_labels(folders, declared), "nnU-Net"


def _image_files(folder: Path) -> list[Path]:
    return scans_in(folder) if folder.name.lower() in _IMAGES else []


def _decathlon(root: Path, data: dict[str, Any], declared: Declared) -> list[Found]:
    channels = declared.channels or ("image",)
    files = []
    listed = [(item.get("image"), item.get("label"), "train") for item in data["training"]]
    listed += [(item.get("image") if isinstance(item, dict) else item, None, "test") for item in data.get("test", [])]
    for image, label, split in listed:
        path = _inside(root, image)
        files += [Found(path, stem(path), "image", channel, split) for channel in channels]
        if label:
            files.append(Found(_inside(root, label), stem(path), "label", "", split))
    return files


def _inside(root: Path, name: object) -> Path:
    path = root / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root / 'dataset.json'}: {name!r} is not a file inside this folder")
    return path


def _images_and_labels(folders: list[Path], declared: Declared) -> list[Found]:
    """images*/ and labels*/ with equal names; images may end in a channel number or a channel name."""
    labels = [
        Found(path, stem(path), "label", "", _LABELS[folder.name.lower()])
        for folder in folders
        if folder.name.lower() in _LABELS
        for path in scans_in(folder)
    ]
    ids = {file.case for file in labels}
    files = []
    for folder in folders:
        for path in _image_files(folder):
            case, channel = _image_name(stem(path), ids, declared)
            files.append(Found(path, case, "image", channel, _IMAGES[folder.name.lower()]))
    splits = {file.case: file.split for file in files}
    return files + [Found(file.path, file.case, "label", "", splits.get(file.case, file.split)) for file in labels]


def _image_name(name: str, ids: set[str], declared: Declared) -> tuple[str, str]:
    if name in ids:
        return name, (declared.channels or ("image",))[0]
    if number := re.fullmatch(r"(.+)_(\d{4})", name):
        index = int(number[2])
        if declared.channels and index >= len(declared.channels):
            raise InputError(
                f"image {name}: channel number {index}, but dataset.json declares {len(declared.channels)}: {declared.channels}"
            )
        return number[1], declared.channels[index] if declared.channels else number[2]
    owners = [case for case in ids if name.startswith((f"{case}_", f"{case}-"))]
    if owners:
        owner = max(owners, key=len)
        return owner, name[len(owner) + 1 :]
    if ids:
        return name, "image"
    case, channel = split_name(name)
    return case, channel or "image"


def _case_folder(folder: Path, label: str | None) -> list[Found]:
    files = []
    for path in scans_in(folder):
        name = stem(path)
        rest = name[len(folder.name) :].lstrip("_-. ") if name.lower().startswith(folder.name.lower()) else name
        file = Found(path, folder.name, role_of(rest), rest or "image")
        files.append(_with_label_said(file, label))
    return files


def _flat(paths: list[Path], label: str | None) -> list[Found]:
    names = [stem(path) for path in paths]
    heads: dict[str, set[str]] = {}
    for name in names:
        head, _, last = name.rpartition("_")
        if head and not last.isdigit():
            heads.setdefault(last, set()).add(head)
    shared = frozenset(last for last, cases in heads.items() if len(cases) > 1)
    split = {name: split_name(name, shared) for name in names}
    if all(re.search(r"[_-]\d{4}$", name) for name in names) and len({case for case, _ in split.values()}) == 1 and len(names) > 4:
        split = {name: (name, "") for name in names}  # case_0001, case_0002, …: these count cases, not channels
    files = [
        Found(path, split[name][0], role_of(split[name][1]), split[name][1] or "image") for path, name in zip(paths, names, strict=True)
    ]
    return [_with_label_said(file, label) for file in files]


def _with_label_said(file: Found, label: str | None) -> Found:
    if label is None or file.role == "label" or not is_called(file, label):
        return file
    return Found(file.path, file.case, "label", file.channel, file.split)
