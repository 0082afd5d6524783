"""The memory-mapped cache that training reads: plain `.npy` files per case, made from the dataset's records. Called by `store`.

A random crop out of a memory map costs milliseconds where the same crop out of an archive record or a `.nii.gz` costs 0.5–3 s.
"""

import hashlib
import mmap
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Int32, UInt8

from jaxseg.errors import InputError
from jaxseg.files import sha256_of, write_whole

MAX_FOREGROUND = 10_000
IGNORE = 255
CACHE_SUFFIXES = (".image.npy", ".label.npy", ".mask.npy", ".foreground.npz")  # of all files that are written here
AGAIN = "run `jaxseg prepare` again: it mends the cache from the dataset beside it"

# NumPy reads the header of an array with `ast.literal_eval`. In Python 3.11 the depth of that parser is counted once for all threads, so two
# readers at once can end in a SystemError (cpython issue 106905) when the garbage collector calls back into Python, as it does where JAX is loaded.
_ONE_HEADER_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, eq=False)
class CaseArrays:
    """The arrays of one case; image, label and mask are read-only memory maps, so that slicing reads only the slab.

    `mask` is 1 in the body, 0 in air, 2 where anonymisation took voxels away (`anonymised`). `foreground` holds at most 10 000 voxel positions
    per label value, `body` as many of the body, sampled evenly at random.
    """

    image: Float16[np.ndarray, "x y z c"]
    label: UInt8[np.ndarray, "x y z"] | None
    mask: UInt8[np.ndarray, "x y z"]
    foreground: dict[int, Int32[np.ndarray, "n 3"]]
    body: Int32[np.ndarray, "n 3"]


def write_cache(folder: Path, stem: str, record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Write the cache files of one record; {"image": {"file", "sha256"}, ...} with no "label" for an unlabelled case."""
    kinds = ("image", "mask", "label") if record["labelled"] else ("image", "mask")
    arrays = {kind: np.ascontiguousarray(record[kind]) for kind in kinds}
    files = {kind: write_whole(folder / f"{stem}.{kind}.npy", lambda path, a=a: _save(path, a)) for kind, a in arrays.items()}
    voxels: dict[str, Any] = {**sample_foreground(record)}
    files["foreground"] = write_whole(folder / f"{stem}.foreground.npz", lambda path: np.savez(path, **voxels))
    return {kind: {"file": path.name, "sha256": sha256_of(path)} for kind, path in files.items()}


def _save(path: Path, array: np.ndarray) -> None:
    """`np.save`, but a full disk raises an OSError that says so (numpy's own write hides the error number)."""
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)


def sample_foreground(record: dict[str, Any]) -> dict[str, Int32[np.ndarray, "n 3"]]:
    """Voxel positions by label value ("1", "2", …; neither 0 nor 255) and of the "body", int32 `(n, 3)`; the same for the same record."""
    seed = int.from_bytes(hashlib.sha256(record["name"].encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    found = {"body": _sample(record["mask"] == 1, rng)}
    if record["labelled"]:
        label = record["label"]
        found |= {str(value): _sample(label == value, rng) for value in np.unique(label).tolist() if value not in (0, IGNORE)}
    return found


def _sample(where: np.ndarray, rng: np.random.Generator) -> Int32[np.ndarray, "n 3"]:
    # The places of all voxels of a body would take twice the memory of its scan: drawn are their ranks, which slices turn into places.
    ends = np.cumsum([np.count_nonzero(part) for part in where])
    count = int(ends[-1]) if ends.size else 0
    ranks = np.sort(rng.choice(count, MAX_FOREGROUND, replace=False)) if count > MAX_FOREGROUND else np.arange(count)
    parts = np.split(ranks, np.searchsorted(ranks, ends[:-1]))
    found = [np.zeros((0, 3), np.int32)]
    for x, (part, end) in enumerate(zip(parts, ends, strict=True)):
        if part.size:
            flat = np.flatnonzero(where[x])
            y, z = np.unravel_index(flat[part - (end - flat.size)], where.shape[1:])
            found.append(np.stack([np.full(part.size, x), y, z], axis=-1).astype(np.int32))
    return np.concatenate(found)


def open_cache(folder: Path, name: str, files: dict[str, dict[str, str]]) -> CaseArrays:
    """Map the cache files of one case; InputError naming the case and the file when one is missing or is not what was written."""
    maps = {kind: _open(folder / files[kind]["file"], name) for kind in files}
    voxels = maps["foreground"]
    foreground = {int(key): array for key, array in voxels.items() if key != "body"}
    return CaseArrays(maps["image"], maps.get("label"), maps["mask"], foreground, voxels["body"])


def release(arrays: CaseArrays) -> None:
    """Give back the pages of a case's memory maps that were read: they stay in the system's file cache, and no longer count as this process's.

    Harmless while another thread reads: a page that it still needs is mapped again.
    """
    for array in (arrays.image, arrays.mask, arrays.label):
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _open(path: Path, name: str) -> Any:
    try:
        if path.suffix == ".npz":
            # Opened here, because np.load leaves the file open when it is no archive.
            with open(path, "rb") as stream, _ONE_HEADER_AT_A_TIME, np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        with _ONE_HEADER_AT_A_TIME:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: this file of case {name} is missing from the cache; {AGAIN}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: this file of case {name} is damaged ({error}); {AGAIN}") from error


def damaged_files(folder: Path, files: dict[str, dict[str, str]]) -> list[str]:
    """Paths of the cache files of one case that are missing or whose SHA-256 is not the recorded one."""
    paths = {folder / file["file"]: file["sha256"] for file in files.values()}
    return [str(path) for path, digest in paths.items() if not path.is_file() or sha256_of(path) != digest]
