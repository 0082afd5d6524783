"""Folders that are one case each, directly below a root or deeper: CASE/T1.nii.gz, SITE/PATIENT/VISIT/T1.nii.gz. Called by `layouts`."""

import dataclasses
from pathlib import Path

from jaxseg.data.beside import IMAGES, LABELS, files_beside
from jaxseg.data.io.scans import stem
from jaxseg.data.scan_names import Found, is_modality, role_of, scans_in, tokens, with_label_said
from jaxseg.errors import InputError

MADE_FROM = ".made_from"  # in each folder of predictions: what they were made of
_DEEPEST = 12


def subfolders_of(folder: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones and those of predictions are passed over."""
    return [path for path in _folders_in(folder) if not _holds_predictions(path)]


def scans_below(folder: Path, deepest: int = _DEEPEST) -> bool:
    """Whether there is a scan in a folder, or in those below it that count."""
    return bool(scans_in(folder)) or (deepest > 0 and any(scans_below(path, deepest - 1) for path in subfolders_of(folder)))


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _holds_predictions(folder: Path) -> bool:
    """Whether `segment` wrote this folder, so that its label maps are no scans; not one of labels (corrected by hand, perhaps), nor with folders in it."""
    return (folder / MADE_FROM).is_dir() and folder.name.lower() not in {*IMAGES, *LABELS} and not _folders_in(folder)


def files_of_case(folder: Path, label: str | None, case: str | None = None) -> list[Found]:
    """The files of a folder that is one case: `case`, or what the folder is called."""
    files = []
    for path in scans_in(folder):
        name = stem(path)
        prefix = next((each for each in (folder.name, case or "") if each and name.lower().startswith(each.lower())), "")
        rest = name[len(prefix) :].lstrip("_-. ")
        files.append(with_label_said(Found(path, case or folder.name, role_of(rest), rest or "image"), label))
    return files


def files_below(root: Path, label: str | None) -> list[Found]:
    """The files of folders that lie deeper than one level: every folder that holds scans is a case, called by the folders on the way to it.

    Folders that are called after what they hold (images, labels, T1) are no part of a case's name.

    Raises:
        InputError: two folders would be the same case.
    """
    return _apart(root, _descend(root, root, label, _DEEPEST), {})


def files_within(root: Path, cases: list[Path], label: str | None) -> list[Found]:
    """The files of folders that lie within `cases`, folders of `root` that are cases themselves.

    CASE/labels/x.nii.gz belongs to CASE, CASE/followup/T1.nii.gz is a case CASE_followup.

    Raises:
        InputError: two folders would be the same case.
    """
    files = [each for path in cases for each in _descend(root, path, label, _DEEPEST)]
    return _apart(root, files, {path.name: (path.name,) for path in cases})


def _apart(root: Path, files: list[tuple[Found, tuple[str, ...]]], homes: dict[str, tuple[str, ...]]) -> list[Found]:
    homes = dict(homes)
    for file, names in files:
        if homes.setdefault(file.case, names) != names:
            raise InputError(
                f"{root}: {'/'.join(homes[file.case])} and {'/'.join(names)} would both be case {file.case}; rename one of them"
            )
    return [file for file, _ in files]


def _descend(root: Path, folder: Path, label: str | None, deepest: int) -> list[tuple[Found, tuple[str, ...]]]:
    below = subfolders_of(folder) if deepest else []
    many = any(len(scans_in(path)) > 1 for path in below)
    beside = files_beside(below) if many and folder != root else None
    found = []
    if beside is not None:
        names = _case_names(folder.relative_to(root).parts)
        found = [(dataclasses.replace(file, case="_".join([*names, file.case])), (*names, file.case)) for file in beside]
    for path in below:
        if beside is None and scans_in(path):
            names = _case_names(path.relative_to(root).parts)
            found += [(_as_the_folders_say(file, path, root), names) for file in files_of_case(path, label, "_".join(names))]
        found += _descend(root, path, label, deepest - 1)
    return found


def _case_names(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in parts if _kind(part) is None) or parts


def _as_the_folders_say(file: Found, folder: Path, root: Path) -> Found:
    """CASE/labels/x.nii.gz is a label, CASE/T1/x.nii.gz the channel T1."""
    kinds = [kind for part in folder.relative_to(root).parts if (kind := _kind(part)) not in (None, "image")]
    if not kinds or file.role != "image":
        return file
    if kinds[-1] in ("label", "mask"):
        return dataclasses.replace(file, role=kinds[-1])
    if is_modality(file.channel):
        return file
    alone = len(scans_in(folder)) == 1
    return dataclasses.replace(file, channel=kinds[-1] if alone else f"{kinds[-1]}_{file.channel}")


def _kind(part: str) -> str | None:
    """What a folder is called after: "image", "label", "mask", a channel's name, or None for anything else."""
    if part.lower() in IMAGES:
        return "image"
    if part.lower() in LABELS or (tokens(part) and all(role_of(word) == "label" for word in tokens(part))):
        return "label"
    if role_of(part) == "mask":
        return "mask"
    return part if tokens(part) and all(is_modality(word) for word in tokens(part)) else None
