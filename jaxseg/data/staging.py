"""One case prepared and put down as one staging file, so that a killed preparation goes on where it was. Called by `workers`, `beam` and `store`.

Kept free of jax and tensorflow-datasets: worker processes import this module and nothing heavier.
"""

import base64
import hashlib
import json
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.anonymised import ANONYMISED
from jaxseg.data.archive.values import examine
from jaxseg.data.cases import Case
from jaxseg.data.io.decoded import PLAIN
from jaxseg.data.io.scans import decode_scan, files_of, find_scans, joined
from jaxseg.data.preprocess import Prepared, prepare_case
from jaxseg.data.recipe import Recipe
from jaxseg.data.scan_names import only_pet
from jaxseg.errors import InputError, JaxsegError
from jaxseg.files import sha256_of, write_whole

FLOAT16_MAX = float(np.finfo(np.float16).max)
# Raised when the stored arrays change their meaning: every case is then prepared again.
FORMAT = 1


@dataclass(frozen=True)
class Job:
    """One case to prepare: where its staging file goes, and the hash of everything that decides its content."""

    case: Case
    recipe: Recipe
    path: Path
    inputs: str
    patient: str


def file_stem(name: str) -> str:
    """A file name for a case id: the id itself where it is safe everywhere, else a cleaned form with a piece of its hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", name):
        return name
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60].strip("_")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{clean or 'case'}-{digest[:8]}"


def inputs_hash(case: Case, recipe: Recipe) -> str:
    """SHA-256 over the recipe, the channel names, the bytes of every file and how these are read; InputError when a file is missing."""
    # By name: prepare may have found the channels in another order than a store that names them.
    files: dict[str, Path | None] = {
        **dict(sorted(case.images.items())),
        "label:": case.label,
        "mask:": case.mask if recipe.strip == "mask" else None,
    }
    files |= {f"anonymised:{number}": path for number, path in enumerate(case.anonymised)}
    # As before there were other rules where a case has none of its own.
    read: list[Any] = [] if case.rules == PLAIN else [asdict(case.rules)]
    spelled = {name.lower() for name in case.images}
    if only_pet([name for name in recipe.channels if name.lower() in spelled] or recipe.channels):
        read.append("the body of PET alone: tracer_foreground")  # other rules came before it: stores made then are prepared again
    digest = hashlib.sha256(json.dumps([FORMAT, recipe.content(), *read], sort_keys=True, default=str).encode())
    for channel, path in files.items():
        if path is None:
            continue
        try:
            digest.update(f"{channel}={','.join(map(sha256_of, files_of(path)))};".encode())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it belongs to case {case.id}") from error
    return digest.hexdigest()


def without_paths(message: str, case: Case) -> str:
    """A message about a case that names its files by their channels: paths and file names may name people."""
    files: dict[str, Path] = {**case.images, **({"label": case.label} if case.label else {}), **({"mask": case.mask} if case.mask else {})}
    files |= {f"anonymised{number or ''}": path for number, path in enumerate(case.anonymised)}
    for channel, path in files.items():
        called = channel + "".join(path.suffixes[-2:])
        message = called.join(re.split(rf"(?:{re.escape(str(path))}|(?<![\w/]){re.escape(path.name)}(?!\w))", message))
    return message


def stage(job: Job) -> str | None:
    """Prepare one case and write its staging file; None, or the reason why the case must be left out."""
    try:
        prepared = prepare_case(job.case, job.recipe)
        prepared.info["content"] = content_of(job.case)
    except JaxsegError as error:
        return without_paths(str(error), job.case)
    except Exception as error:
        error.add_note(f"while preparing case {job.case.id}")
        raise
    arrays = to_arrays(prepared, job)
    write_whole(job.path, lambda path: np.savez(path, **arrays))
    return None


def content_of(case: Case) -> dict[str, list[str]]:
    """What a case's images hold, whatever the recipe: SHA-256 of files and of voxels, and fingerprints (base64). For finding copies."""
    content: dict[str, list[str]] = {"sha256": [], "voxels": [], "looks": []}
    for path in dict.fromkeys(case.images.values()):
        refs = [ref for ref in find_scans(path) if not ref.reason]
        if not refs:
            continue
        # A series may lie in several folders below the one that is its path.
        read = decode_scan(joined([ref for ref in refs if ref.key == refs[0].key]), case.rules)
        values = examine(read.decoded, image=True)
        content["sha256"].append(read.sha256)
        content["voxels"].append(values.voxel_hash)
        if values.perceptual is not None:
            content["looks"].append(base64.b64encode(values.perceptual).decode())
    return content


def to_arrays(prepared: Prepared, job: Job) -> dict[str, Any]:
    """The record of a case, as it is staged and as it goes into the dataset: float16 image, uint8 label and mask, geometry.

    Values beyond float16 (65504) are clipped and counted in `info`; prepared intensities are of order 1, so this means an outlier.
    """
    image, clipped = _as_float16(prepared.image)
    info = dict(prepared.info) | ({"clipped_to_float16": clipped} if clipped else {})
    label, mask = prepared.label, np.asarray(prepared.mask, bool).view(np.uint8)  # no copy
    if prepared.anonymised is not None:
        mask = np.where(prepared.anonymised, np.uint8(ANONYMISED), mask)
    return {
        "name": job.case.id,
        "patient": job.patient,
        "inputs": job.inputs,
        "info": json.dumps(info, default=str),
        "image": image,
        "labelled": label is not None,
        # The dataset's features are fixed, so a missing label is an empty array.
        "label": np.zeros((0, 0, 0), np.uint8) if label is None else np.asarray(label, np.uint8),
        "mask": mask,
        "affine": np.asarray(prepared.grid.affine, np.float64),
        "spacing": np.asarray(prepared.grid.spacing, np.float64),
        "present": np.asarray(prepared.present, bool),
    }


def _as_float16(image: np.ndarray) -> tuple[np.ndarray, int]:
    """(image as stored, how many values had to be clipped); no second float32 copy where none is."""
    clipped = 0
    if max(-float(image.min()), float(image.max())) > FLOAT16_MAX:
        clipped = int(np.count_nonzero(np.abs(image) > FLOAT16_MAX))
        image = np.clip(image, -FLOAT16_MAX, FLOAT16_MAX)
    return image.astype(np.float16, order="C"), clipped


def read_stage(path: Path) -> dict[str, Any] | None:
    """The record in a staging file; None where there is none (a damaged one counts as none: it is made again)."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            record = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return {key: value.item() if value.ndim == 0 else value for key, value in record.items()}


def is_staged(job: Job) -> bool:
    """Whether the job's staging file is there, made from the same inputs for the same patient (its arrays are not read)."""
    try:
        with open(job.path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return (str(file["inputs"]), str(file["patient"])) == (job.inputs, job.patient)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return False
