"""A DICOM series to voxels: slices in place, rescaled one by one, with a checked grid. Called by `scans`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.io.decoded import Decoded, Header, Rules, check_caps
from jaxseg.data.io.dicom.elements import need_pydicom, read_dataset
from jaxseg.data.io.dicom.frames import Frame, Instance
from jaxseg.data.io.dicom.geometry import arrange
from jaxseg.data.io.dicom.pixels import check_length, dtype_of, is_plain, stored_frames
from jaxseg.data.io.dicom.series import Series, group_files
from jaxseg.data.io.dicom.suv import PET_KEYS, uptake
from jaxseg.data.io.stream import open_file, read_bytes
from jaxseg.errors import InputError

_MOST_LISTED = 8


@dataclass
class Digest:
    """SHA-256 and number of the bytes of all files read, in the order of their slices."""

    size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def update(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def find_series(folder: Path, rules: Rules | None = None) -> list[Series]:
    """All series in a folder and below it, those that are no scans with their reasons. Files are told by their first bytes.

    Raises:
        InputError: there is no DICOM file, or pydicom is not installed.
    """
    need_pydicom()
    files = [path for path in sorted(folder.rglob("*")) if _may_be_dicom(path)]
    if not files:
        raise InputError(f"{folder}: a folder without any DICOM file; expected a scan's file, or a folder that holds a DICOM series")
    return group_files(files, rules or Rules())


def choose_series(path: Path, rules: Rules, key: str | None) -> Series:
    """The one scan at a path: of a folder, or the one that a file belongs to (among the files beside it).

    Raises:
        InputError: none, or several and no `key` to choose one.
    """
    if path.is_dir():
        found, what = find_series(path, rules), "folder"
    else:
        need_pydicom()
        own = group_files([path], rules)
        multi = any(len(series.frames) > 1 or series.reason for series in own)
        found = own if multi else [s for s in group_files(beside(path), rules) if path in s.files]
        what = "file"
    scans = [series for series in found if not series.reason and series.format == "DICOM"]
    if key is not None:
        scans = [series for series in scans if series.key == key]
    if len(scans) == 1:
        return scans[0]
    if scans:
        listed = "; ".join(f"{s.key}: {s.modality or 'unknown'}, {len(s.frames)} slices" for s in scans[:_MOST_LISTED])
        raise InputError(f"{path}: this {what} holds {len(scans)} scans ({listed}); choose one with series='{scans[0].key}'")
    reasons = sorted({f"{series.format}: {series.reason}" if series.reason else _instead(series.format) for series in found})
    wanted = f"no series with the key {key!r}" if key is not None else f"no scan in this {what}"
    raise InputError(f"{path}: {wanted}: {'; '.join(reasons[:_MOST_LISTED]) or 'no series at all'}")


def decode_path(path: Path, rules: Rules, *, series: str | None = None) -> Decoded:
    """The voxels of the one series at a path; see `choose_series` and `decode_series`."""
    return decode_series(choose_series(path, rules, series), path, rules)


def header_of(path: Path, rules: Rules) -> Header:
    """The checked header of the one series at a path, from headers alone."""
    return _header(choose_series(path, rules, None), path, rules)[0]


def decode_files(files: Sequence[Path], key: str, rules: Rules, digest: Digest) -> Decoded:
    """The voxels of the scan `key` among the scans that `files` make up."""
    found = group_files(files, rules)
    chosen = [series for series in found if series.key == key]
    name = files[0].parent
    if len(chosen) != 1:
        raise InputError(f"{name}: the files of this series have changed since they were listed; make the list again")
    if chosen[0].reason:
        raise InputError(f"{name}: {chosen[0].reason}")
    return decode_series(chosen[0], name, rules, digest)


def decode_series(series: Series, path: Path, rules: Rules, digest: Digest | None = None) -> Decoded:
    """Slices sorted, checked and rescaled: whole numbers where all slices share one scaling, else float32.

    Raises:
        GeometryError: see `geometry.arrange`; InputError: truncated, damaged or too large; files are named.
    """
    head, ordered = _header(series, path, rules)
    volume = np.empty(head.shape[::-1], head.dtype)
    for instance, places in _by_file(ordered).items():
        data = read_bytes(instance.path, rules)
        if digest is not None:
            digest.update(data)
        dataset = read_dataset(data, instance.path, rules)
        for place, pixels in zip(places, stored_frames(dataset, instance, [ordered[i].index for i in places]), strict=True):
            volume[place] = _values(pixels, ordered[place], scaled=head.dtype.kind == "f")
    return Decoded(volume.transpose(2, 1, 0), head)


def _header(series: Series, path: Path, rules: Rules) -> tuple[Header, list[Frame]]:
    """The checked header, and the frames in the order of their positions, scaled to the header's unit."""
    first = series.frames[0].instance
    check_caps((first.columns, first.rows, len(series.frames)), np.dtype(np.float32), str(path), rules)
    for instance in dict.fromkeys(frame.instance for frame in series.frames):
        if is_plain(instance):
            check_length(instance, instance.bytes)
    arranged = arrange(series.frames, first.rows, first.columns, str(path))
    ordered, unit, notes = _in_unit([series.frames[i] for i in arranged.order], rules)
    scalings = {(frame.slope, frame.inter) for frame in ordered}
    if any(slope == 0 for slope, _ in scalings):
        raise InputError(f"{path}: a RescaleSlope of 0, which would make every voxel equal; mend the header")
    if len(scalings) == 1:
        dtype, (slope, inter) = np.result_type(*{dtype_of(frame.instance) for frame in ordered}), scalings.pop()
    else:
        dtype, slope, inter = np.dtype(np.float32), 1.0, 0.0
        notes.append("slices are scaled one by one")
    if first.photometric == "MONOCHROME1":
        notes.append("MONOCHROME1: inverted" if _inverted(first) else "MONOCHROME1 concerns the display alone: values are kept")
    if any(frame.instance.burned_in for frame in ordered):
        notes.append("text is burned into its pixels: admitted as asked for")
    return Header(arranged.grid.shape, dtype, 0, slope, inter, arranged.grid, 1, (*arranged.notes, *notes), unit), ordered


