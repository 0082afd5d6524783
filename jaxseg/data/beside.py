"""Folders beside each other that hold one kind of file each: images/ and labels/, or T1/, FLAIR/ and labels/. Called by `layouts`."""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from jaxseg.data.io.scans import composed, name_of
from jaxseg.data.scan_names import (
    Found,
    is_label_word,
    is_modality,
    numbers_are_channels,
    role_of,
    scans_in,
    split_name,
    split_number,
    tokens,
)
from jaxseg.errors import InputError

# Folders that can be nothing else, and the split that their name says.
IMAGES = {
    "images": None,
    "image": None,
    "imagestr": "train",
    "imagests": "test",
    "scans": None,
    "volumes": None,
    "volume": None,
    "imgs": None,
    "img": None,
}
LABELS = {
    "labels": None,
    "label": None,
    "masks": None,
    "mask": None,
    "segmentations": None,
    "segmentation": None,
    "annotations": None,
    "annotation": None,
    "msk": None,
    "msks": None,
    "seg": None,
    "segs": None,
    "contours": None,
    "contour": None,
    "groundtruth": None,
    "ground_truth": None,
    "gt": None,
    "labelstr": "train",
    "labelsts": "test",
}
_LEADING_WORD = re.compile(r"(img|image|scan|volume|vol|label|lbl|segmentation|seg|mask|gt)s?[_\-. ]*(?=.)", re.IGNORECASE)


def files_beside(folders: Sequence[Path]) -> list[Found] | None:
    """The files of such folders, or None where each folder seems to be a case.

    One folder of images beside one of labels is a channel: `image`, or the modality that it is called after. Of several folders of images
    each is a channel, where their files are called like the labels, or where all of them are called after modalities.
    """
    folders = [folder for folder in folders if scans_in(folder)]
    if any(folder.name.lower() in IMAGES for folder in folders):
        others = [folder.name for folder in folders if folder.name.lower() not in {*IMAGES, *LABELS}]
        if others:
            warnings.warn(
                f"{folders[0].parent}: {', '.join(sorted(others)[:6])} beside the folder of images {'is' if len(others) == 1 else 'are'} passed over; labels "
                "are expected in a folder called labels",
                stacklevel=2,
            )
        return images_and_labels(folders)
    masks = [folder for folder in folders if role_of(folder.name) == "mask"]
    labels = [folder for folder in folders if folder not in masks and _may_hold_labels(folder)]
    images = [folder for folder in folders if folder not in masks and folder not in labels]
    stems = [name_of(path) for folder in images for path in scans_in(folder)]
    labels_of_files = [folder for folder in labels if _called_alike(folder, stems)]
    sure = [folder for folder in labels if folder in labels_of_files or folder.name.lower() in LABELS]
    images = [folder for folder in folders if folder not in masks and folder not in sure]
    channels = all(_is_channel(folder) for folder in images)
    if not images or not (sure or channels):
        return None
    if not labels_of_files and not channels and any(_called_alike(folder, [each.name for each in images]) for folder in sure):
        return None  # CASE/T1.nii.gz with labels/CASE.nii.gz
    if not labels_of_files and not channels and len(images) > 1:
        return None
    return _channel_folders(images, sure, masks)


def images_and_labels(folders: Sequence[Path], channels: Sequence[str] = ()) -> list[Found]:
    """images*/ and labels*/ with equal names; images may end in a channel number (of `channels`, where declared) or a channel name."""
    images = [folder for folder in folders if folder.name.lower() in IMAGES]
    labels = [folder for folder in folders if folder.name.lower() in LABELS]
    return _paired(images, labels, channels)


def labels_beside(folders: Sequence[Path], cases: Collection[str]) -> tuple[list[Path], list[Found]]:
    """The folders of labels among folders that are cases otherwise, and their files, called by their case."""
    labels = [folder for folder in folders if folder.name.lower() in LABELS]
    cases = {composed(case) for case in cases}
    files = [(path, _owner(name_of(path), cases)) for folder in labels for path in scans_in(folder)]
    return labels, [Found(path, case or name_of(path), "label", "") for path, case in files]


def _may_hold_labels(folder: Path) -> bool:
    words = tokens(folder.name)
    last = bool(words) and is_label_word(words[-1]) and not any(character.isdigit() for character in folder.name)
    return folder.name.lower() in LABELS or (last and _names_cases(folder))


def _is_channel(folder: Path) -> bool:
    """Whether a folder is called after a modality and its files are not."""
    return bool(tokens(folder.name)) and all(is_modality(word) for word in tokens(folder.name)) and _names_cases(folder)


