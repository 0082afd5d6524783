"""The cases of a folder of DICOM series, by their headers alone. Called by `cases` where a folder holds no file of another format."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data.archive.modality import folders_between, guess_modality
from jaxseg.data.io.scans import ScanRef, find_scans, joined
from jaxseg.errors import InputError

_LONGEST = 120  # characters of an id: it becomes a file's name


@dataclass(frozen=True)
class DicomCase:
    """A study: its name, a folder for each modality, and its patient, called by the name of the patient's first study."""

    id: str
    images: dict[str, Path]
    patient: str


def dicom_cases(root: Path, scans: Callable[[Path], Iterable[ScanRef]] = find_scans) -> list[DicomCase]:
    """The studies below a folder, each called by the folders on the way to it, with a channel a modality as the index guesses it.

    What is no scan (localisers, reports, segmentations) is passed over. A second series of the same modality begins a case of its own. Series that
    share a folder are found by the folder, and refused by their reader, which says so. An empty list where there is no DICOM file.

    Args:
        scans: what reads the headers below a folder.

    Raises:
        InputError: there are DICOM files, but no scan among them, with the reasons.
    """
    series: dict[str, list[ScanRef]] = {}
    reasons = []
    for ref in scans(root):
        if ref.format.startswith("DICOM") and (ref.reason or ref.format != "DICOM"):
            reasons.append(f"{ref.path.name}: {ref.reason or f'a {ref.format} object'}")
        elif ref.format == "DICOM":
            series.setdefault(ref.key, []).append(ref)
    if reasons and not series:
        raise InputError(f"Its DICOM files hold no scan: {'; '.join(dict.fromkeys(reasons[:3]))}")
    studies: dict[str, list[ScanRef]] = {}
    for ref in map(joined, series.values()):
        studies.setdefault(ref.study, []).append(ref)
    homes = {study: joined(refs).path for study, refs in studies.items()}
    shared = Counter(homes.values())
    found: list[DicomCase] = []
    patients: dict[str, str] = {}
    for study, refs in studies.items():
        name = _name(root, homes[study], study, alone=shared[homes[study]] == 1)
        found += _cases_of_study(root, name, patients.setdefault(refs[0].patient or study, name), refs)
    return sorted(found, key=lambda case: case.id)


def _cases_of_study(root: Path, name: str, patient: str, refs: Sequence[ScanRef]) -> list[DicomCase]:
    parts: list[dict[str, Path]] = []
    for ref in refs:
        modality = guess_modality(ref, "image", (), folders_between(ref.path, root))[0]
        if any(ref.path in part.values() for part in parts):
            continue  # one folder with several series: its reader lists them
        home = next((part for part in parts if modality not in part), None)
        if home is None:
            parts.append(home := {})
        home[modality] = ref.path
    return [DicomCase(f"{name}_{number + 1}" if number else name, part, patient) for number, part in enumerate(parts)]


def _name(root: Path, home: Path, study: str, *, alone: bool) -> str:
    inner = home.relative_to(root).parts or (root.resolve().name,)
    name = "_".join([*inner, *([] if alone else [study])])
    return name if len(name) <= _LONGEST else study
