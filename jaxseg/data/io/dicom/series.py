"""Files into series: one scan each, told apart by identifiers, orientation and size, and by time where positions repeat.

Called by this package's `read` and, by way of `describe_folder`, by the index.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.dicom.elements import hashed
from jaxseg.data.io.dicom.frames import RTSTRUCT_CLASS, SEG_CLASSES, Frame, Instance, read_frames
from jaxseg.data.io.dicom.geometry import distances
from jaxseg.errors import InputError


@dataclass(frozen=True)
class Series:
    """One scan of a folder: its frames (in no order yet), files, hashed keys, and the reason why it is none, if so."""

    key: str
    files: tuple[Path, ...]
    frames: tuple[Frame, ...]
    modality: str = ""
    patient: str = ""
    study: str = ""
    format: str = "DICOM"
    reason: str = ""


def group_files(paths: Iterable[Path], rules: Rules) -> list[Series]:
    """All scans that DICOM files make up, those that are none with their reasons; broken files come as a series of their own."""
    instances: list[tuple[Instance, list[Frame]]] = []
    broken = []
    for path in sorted(paths):
        try:
            instances.append(read_frames(path, rules))
        except InputError as error:
            broken.append(Series(hashed(path.name), (path,), (), reason=str(error).removeprefix(f"{path}: ")))
    return [*_scans(instances), *_no_scans(instances), *broken]


def describe_folder(paths: Sequence[Path], rules: Rules) -> list[dict[str, Any]]:
    """The scans of a folder's DICOM files as facts for `scans.ScanRef`: format, files, key, modality, patient, study, reason."""
    names = ("format", "files", "key", "modality", "patient", "study", "reason")
    return [{name: getattr(series, name) for name in names} for series in group_files(paths, rules)]


def _scans(instances: list[tuple[Instance, list[Frame]]]) -> list[Series]:
    stacks: dict[str, list[list[Frame]]] = {}
    for instance, frames in instances:
        for frame in frames:
            known = stacks.setdefault(instance.series, [])
            home = next((stack for stack in known if _belongs(frame, stack[0])), None)
            if home is None:
                known.append([frame])
            else:
                home.append(frame)
    found = []
    for uid, known in stacks.items():
        for number, stack in enumerate(known):
            parts = _split_repeated(stack)
            found += [_series(f"{uid} {number} {label}" if number or label else uid, frames) for label, frames in parts]
    return found


def _series(key: str, frames: list[Frame]) -> Series:
    first = frames[0].instance
    files = tuple(dict.fromkeys(frame.instance.path for frame in frames))
    return Series(hashed(f"series {key}"), files, tuple(frames), first.modality, first.patient, first.study)


def _no_scans(instances: list[tuple[Instance, list[Frame]]]) -> list[Series]:
    """What is no scan: a row for each series and reason; segmentations and contours a row for each file."""
    groups: dict[tuple[str, str], list[Instance]] = {}
    found = []
    for instance, _ in instances:
        if instance.sop_class in SEG_CLASSES:
            found.append(_alone(instance, "DICOM SEG", "label", ""))
        elif instance.sop_class == RTSTRUCT_CLASS:
            found.append(_alone(instance, "DICOM RTSTRUCT", "label", "contours, not voxels: draw them on their scan with load_contours"))
        elif instance.reason:
            groups.setdefault((instance.series, instance.reason), []).append(instance)
    for (uid, reason), members in groups.items():
        first, paths = members[0], tuple(instance.path for instance in members)
        found.append(Series(hashed(f"{uid} {reason}"), paths, (), first.modality, first.patient, first.study, reason=reason))
    return found


def _alone(instance: Instance, format: str, modality: str, reason: str) -> Series:
    return Series(instance.uid, (instance.path,), (), modality, instance.patient, instance.study, format, reason)


def _belongs(frame: Frame, other: Frame) -> bool:
    same = (frame.instance.rows, frame.instance.columns) == (other.instance.rows, other.instance.columns)
    turned = np.abs(np.subtract(frame.orientation, other.orientation)).max()
    return same and bool(turned < 2e-3) and bool(np.allclose(frame.spacing, other.spacing, rtol=1e-3))


def _split_repeated(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """[(label, frames)]: one volume each. Frames that share every position are told apart by the fewest elements that do it.

    AcquisitionNumber and its like also differ inside many plain volumes, so they are only asked where positions repeat. Where nothing
    tells frames apart they stay together, and `geometry.arrange` names the duplicates.
    """
    if not _repeats(frames):
        return [("", frames)]
    names = [name for name in frames[0].kinds if len({frame.kinds.get(name) for frame in frames}) > 1]
    for count in (1, 2, 3):
        for chosen in combinations(names, count):
            parts: dict[str, list[Frame]] = {}
            for frame in frames:
                parts.setdefault(" ".join(f"{name}={frame.kinds.get(name)}" for name in chosen), []).append(frame)
            sizes = [len(part) for part in parts.values()]
            if min(sizes) >= max(2, max(sizes) / 2) and not any(map(_repeats, parts.values())):
                return sorted(parts.items())
    return _by_time(frames) or [("", frames)]


def _by_time(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """The first, second, … visit to every position, where all positions were visited equally often at different times."""
    places: dict[float, list[Frame]] = {}
    for frame, place in zip(frames, _places(frames), strict=True):
        places.setdefault(float(place), []).append(frame)
    visits = {len(here) for here in places.values()}
    distinct = all(len({frame.time for frame in here}) == len(here) for here in places.values())
    if len(visits) != 1 or not distinct or len(places) < 2:
        return []
    ordered = [sorted(here, key=lambda frame: frame.time) for here in places.values()]
    return [(f"visit {number + 1}", [here[number] for here in ordered]) for number in range(visits.pop())]


def _places(frames: list[Frame]) -> np.ndarray:
    return np.round(distances(frames, frames[0].instance.path.parent.name), 2)


def _repeats(frames: list[Frame]) -> bool:
    return len(np.unique(_places(frames))) < len(frames)
