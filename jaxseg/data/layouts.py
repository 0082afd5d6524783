"""The ways in which people lay out a folder of scans, recognised by names alone. Called by `cases` and `archive`."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseg.data.archive.patients import is_numbered
from jaxseg.data.beside import IMAGES, LABELS, files_beside, images_and_labels, labels_beside
from jaxseg.data.bids import BidsFile, bids_files, is_bids
from jaxseg.data.case_folders import files_below, files_of_case, files_within, scans_below, subfolders_of
from jaxseg.data.io.scans import name_of, stem
from jaxseg.data.scan_names import (
    MOST_CHANNELS,
    Found,
    is_modality,
    names_with_role_first,
    numbers_are_channels,
    role_of,
    scans_in,
    split_name,
    with_label_said,
)
from jaxseg.errors import InputError
from jaxseg.files import read_json

UNDERSTOOD = (
    "BIDS (sub-01/anat/sub-01_T1w.nii.gz, labels in derivatives/); "
    "dataset.json with imagesTr/ and labelsTr/ (nnU-Net, Medical Decathlon); images/ (or scans/, or T1/ and FLAIR/) and labels/ with equal names; "
    "a folder per case (CASE/T1.nii.gz, CASE/seg.nii.gz), also deeper (SITE/CASE/VISIT/T1.nii.gz); one folder, or one a site, of CASE_T1.nii.gz and "
    "CASE_seg.nii.gz"
)
PER_CASE, DEEPER, COLLECTIONS = "a folder per case", "a folder per case, deeper", "folders of cases"
NESTED = "a folder per case, with cases in it"  # the outer folder is the patient


class NothingFound(InputError):
    """A folder without any file of the formats that layouts are made of."""


@dataclass(frozen=True)
class Declared:
    """What a dataset.json says."""

    channels: tuple[str, ...] = ()
    labels: dict[str, int | list[int]] | None = None
    regions: bool = False


def recognise(folder: Path, label: str | None) -> tuple[list[Found], Declared, str]:
    """Every file of a folder with its case and role, what a dataset.json declares, and the name of the layout."""
    root = _dataset_root(folder)
    if root is not None:
        declared = read_declared(root / "dataset.json")
        files, kind = _from_dataset(root, declared, part=None if folder in (root, root.parent) else folder.absolute().name)
        return _found_something(folder, files), declared, kind
    if is_bids(folder):
        return [_from_bids(file) for file in bids_files(folder)], Declared(), "BIDS"
    subfolders = subfolders_of(folder)
    beside = files_beside(subfolders)
    if beside is not None:
        return _found_something(folder, beside), Declared(), "images and labels"
    holding, flat = [path for path in subfolders if scans_in(path)], scans_in(folder)
    if flat and holding:
        raise _mixture(folder, flat[0], holding[0])
    if flat:
        return _found_something(folder, _flat(flat, label)), Declared(), "flat folder"
    if all(path in holding or not scans_below(path) for path in subfolders) and holding:
        collected = _collections(holding, label)
        if collected is not None:
            for path in holding:
                if inner := next((each for each in subfolders_of(path) if scans_below(each)), None):
                    raise _mixture(path, scans_in(path)[0], inner)
            return _found_something(folder, collected), Declared(), COLLECTIONS
        labels, files = labels_beside(holding, {path.name for path in holding})
        cases = [path for path in holding if path not in labels]
        per_case = [file for path in cases for file in files_of_case(path, label)]
        within = _without_strange(folder, per_case, files_within(folder, cases, label))
        kind = NESTED if {file.case for file in within} - {path.name for path in cases} else PER_CASE
        return _found_something(folder, per_case + within + files), Declared(), kind
    return _found_something(folder, files_below(folder, label)), Declared(), DEEPER


def _collections(folders: list[Path], label: str | None) -> list[Found] | None:
    """The files of folders that hold several cases each (SITE/CASE_T1.nii.gz, SITE/CASE.nii.gz), or None where a folder rather is a case.

    Files are then called after a case and a modality, few of them alike in two folders; or none after a modality and no two alike. A lone folder is
    one of cases where it holds more files than a case has channels. Cases of several folders are called SITE_CASE.
    """
    flat = {path: _flat(scans_in(path), label) for path in folders}
    images = [file for files in flat.values() for file in files if file.role == "image"]
    stems = Counter(stem(file.path).lower() for file in images)
    alike = sum(count > 1 for count in stems.values())
    after_case = 2 * alike <= len(stems) and all(is_modality(file.channel) and not is_modality(file.case) for file in images)
    plain = not alike and not any(is_modality(name) for name in stems)
    if not images or not (after_case or plain):
        return None
    if len(folders) == 1:
        return flat[folders[0]] if len(images) > MOST_CHANNELS else None
    several = any(len({file.case for file in files if file.role == "image"}) > 1 for files in flat.values())
    if not several or (not after_case and all(is_numbered(path.name) for path in folders)):
        return None
    return [dataclasses.replace(file, case=f"{path.name}_{file.case}") for path, files in flat.items() for file in files]


def _mixture(folder: Path, scan: Path, inner: Path) -> InputError:
    return InputError(
        f"{folder}: holds both scans ({scan.name}, …) and folders with scans ({inner.name}/, …); give the one or the other, or move them apart"
    )


def _without_strange(root: Path, outer: list[Found], within: list[Found]) -> list[Found]:
    """Of files that lie within cases: those of the cases themselves, and of cases with a channel that the outer ones have (another visit).

    Others (things derived from the scans, most likely) are passed over with a warning that names them.
    """
    cases = {file.case for file in outer}
    channels = {file.channel.lower() for file in outer if file.role == "image"}
    known = cases | {file.case for file in within if file.role == "image" and file.channel.lower() in channels}
    strange = sorted({str(file.path.parent.relative_to(root)) for file in within if file.case not in known})
    if strange:
        warnings.warn(
            f"{root}: the scans in {len(strange)} folders within cases are passed over, since none of them is called after a channel of the cases: "
            f"{', '.join(strange[:5])}{', …' if len(strange) > 5 else ''}; if they are scans of their own, call them as the others are called",
            RuntimeWarning,
            stacklevel=4,
        )
    return [file for file in within if file.case in known]


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
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(f'{path}: channel_names must look like {{"0": "T1"}} and labels like {{"background": 0, "tumour": 1}}') from None
    channels = _told_apart(channels)
    if len(set(channels)) < len(channels):
        raise InputError(f"{path}: two channels have one name ({', '.join(channels)}); give each its own")
    kept = {name: value for name, value in values.items() if value not in (0, [0])}
    single = [value for value in kept.values() if isinstance(value, int)]
    if len(set(single)) < len(single):
        raise InputError(
            f"{path}: two labels have one value ({', '.join(f'{name}: {value}' for name, value in kept.items())}); give each its own"
        )
    return Declared(channels, kept or None, any(isinstance(value, list) for value in kept.values()))


def _told_apart(channels: tuple[str, ...]) -> tuple[str, ...]:
    """Names that stand for several channels with the channel's number: nnU-Net takes them for kinds of normalisation, so that all may be "CT"."""
    return tuple(f"{name}_{place}" if channels.count(name) > 1 else name for place, name in enumerate(channels))


