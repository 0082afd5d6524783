"""The index of an archive: one row a file, what it is and whether it may be trained on. Called by the pipeline and `jaxseg index`.

A bad scan is a row with a reason, never an exception; memory is that of the scans being read, whatever the archive's size.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from jaxseg.data.io import nifti
from jaxseg.data.io.header import Rules
from jaxseg.data.io.read import decoded_volume
from jaxseg.data.layouts import modality, read_declared, role_of, split_name
from jaxseg.data.volume import Volume
from jaxseg.errors import InputError
from jaxseg.files import write_json, write_whole

_SCHEMA = pa.schema(
    [("path", pa.string()), ("ok", pa.bool_()), ("reason", pa.string()), ("format", pa.string()), ("bytes", pa.int64())]
    + [("shape", pa.list_(pa.int32())), ("spacing", pa.list_(pa.float64())), ("orientation", pa.string()), ("dtype", pa.string())]
    + [("channels", pa.int32()), ("modality", pa.string()), ("patient", pa.string()), ("sha256", pa.string()), ("voxel_hash", pa.string())]
    + [("duplicate_of", pa.string())]
    + [(name, pa.float64()) for name in ("min", "p01", "median", "p99", "max", "mean", "std")]
    + [("notes", pa.string())]
)
_IMAGE_FOLDERS = {
    "images",
    "image",
    "imagestr",
    "imagests",
    "labels",
    "label",
    "masks",
    "labelstr",
    "labelsts",
    "segmentations",
    "annotations",
}
_LABEL_FOLDERS = {name for name in _IMAGE_FOLDERS if not name.startswith("image")}
SAMPLE = 1 << 20

Row = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """An archive's rows (columns of `scans.parquet`), how many are `ok`, and the others with their reasons."""

    rows: tuple[Row, ...]
    ok: int
    left_out: tuple[dict[str, str], ...]


