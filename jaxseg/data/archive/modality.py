"""What kind of scan a file is, and what that is concluded from. Called by `scan_row`."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data import bids
from jaxseg.data.io.scans import ScanRef, stem
from jaxseg.data.scan_names import modality as named_modality

UNKNOWN = "unknown"
_AIR_HU = -500.0


def guess_modality(ref: ScanRef, role: str, declared: Sequence[str], inner: Sequence[str]) -> tuple[str, str]:
    """(modality, evidence): "T1", "T1C", "T2", "FLAIR", "CT", "PET", "MR", …, "label", "mask", or "unknown".

    Args:
        ref: the scan, with what its DICOM header says.
        role: "image", "label" or "mask", as its path says.
        declared: channel names of a dataset.json above it.
        inner: folders between the root and the file.
    """
    name = stem(ref.path)
    if ref.format in ("DICOM SEG", "DICOM RTSTRUCT"):
        return "label", f"a {ref.format} object"
    if role != "image":
        return role, "its folder or file name"
    if ref.modality:
        found = named_modality(ref.modality) or ref.modality
        detail = named_modality(stem(ref.path)) if found == "MR" else None
        return (detail, "DICOM tag Modality MR and the folder's name") if detail else (found, f"DICOM tag Modality {ref.modality}")
    bids_name = bids.parse(name)
    if bids_name is not None and (found := named_modality(bids_name.contrast)):
        return found, f"BIDS suffix {bids_name.suffix}" + (" with entity ce" if "ce" in bids_name.entities else "")
    if found := _declared(name, declared):
        return found, "dataset.json"
    if found := named_modality(name):
        return found, "file name"
    for folder in reversed(inner):
        if found := named_modality(folder):
            return found, "folder name"
    return UNKNOWN, ""


def modality_of_values(low: float, high: float) -> tuple[str, str]:
    """What intensities alone tell: air below −500 beside tissue above 0 is what Hounsfield units look like."""
    if low < _AIR_HU and high > 0:
        return "CT", f"values from {low:g} to {high:g} look like Hounsfield units"
    return UNKNOWN, ""


def folders_between(path: Path, root: Path) -> tuple[str, ...]:
    """The folders on the way from a root to a file in it."""
    return path.relative_to(root).parts[:-1] if root.is_dir() else ()


def _declared(name: str, declared: Sequence[str]) -> str | None:
    number = re.search(r"_(\d{4})$", name)
    if number and int(number[1]) < len(declared):
        return named_modality(declared[int(number[1])])
    kinds = list(dict.fromkeys(named_modality(channel) for channel in declared))
    if not kinds or number or None in kinds:
        return None
    return "+".join(str(kind) for kind in kinds)
