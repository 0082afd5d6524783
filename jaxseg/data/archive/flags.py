"""Short names for what is wrong or unusual about a scan, so that an archive can be counted and filtered. Called by `scan_row`."""

import re
from typing import Any

# Flag → words of the messages that readers refuse a scan with; the first that matches names it.
_OF_REASON = {
    "several folders": r"its series lies in \d+ folders",
    "not a scan file": r"not a NIfTI file|not an? \w+ file|does not open|HTML page|magic",
    "decoder missing": r"no decoder is installed",
    "empty": r"an empty file",
    "truncated": r"truncated|ends early|said to begin at byte",
    "damaged": r"stream is damaged|damaged header|bytes follow the voxels",
    "too large": r"more than the limit",
    "out of memory": r"memory",
    "unreadable": r"cannot be read|no such file",
    "missing part": r"is missing beside|half of a",
    "not 3-D": r"-D image|a single slice|must be 3-D|volumes, but",
    "not grey values": r"voxels are (?!not finite)",
    "not finite": r"not finite",
    "constant": r"constant: every voxel",
    "no orientation": r"states no orientation",
    "forms conflict": r"contradict each other|was asked for, but the file states",
    "voxel size": r"voxel sizes|spacing",
    "gantry tilt": r"gantry tilt",
    "sheared": r"sheared",
    "affine": r"not an invertible affine|quaternion",
    "burned in": r"burned into its pixels",
    "contours": r"contours, not voxels",
    "overlapping segments": r"belong to several of its",
    "missing slices": r"missing slices",
    "duplicate slices": r"duplicate slices",
    "slices": r"slice",
    "localiser": r"locali[sz]er",
}
_ANISOTROPIC = 3.0
_THIN = 16
_ODD_SPACING_MM = (0.05, 20.0)


def flag_of_reason(reason: str) -> str:
    """The flag of a message that a scan was refused with; "other" where none is known."""
    return next((flag for flag, words in _OF_REASON.items() if re.search(words, reason)), "other")


def flags_of_row(row: dict[str, Any]) -> list[str]:
    """What a person should know of a scan that may be used."""
    spacing, shape = row["spacing"], row["shape"][:3]
    found = {
        "anisotropic": max(spacing) > _ANISOTROPIC * min(spacing),
        "few slices": min(shape) < _THIN,
        "odd spacing": not _ODD_SPACING_MM[0] <= min(spacing) <= max(spacing) <= _ODD_SPACING_MM[1],
        "may have wrapped": "may have wrapped" in row["notes"],
        "orientation assumed": "assumed" in row["notes"],
        "burned in": "burned into" in row["notes"],
        "empty label": row["modality"] == "label" and row["max"] == 0,
        "modality doubtful": _doubtful(row),
        "unknown modality": row["modality"] == "unknown",
    }
    return [flag for flag, true in found.items() if true]


def _doubtful(row: dict[str, Any]) -> bool:
    """A CT without any air, or values like Hounsfield units under another name: perhaps two channels were swapped."""
    looks_like_ct = row["min"] < -500 and 0 < row["max"] < 10_000 and row["median"] is not None
    if row["modality"] == "CT":
        return not looks_like_ct and row["min"] > -200
    return looks_like_ct and row["modality"] in ("T1", "T1C", "T2", "FLAIR", "PD", "PET")