def _found_something(folder: Path, files: list[Found]) -> list[Found]:
    if any(file.role != "mask" for file in files):
        return files
    inside = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")][:10000]
    kinds = Counter("".join(path.suffixes[-2:]) or "no suffix" for path in inside)
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files at all"
    raise NothingFound(
        f"{folder}: no cases found; there is {what}. Layouts that are understood, with NIfTI, NRRD or MetaImage files: {UNDERSTOOD}; or folders of DICOM series"
    )


def _from_bids(file: BidsFile) -> Found:
    return Found(file.path, file.case, file.role, file.channel)


def dataset_json(folder: Path) -> Path | None:
    """The dataset.json that tells of a folder: its own, or the dataset's where the folder is one of a dataset (imagesTr, imagesTs); None for none."""
    within = folder if folder.name else folder.absolute()
    homes = [folder, within.parent] if IMAGES.get(within.name.lower()) else [folder]
    return next((file for home in homes if (file := home / "dataset.json").is_file()), None)


def _dataset_root(folder: Path) -> Path | None:
    if file := dataset_json(folder):
        return file.parent
    below = [path.parent for path in sorted(folder.glob("*/dataset.json"))]
    if len(below) > 1:
        raise InputError(f"{folder}: several datasets lie here: {', '.join(path.name for path in below[:8])}; give one of them")
    return below[0] if below else None


def _from_dataset(root: Path, declared: Declared, part: str | None) -> tuple[list[Found], str]:
    """The files of a dataset, or of its cases whose images lie in the folder `part` of it; and the name of the layout."""
    data: Any = read_json(root / "dataset.json")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir()]
    if isinstance(data.get("training"), list) and all(isinstance(item, dict) for item in data["training"]) and "channel_names" not in data:
        images, labels = ({name_of(path) for path in folders for path in _files_if(path, kinds)} for kinds in (IMAGES, LABELS))
        if not numbers_are_channels(images, labels, declared=True):
            return _decathlon(root, data, declared, part), "Medical Decathlon"
    if part is not None:
        folders = [path for path in folders if path.name == part or LABELS.get(path.name.lower(), "other") in (None, IMAGES[part.lower()])]
    return images_and_labels(folders, declared.channels), "nnU-Net"


def _files_if(folder: Path, called: Collection[str]) -> list[Path]:
    return scans_in(folder) if folder.name.lower() in called else []


def _list_of(root: Path, data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key) or []
    if not isinstance(found, list):
        raise InputError(f"{root / 'dataset.json'}: {key} must be a list of image files, found {found!r}")
    return found


def _decathlon(root: Path, data: dict[str, Any], declared: Declared, part: str | None) -> list[Found]:
    channels = declared.channels or ("image",)
    files = []
    listed = [(item.get("image"), item.get("label"), "train") for item in data["training"]]
    listed += [(item.get("image") if isinstance(item, dict) else item, None, "test") for item in _list_of(root, data, "test")]
    for image, label, split in listed:
        path = _inside(root, image)
        if part is not None and path.parent.name != part:
            continue
        files += [Found(path, name_of(path), "image", channel, split) for channel in channels]
        if label:
            files.append(Found(_inside(root, label), name_of(path), "label", "", split))
    return files


def _inside(root: Path, name: object) -> Path:
    path = root / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root / 'dataset.json'}: {name!r} is not a file inside this folder")
    return path


def _flat(paths: list[Path], label: str | None) -> list[Found]:
    names = [name_of(path) for path in paths]
    if role_first := names_with_role_first(names):
        return [Found(path, *role_first[name]) for path, name in zip(paths, names, strict=True)]
    heads: dict[str, set[str]] = {}
    for name in names:
        head, _, last = name.rpartition("_")
        if head and not last.isdigit():
            heads.setdefault(last, set()).add(head)
    shared = frozenset(last for last, cases in heads.items() if len(cases) > 1)
    numbered = numbers_are_channels(names)
    split = {name: split_name(name, shared, numbered=numbered) for name in names}
    files = [
        Found(path, split[name][0], role_of(split[name][1]), split[name][1] or "image") for path, name in zip(paths, names, strict=True)
    ]
    return [with_label_said(file, label) for file in files]