def index_archive(
    roots: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Read every NIfTI file below `roots` and write `out/scans.parquet` and `out/summary.json`, each whole or not at all.

    `ok` is false for everything that must not be trained on as it stands: damaged, non-finite or constant scans, fewer than two
    slices, 4-D without channels declared (by `channels` or a dataset.json in its root), unusable or contradictory geometry.
    Rows are in the order of roots, then paths. Scans with equal voxels and geometry are marked `duplicate_of` the first.

    Args:
        progress: called with (files done, files in all).

    Raises:
        InputError: a root does not exist, or there is no NIfTI file below any of them.
    """
    listed = [Path(root) for root in ([roots] if isinstance(roots, str | Path) else roots)]
    jobs = [(path, root, declared) for root in listed for declared in [_declared(root, channels)] for path in _walk(root)]
    if not jobs:
        raise InputError(f"{', '.join(map(str, listed))}: no .nii or .nii.gz file below; expected an archive of scans")
    rows: list[Row] = []
    with ThreadPoolExecutor(threads) as pool:
        for row in pool.map(lambda job: _row(*job), jobs):
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(jobs))
    _mark_duplicates(rows)
    index = _index(rows)
    _write(index, Path(out))
    return index


def read_index(out: str | Path) -> Index:
    """The index in a folder; InputError if there is none, or it is damaged."""
    path = Path(out) / "scans.parquet"
    if not path.is_file():
        raise InputError(f"{path}: no index here; make one with `jaxseg index`")
    try:
        rows = parquet.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: damaged ({error}); make the index again") from None
    missing = sorted(set(_SCHEMA.names) - set(rows[0] if rows else _SCHEMA.names))
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; make the index again")
    return _index(rows)


def patient_key(case: str) -> str:
    """A key that tells patients apart without naming them: 16 hexadecimal digits of the SHA-256 of the case id."""
    return hashlib.sha256(case.encode()).hexdigest()[:16]


def voxel_hash(volume: Volume) -> str:
    """SHA-256 of float32 voxels in RAS order with shape and affine (to 1 µm): equal for copies in another file, axis order or scaling."""
    digest = hashlib.sha256(np.asarray(volume.array.shape, "<i8").tobytes())
    digest.update((np.round(volume.affine, 3) + 0.0).astype("<f8").tobytes())
    digest.update(np.ascontiguousarray(volume.array, "<f4").data)
    return digest.hexdigest()


def _walk(root: Path) -> list[Path]:
    if not root.exists():
        raise InputError(f"{root}: no such folder")
    if root.is_file():
        return [root]
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.lower().endswith(nifti.SUFFIXES) and not name.startswith(".")]
    return sorted(found)


def _declared(root: Path, channels: Sequence[str] | None) -> tuple[str, ...]:
    if channels:
        return tuple(channels)
    file = root / "dataset.json"
    return read_declared(file).channels if file.is_file() else ()


def _row(path: Path, root: Path, declared: tuple[str, ...]) -> Row:
    case, role = _case_and_role(path, root)
    row: Row = dict.fromkeys(_SCHEMA.names)
    row |= {"path": str(path), "ok": False, "format": "NIfTI", "patient": patient_key(case)}
    row["modality"] = role if role != "image" else (modality(nifti.stem(path)) or modality(path.parent.name) or "unknown")
    rules = Rules()
    try:
        data = nifti.read_bytes(path, rules)
        row |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        decoded = nifti.decode(data, str(path), rules)
        head = decoded.header
        row |= {"shape": list(head.shape), "spacing": list(head.grid.spacing), "orientation": head.grid.orientation}
        notes = [*head.notes, *(_wrapped(decoded.stored) if role == "image" else [])]
        row |= {"dtype": head.dtype.name, "channels": head.shape[3] if len(head.shape) > 3 else 1, "notes": "; ".join(notes)}
        volume = decoded_volume(path, decoded, declared if len(head.shape) == 4 else None, reorient=True, nonfinite=None)
        row |= _intensities(volume.array)
        row["voxel_hash"] = voxel_hash(volume)
        _check_trainable(row, path)
    except InputError as error:
        row["reason"] = str(error).replace(str(path), path.name)
        return row
    row |= {"ok": True, "reason": ""}
    if row["modality"] == "unknown" and row["min"] < -500:
        row["modality"] = "CT"
    return row


def _case_and_role(path: Path, root: Path) -> tuple[str, str]:
    """The case that a file belongs to, and whether it is an image, a label or a body mask: by folder, else by name."""
    inner = path.relative_to(root).parts[:-1] if root.is_dir() else ()
    folder = next((part.lower() for part in inner if part.lower() in _IMAGE_FOLDERS), None)
    owner = next((part for part in inner if part.lower() not in _IMAGE_FOLDERS), None)
    name = nifti.stem(path)
    if owner is not None:
        rest = name[len(owner) :] if name.lower().startswith(owner.lower()) else name
        return owner, "label" if folder in _LABEL_FOLDERS else role_of(rest)
    case, rest = split_name(name)
    return case, "label" if folder in _LABEL_FOLDERS else role_of(rest)


def _wrapped(stored: np.ndarray, share: float = 0.05) -> list[str]:
    """A note if integers look as if they had overflowed: many neighbours, both in the body, differ by more than half the type's range."""
    if stored.dtype.kind not in "iu":
        return []
    here, there = stored[:-1], stored[1:]
    body = (here != 0) & (there != 0)
    size = 2 ** (8 * stored.dtype.itemsize - 1)
    jumps = float(np.mean(np.abs(here[body].astype(np.float64) - there[body]) > size)) if body.any() else 0.0
    return [f"intensities may have wrapped around: {jumps:.0%} of neighbours jump by over half of {stored.dtype.name}"] * (jumps > share)


def _intensities(array: np.ndarray) -> Row:
    flat = array.reshape(-1)
    low, median, high = np.percentile(flat[:: max(1, flat.size // SAMPLE)], (1, 50, 99))
    facts = {"min": flat.min(), "p01": low, "median": median, "p99": high, "max": flat.max()}
    facts |= {"mean": flat.mean(dtype=np.float64), "std": flat.std(dtype=np.float64)}
    return {name: float(value) for name, value in facts.items()}


def _check_trainable(row: Row, path: Path) -> None:
    thin = min(row["shape"][:3])
    if thin < 2:
        raise InputError(f"{path}: a single slice ({'×'.join(map(str, row['shape']))} voxels); expected a 3-D scan")
    if row["min"] == row["max"] and row["modality"] not in ("label", "mask"):
        raise InputError(f"{path}: constant: every voxel is {row['min']:g}; expected an image")


def _mark_duplicates(rows: list[Row]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        if row["ok"] and first.setdefault(row["voxel_hash"], row["path"]) != row["path"]:
            row["duplicate_of"] = first[row["voxel_hash"]]


def _index(rows: list[Row]) -> Index:
    left_out = tuple({"path": row["path"], "reason": row["reason"]} for row in rows if not row["ok"])
    return Index(tuple(rows), len(rows) - len(left_out), left_out)


def _write(index: Index, out: Path) -> None:
    columns = {name: [row[name] for row in index.rows] for name in _SCHEMA.names}
    table = pa.table(columns, schema=_SCHEMA)
    write_whole(out / "scans.parquet", lambda path: parquet.write_table(table, path, compression="zstd"))
    modalities: dict[str, int] = {}
    for row in index.rows:
        modalities[row["modality"]] = modalities.get(row["modality"], 0) + 1
    totals = {"scans": len(index.rows), "ok": index.ok, "patients": len({row["patient"] for row in index.rows})}
    totals |= {"noted": sum(bool(row["notes"]) for row in index.rows)}
    totals |= {"bytes": sum(row["bytes"] or 0 for row in index.rows), "duplicates": sum(bool(row["duplicate_of"]) for row in index.rows)}
    write_json(out / "summary.json", totals | {"modalities": dict(sorted(modalities.items())), "left_out": list(index.left_out)})