def _names_cases(folder: Path) -> bool:
    """Whether files are called by more than channels and labels, as T1.nii.gz and seg.nii.gz are."""
    return all(any(not is_modality(word) and role_of(word) == "image" for word in tokens(name_of(path))) for path in scans_in(folder))


def _called_alike(folder: Path, names: Collection[str]) -> bool:
    return any(_owner(name_of(path), names) is not None for path in scans_in(folder))


def _owner(label: str, names: Collection[str]) -> str | None:
    """The case that a label file belongs to, of images (or folders) with these names; several images may begin with it."""
    head, rest = split_name(label)
    for case in (label, head) if role_of(rest) == "label" else (label,):
        if case in names or any(name.startswith((f"{case}_", f"{case}-")) for name in names):
            return case
    bare = _LEADING_WORD.sub("", label, count=1)
    alike = [name for name in names if _LEADING_WORD.sub("", name, count=1) == bare]
    return alike[0] if len(alike) == 1 else None


def _paired(images: Sequence[Path], labels: Sequence[Path], channels: Sequence[str]) -> list[Found]:
    """One kind of image folder, whose files may be several channels of a case, and the labels that belong to them."""
    paths = [(folder, path) for folder in images for path in scans_in(folder)]
    names = {name_of(path) for _, path in paths}
    owners = {path: _owner(name_of(path), names) or name_of(path) for folder in labels for path in scans_in(folder)}
    ids = set(owners.values())
    numbered = numbers_are_channels(names, ids, declared=bool(channels))
    files = []
    for folder, path in paths:
        case, channel = _image_name(name_of(path), ids, channels, numbered)
        files.append(Found(path, case, "image", channel, IMAGES.get(folder.name.lower())))
    splits = {file.case: file.split for file in files}
    known = {(file.case, file.split) for file in files}
    for path, case in owners.items():
        split = LABELS.get(path.parent.name.lower())
        files.append(Found(path, case, "label", "", split if (case, split) in known else splits.get(case, split)))
    return files


def _image_name(name: str, ids: set[str], channels: Sequence[str], numbered: bool) -> tuple[str, str]:
    """(case, channel) of an image; `numbered`: whether four digits at its end are a channel's."""
    number = split_number(name)
    if name in ids:
        return name, (*channels, "image")[0]
    if number and numbered:
        case, index = number
        if channels and index >= len(channels):
            raise InputError(f"image {name}: channel number {index}, but dataset.json declares {len(channels)}: {tuple(channels)}")
        return case, channels[index] if channels else name[-4:]
    owners = [case for case in ids if name.startswith((f"{case}_", f"{case}-"))]
    if owners:
        owner = max(owners, key=len)
        return owner, name[len(owner) + 1 :]
    if ids or number:
        return name, (*channels, "image")[0]
    case, channel = split_name(name)
    return case, channel or "image"


def _channel_folders(images: Sequence[Path], labels: Sequence[Path], masks: Sequence[Path]) -> list[Found]:
    if len(images) == 1 and not _is_channel(images[0]):
        files = _paired(images, labels, ())
    else:
        case_of = _case_names(images, labels)
        files = [Found(path, case_of(path), "image", folder.name) for folder in images for path in scans_in(folder)]
        cases = {file.case for file in files}
        owners = [(path, _owner(name_of(path), cases) or case_of(path)) for folder in labels for path in scans_in(folder)]
        files += [Found(path, case, "label", "") for path, case in owners]
    cases = {file.case for file in files}
    owned = [(folder, path, _owner(name_of(path), cases)) for folder in masks for path in scans_in(folder)]
    return files + [Found(path, case, "mask", folder.name) for folder, path, case in owned if case in cases]


def _case_names(images: Sequence[Path], labels: Sequence[Path]) -> Callable[[Path], str]:
    """Path → case id: the file's name, or what comes before its channel (p1_T1) where the names of no two folders meet without that."""
    names = [[name_of(path) for path in scans_in(folder)] for folder in images]
    others = names + [[name_of(path) for path in scans_in(folder)] for folder in labels]
    meet = (len(images) == 1 and not labels) or any(set(one) & set(other) for i, one in enumerate(names) for other in others[i + 1 :])
    owners = {split_name(name_of(path), numbered=False)[0] for folder in labels for path in scans_in(folder)}
    numbered = numbers_are_channels({name for each in names for name in each}, owners)
    heads = [[split_name(name, numbered=numbered)[0] for name in each] for each in names]
    if meet or any(len(set(each)) < len(each) for each in heads):
        return name_of
    return lambda path: split_name(name_of(path), numbered=numbered)[0]
