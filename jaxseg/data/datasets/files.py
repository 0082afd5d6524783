"""Scan files below a folder, and putting them together as cases. Called by the families of datasets, which say what each file is."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data.cases import Case
from jaxseg.data.datasets.dataset import Reading
from jaxseg.data.io.scans import SUFFIXES, stem

LABEL = "label"


@dataclass(frozen=True)
class Part:
    """What one file is: the case it belongs to, its channel (or `LABEL`), and the split or fold that its place says."""

    case: str
    channel: str
    split: str | None = None
    fold: int | None = None


def scans_below(root: Path) -> list[Path]:
    """Scan files below a folder, sorted; hidden ones, macOS's `._` twins and its `__MACOSX` folders are passed over."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
        found += [Path(folder, name) for name in names if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_parts(
    root: Path, part_of: Callable[[Path], Part | None], channels: tuple[str, ...], *, packed: bool = False, optional: Iterable[str] = ()
) -> Reading:
    """Cases from the files below `root` that `part_of` (given paths relative to it) recognises.

    Args:
        channels: of the dataset; a 4-D file holds them all where `packed`.
        optional: splits whose labels the makers keep to themselves.

    A case that lacks channels is kept and named as a fault; one without any image, and the second of two equal files, is left out.
    """
    found: dict[str, dict[str, Path]] = {}
    places: dict[str, Part] = {}
    faults = []
    for path in scans_below(root):
        part = part_of(path.relative_to(root))
        if part is None:
            continue
        files = found.setdefault(part.case, {})
        if part.channel in files:
            first, second = files[part.channel].relative_to(root), path.relative_to(root)
            faults.append(f"{part.case}: {first} and {second} are both its {part.channel}; the first is used, so move one away")
            continue
        files[part.channel] = path
        if part.channel != LABEL or part.case not in places:
            places[part.case] = part
    cases = []
    for name, files in sorted(found.items()):
        label = files.pop(LABEL, None)
        if not files:
            faults.append(f"{name}: has a label ({label.name if label else ''}) but no image; it is left out")
            continue
        images = dict.fromkeys(channels, next(iter(files.values()))) if packed else {key: files[key] for key in channels if key in files}
        if absent := [channel for channel in channels if channel not in images]:
            faults.append(f"{name}: lacks {', '.join(absent)}; copy the case again")
        place = places[name]
        if label is None and place.split is not None and place.split not in optional:
            faults.append(f"{name}: a case of the {place.split} split without its label")
        cases.append(Case(name, images, label, place.split, channels if packed and len(channels) > 1 else (), fold=place.fold))
    return Reading(tuple(cases), tuple(faults))


def name_of(path: Path) -> str:
    """The file name without the suffix of its format."""
    return stem(path)


def split_of(path: Path, words: dict[str, str]) -> str | None:
    """The split that the folders or the name of a file say: `words` is {piece of a name in lower case: split}. The innermost counts."""
    for part in reversed(path.parts):
        for word, split in words.items():
            if word in part.lower():
                return split
    return None
