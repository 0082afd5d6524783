"""One scan of an archive as one row of its index. Called by `index`, in worker processes: nothing heavier than numpy and nibabel is imported."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxseg.data.archive.flags import flag_of_reason, flags_of_row
from jaxseg.data.archive.modality import UNKNOWN, folders_between, guess_modality, modality_of_values
from jaxseg.data.archive.patients import owner_of, patient_key
from jaxseg.data.archive.turning import axis_letters
from jaxseg.data.archive.values import NAMES, Values, examine
from jaxseg.data.io.decoded import Decoded, Rules, refuse_single_slice
from jaxseg.data.io.scans import ScanRef, decode_scan, printable
from jaxseg.errors import InputError
from jaxseg.files import sha256_of

Row = dict[str, Any]
COLUMNS = (
    "path ok reason flags format series files bytes mtime root shape spacing orientation dtype channels unit modality modality_from patient study "
    "sha256 voxel_hash duplicate_of perceptual"
).split() + [*NAMES, "notes"]
WRAPPED = 0.05  # share of neighbours that jump by half the type's range before integers count as overflowed
# What numpy and the format libraries raise on bytes that no check foresaw: one scan's row, not the end of the run.
_UNFORESEEN = (ValueError, ArithmeticError, LookupError, OSError, EOFError, NotImplementedError, AttributeError, TypeError)


@dataclass(frozen=True)
class Settings:
    """What holds for every scan of an index.

    Attributes:
        rules: what readers may accept.
        salt: secret of the patient keys.
        roots: folders (or files) that are indexed.
        declared: root → channel names of its 4-D scans.
    """

    rules: Rules
    salt: str
    roots: tuple[Path, ...]
    declared: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A scan to read: its place, the number of its root, and size and time stamp of its files (bytes, ns) when it was found.

    `numbered` says of its folder what `numbers_are_channels` does; None where nobody has looked at that.
    """

    ref: ScanRef
    root: int
    size: int
    mtime: int
    numbered: bool | None = None


def read_row(task: Task, settings: Settings) -> Row:
    """The row of one scan; a scan that cannot be used is a row with `ok` false and the reason, never an exception."""
    ref, declared = task.ref, settings.declared.get(task.root, ())
    row, role = _begin(task, settings)
    try:
        read = decode_scan(ref, settings.rules)
        row["sha256"] = read.sha256
        _describe(row, read.decoded)
        _check_shape(row, ref.path, declared)
        values = examine(read.decoded, image=role == "image")
        _judge(row, values, ref.path)
    except InputError as error:
        return _refused(row, ref, str(error))
    except MemoryError:
        return _refused(row, ref, f"{ref.path}: reading it needs more memory than there is; index it on a larger machine")
    except _UNFORESEEN as error:
        return _refused(row, ref, f"{ref.path}: damaged in a way that the reader did not foresee ({type(error).__name__}: {error})")
    row["ok"] = True
    if row["modality"] == UNKNOWN:
        row["modality"], row["modality_from"] = modality_of_values(row["min"], row["max"])
    row["flags"] = flags_of_row(row)
    return row


def died_row(task: Task, settings: Settings) -> Row:
    """The row of a scan whose reading ended the process that read it."""
    reason = "the process that read it died, most often because memory was short; index it on a larger machine"
    return _refused(_begin(task, settings)[0], task.ref, f"{task.ref.path}: {reason}")


def owner_keys(task: Task, settings: Settings) -> Row:
    """The row's keys of patient and study."""
    owner = owner_of(task.ref.path, settings.roots[task.root], numbered=task.numbered)
    return {
        "patient": patient_key(task.ref.patient or owner.patient, settings.salt),
        "study": patient_key(task.ref.study or owner.study, settings.salt),
    }


def _begin(task: Task, settings: Settings) -> tuple[Row, str]:
    """What is known before the scan is read, and the role that its path or DICOM class gives it."""
    ref, root = task.ref, settings.roots[task.root]
    owner = owner_of(ref.path, root, numbered=task.numbered)
    # A DICOM object says itself what it is, whatever folder it lies in.
    role = {"DICOM": "image", "DICOM SEG": "label", "DICOM RTSTRUCT": "label"}.get(ref.format, owner.role)
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"path": printable(ref.path), "ok": False, "reason": "", "flags": [], "format": ref.format, "series": ref.key}
    row |= {"files": len(ref.files), "bytes": task.size, "mtime": task.mtime, "root": task.root}
    row |= owner_keys(task, settings)
    declared = settings.declared.get(task.root, ())
    row["modality"], row["modality_from"] = guess_modality(ref, role, declared, folders_between(ref.path, root))
    return row, role


def _describe(row: Row, decoded: Decoded) -> None:
    head = decoded.header
    row |= {"shape": list(head.shape), "spacing": list(head.grid.spacing), "orientation": axis_letters(head.grid.affine), "unit": head.unit}
    row |= {"dtype": head.dtype.name, "channels": head.shape[3] if len(head.shape) > 3 else 1, "notes": "; ".join(head.notes)}


def _check_shape(row: Row, path: Path, declared: tuple[str, ...]) -> None:
    shape = row["shape"]
    refuse_single_slice(shape, path)
    if len(shape) == 4 and len(declared) != shape[3]:
        said = f"{len(declared)} are declared: {', '.join(declared)}" if declared else "no channel is declared"
        raise InputError(
            f"{path}: a 4-D image with {shape[3]} volumes, but {said}; name its channels in a dataset.json or with --channels, or split it"
        )


def _judge(row: Row, values: Values, path: Path) -> None:
    row |= values.summary | {"voxel_hash": values.voxel_hash, "perceptual": values.perceptual}
    if count := values.nans + values.infinities:
        row["voxel_hash"] = None
        voxels = 1
        for n in row["shape"]:
            voxels *= n
        raise InputError(
            f"{path}: {count:,} of {voxels:,} voxels are not finite ({values.nans:,} NaN, {values.infinities:,} infinite); mend the scan"
        )
    if row["min"] == row["max"] and row["modality"] not in ("label", "mask"):
        raise InputError(f"{path}: constant: every voxel is {row['min']:g}; expected an image")
    if values.wrapped > WRAPPED:
        note = f"intensities may have wrapped around: {values.wrapped:.0%} of neighbours jump by over half of {row['dtype']}"
        if row["dtype"] == "uint8":
            note += "; python -m jaxseg.restore_overflow FOLDER --out NEW may put them back"
        row["notes"] = "; ".join(filter(None, [row["notes"], note]))


def _refused(row: Row, ref: ScanRef, message: str) -> Row:
    """The row with its reason, from which the file's name is taken out: names stand in the column `path` alone."""
    row["ok"] = False
    for path in sorted({ref.path, *ref.files}, key=lambda path: -len(str(path))):
        message = message.removeprefix(f"{path}: ").replace(str(path), "this file")
        if len(path.name) > 3:
            message = message.replace(path.name, "this file")
    row["reason"], row["flags"] = message, [flag_of_reason(message)]
    # Twice the same wreck is still worth knowing, so even a file that cannot be decoded is hashed.
    if row["sha256"] is None and len(ref.files) == 1 and row["bytes"]:
        with contextlib.suppress(OSError):
            row["sha256"] = sha256_of(ref.files[0])
    return row
