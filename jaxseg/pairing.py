"""Which prediction belongs to which truth, by case id. Called by `evaluate`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data import layouts, scan_names
from jaxseg.data.io.scans import composed, name_of
from jaxseg.errors import InputError

_LABEL_FOLDERS = {"labels", "labelstr", "labelsts"}


@dataclass(frozen=True)
class Pairing:
    """`pairs`: case id → (prediction or None, truth), in order of case id; `extra`: ids of predictions without a truth."""

    pairs: dict[str, tuple[Path | None, Path]]
    extra: tuple[str, ...]


def pair_folders(pred: Path, truth: Path, truths: Mapping[str, Path]) -> Pairing:
    """Pair the label files of a folder with the truths by case id that were found in another.

    InputError where the folder is missing or empty, ids are not unique, or nothing pairs.
    """
    predictions = label_files(pred)
    if not predictions.keys() & truths.keys():
        raise InputError(
            f"{pred} and {truth} have no case in common: the predictions are of {listed(predictions)}, the truths of {listed(truths)}; "
            "name a prediction by its case, as in CASE.nii.gz"
        )
    pairs = {case: (predictions.get(case), truths[case]) for case in sorted(truths)}
    return Pairing(pairs, tuple(sorted(predictions.keys() - truths.keys())))


def label_files(folder: Path, label: str | None = None) -> dict[str, Path]:
    """Case id → label file, from names alone; of several of a case the one that is called `label` (`scan_names.is_called`).

    * files in the folder itself: those whose name says that they are labels (`ID_seg`, `ID_tumour`), or all of them where none says so
    (`ID`);
    * else those of the cases that `find_cases` sees, by the same ids;
    * and of those in `labels`, `labelsTr` and `labelsTs` within it the ones that it does not see, or all where there are no images, by stems.

    InputError where there is no such folder or no label file, a case has two, none is called `label`, or the folder is laid out in no way that is known.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a folder of label files (.nii or .nii.gz) was expected")
    files = scan_names.scans_in(folder)
    within = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.lower() in _LABEL_FOLDERS)
    if files:
        named = [(scan_names.split_name(name_of(path)), path) for path in files]
        said = [scan_names.Found(path, case, "label", rest) for (case, rest), path in named if scan_names.role_of(rest) == "label"]
        said = _called(folder, said, label)
        return _unique(folder, [(file.case, file.path) for file in said] or [(name_of(path), path) for path in files])
    try:
        found, _, _ = layouts.recognise(folder, label)
    except InputError:
        if not within:
            raise
        found = []
    if within and not any(file.role == "image" for file in found):
        found = []
    found = _called(folder, [file for file in found if file.role == "label" and file.path.is_file()], label)
    case_of = {file.path: file.case for file in found}
    others = [path for place in within for path in scan_names.scans_in(place) if path not in case_of]
    return _unique(folder, [*((case, path) for path, case in case_of.items()), *((name_of(path), path) for path in others)])


def _called(folder: Path, labels: list[scan_names.Found], label: str | None) -> list[scan_names.Found]:
    """Those that are called `label`, where one is named and they are called by more than their case."""
    if label is None or not any(file.channel for file in labels):
        return labels
    if kept := [file for file in labels if scan_names.is_called(file, label)]:
        return kept
    raise InputError(f"{folder}: no label is called {label}; there are {listed({file.channel for file in labels})}")


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names and how many more there are, for messages."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _unique(folder: Path, files: list[tuple[str, Path]]) -> dict[str, Path]:
    if not files:
        raise InputError(f"{folder}: no label file found; expected CASE.nii.gz, CASE_seg.nii.gz, labelsTr/CASE.nii.gz or CASE/seg.nii.gz")
    by_case: dict[str, Path] = {}
    for case, path in ((composed(case), path) for case, path in files):
        if case in by_case:
            raise InputError(f"{folder}: case {case} has two label files, {by_case[case].name} and {path.name}; leave one of them")
        by_case[case] = path
    return by_case