def _in_unit(frames: list[Frame], rules: Rules) -> tuple[list[Frame], str, list[str]]:
    """Frames scaled to the best unit that the header allows (SUV for PET), that unit, and notes."""
    first = frames[0].instance
    if first.modality != "PET":
        said = first.rescale_type
        return frames, "HU" if first.modality == "CT" and said in ("", "HU") else "" if said == "US" else said, []
    with open_file(first.path) as file:
        dose = uptake(read_dataset(file, first.path, rules, only=PET_KEYS), [frame.time for frame in frames], first.path)
    scaled = [replace(frame, slope=frame.slope * dose.factor, inter=frame.inter * dose.factor) for frame in frames]
    return scaled, dose.unit, [dose.note] if dose.note else []


def _values(pixels: np.ndarray, frame: Frame, *, scaled: bool) -> np.ndarray:
    instance = frame.instance
    if _inverted(instance):
        pixels = ~pixels if instance.signed else pixels.dtype.type(2**instance.bits_stored - 1) - pixels
    return pixels.astype(np.float64) * frame.slope + frame.inter if scaled else pixels


def _inverted(instance: Instance) -> bool:
    """MONOCHROME1 pictures are turned so that more is brighter; Hounsfield and uptake values mean what they mean however shown."""
    return instance.photometric == "MONOCHROME1" and instance.modality not in ("CT", "PET")


def _by_file(ordered: Sequence[Frame]) -> dict[Instance, list[int]]:
    """Where each file's frames go, files in the order of their first slice."""
    places: dict[Instance, list[int]] = {}
    for place, frame in enumerate(ordered):
        places.setdefault(frame.instance, []).append(place)
    return places


def beside(path: Path) -> list[Path]:
    """The file and every other one of its folder that may be DICOM, in order."""
    return [other for other in sorted(path.parent.iterdir()) if other == path or _may_be_dicom(other)]


def _may_be_dicom(path: Path) -> bool:
    if not path.is_file() or path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def _instead(format: str) -> str:
    return {"DICOM SEG": "a segmentation: read it with load_label", "DICOM RTSTRUCT": "contours: draw them with load_contours"}.get(
        format, format
    )
