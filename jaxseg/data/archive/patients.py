"""Whose scan a file is, by where it lies and how it is called, as keys that tell patients apart without naming them. Called by `scan_row`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data import bids
from jaxseg.data.beside import IMAGES, LABELS
from jaxseg.data.io.scans import stem
from jaxseg.data.scan_names import is_modality, role_of, split_name, tokens

IMAGE_FOLDERS = frozenset({*IMAGES, "imagesval"})
LABEL_FOLDERS = frozenset({*LABELS, "labelsval"})
# Folders that say where it was taken, not of whom.
_PLACE = re.compile(r"(site|cent(re|er)|hospital|scanner|cohort|batch)s?[-_ ]?\w{0,3}", re.IGNORECASE)
_COUNTED = re.compile(r"(case|scan|image|img|vol(ume)?|sample|pat(ient)?|sub(j(ect)?)?|id|p|s)?[-_ ]?\d{1,4}", re.IGNORECASE)
# Folders that say what lies in them, never whose it is.
_GENERIC = frozenset(
    "train training test testing val valid validation dataset datasets data raw rawdata sourcedata derivatives nifti nii dicom scans unlabelled "
    "labelled unlabeled labeled anat func fmap dwi perf pet meg eeg hgg lgg".split()
)


@dataclass(frozen=True)
class Owner:
    """Whose scan it is: names as they lie in the path, which never leave the process that reads them, and the file's role."""

    patient: str
    study: str
    role: str


def patient_key(name: str, salt: str = "") -> str:
    """16 hexadecimal digits of the SHA-256 of salt and name. Without a secret salt whoever guesses the name can check the guess."""
    return hashlib.sha256(f"{salt}{name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_counted(name: str) -> bool:
    """Whether a case's name only counts (case_3, sub-01, 17): it is then found in many folders and says nothing of whose scan it is."""
    return _COUNTED.fullmatch(name) is not None


def owner_of(path: Path, root: Path, *, numbered: bool | None = None) -> Owner:
    """Whose scan lies at `path` below `root`; `numbered` says of its folder what `numbers_are_channels` does (None: what that says of its name alone).

    In this order: the BIDS subject; a folder whose name the file's repeats (BraTS); inside images/ or labels/ the folder below that or
    the file's own name (nnU-Net, Medical Decathlon); the topmost folder that could be a patient's, one with a number (STS_001) before
    one without (sarcoma); the file's own name.
    """
    inner = list(path.relative_to(root).parts[:-1]) if root.is_dir() else []
    name = stem(path)
    named = bids.parse(name)
    if named is not None or (subject := _subject(inner)):
        patient = named.subject if named is not None else subject
        session = named.session if named is not None else None
        return Owner(patient, f"{patient}/{session}" if session else patient, (named and named.role) or _role(inner, name, ""))
    repeated = next((folder for folder in reversed(inner) if name.lower().startswith(folder.lower()) and not _generic(folder)), None)
    folder = repeated or _patient_folder(inner, name)
    if folder is None:
        case = split_name(name, numbered=numbered)[0]
        return Owner(case, case, _role(inner, name, ""))
    deeper = [other for other in inner[inner.index(folder) + 1 :] if not _generic(other)]
    return Owner(folder, "/".join([folder, *deeper[:1]]), _role(inner, name, folder))


def _patient_folder(inner: list[str], name: str) -> str | None:
    kind = next((place for place, folder in enumerate(inner) if folder.lower() in IMAGE_FOLDERS | LABEL_FOLDERS), None)
    if kind is None:
        candidates = [folder for folder in inner if not _generic(folder)]
        return next((folder for folder in candidates if is_numbered(folder)), next(iter(candidates), None))
    below = next((folder for folder in inner[kind + 1 :] if not _generic(folder)), None)
    if below is None and all(is_modality(word) or role_of(word) != "image" for word in tokens(name)):
        return next((folder for folder in reversed(inner[:kind]) if not _generic(folder)), None)  # PATIENT/images/T1.nii.gz
    return below


def _role(inner: list[str], name: str, folder: str) -> str:
    kinds = {other.lower() for other in inner}
    if kinds & LABEL_FOLDERS:
        return "label"
    if folder and name.lower().startswith(folder.lower()):
        return role_of(name[len(folder) :])
    return role_of(split_name(name)[1] if kinds & IMAGE_FOLDERS or not folder else name)


def _generic(folder: str) -> bool:
    return (
        _PLACE.fullmatch(folder) is not None
        or folder.lower() in _GENERIC | IMAGE_FOLDERS | LABEL_FOLDERS
        or all(is_modality(word) for word in tokens(folder))
    )


def is_numbered(folder: str) -> bool:
    """Whether a folder's name holds a number that is no date and no place's, such as STS_001, and may be a patient's."""
    return _PLACE.fullmatch(folder) is None and bool(re.search(r"\d", re.sub(r"(19|20)\d\d[-_.]?(\d\d[-_.]?\d\d)?", "", folder)))


def _subject(inner: list[str]) -> str:
    return next((folder for folder in inner if re.fullmatch(r"sub-[A-Za-z0-9]+", folder)), "")
