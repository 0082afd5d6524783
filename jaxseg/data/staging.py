"""One case prepared and put down as one staging file, so that a killed preparation goes on where it was. Called by `store.build_store`.

Kept free of jax and tensorflow-datasets: worker processes import this module and nothing heavier.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.preprocess import Prepared, prepare_case
from jaxseg.data.recipe import Recipe
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
    return f"{clean or 'case'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def inputs_hash(case: Case, recipe: Recipe) -> str:
    """SHA-256 over the recipe, the channel names and the bytes of every file of the case; InputError when a file is missing."""
    files: dict[str, Path | None] = {**case.images, "label:": case.label}
    digest = hashlib.sha256(json.dumps([FORMAT, asdict(recipe)], sort_keys=True, default=str).encode())
    for channel, path in files.items():
        if path is None:
            continue
        try:
            digest.update(f"{channel}={sha256_of(path)};".encode())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it belongs to case {case.id}") from error
    return digest.hexdigest()


def stage(job: Job) -> str | None:
    """Prepare one case and write its staging file; None, or the reason why the case must be left out."""
    try:
        prepared = prepare_case(job.case, job.recipe)
    except JaxsegError as error:
        return str(error)
    except Exception as error:
        error.add_note(f"while preparing case {job.case.id}")
        raise
    arrays = to_arrays(prepared, job)
    write_whole(job.path, lambda path: np.savez(path, **arrays))
    return None


def to_arrays(prepared: Prepared, job: Job) -> dict[str, Any]:
    """The record of a case, as it is staged and as it goes into the dataset: float16 image, uint8 label and mask, geometry.

    Values beyond float16 (65504) are clipped and counted in `info`; prepared intensities are of order 1, so this means an outlier.
    """
    image = np.asarray(prepared.image, np.float32)
    clipped = int(np.count_nonzero(np.abs(image) > FLOAT16_MAX))
    info = dict(prepared.info) | ({"clipped_to_float16": clipped} if clipped else {})
    label = prepared.label
    return {
        "name": job.case.id,
        "patient": job.patient,
        "inputs": job.inputs,
        "info": json.dumps(info, default=str),
        "image": np.clip(image, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16),
        "labelled": label is not None,
        # The dataset's features are fixed, so a missing label is an empty array.
        "label": np.zeros((0, 0, 0), np.uint8) if label is None else np.asarray(label, np.uint8),
        "mask": np.asarray(prepared.mask, np.uint8),
        "affine": np.asarray(prepared.grid.affine, np.float64),
        "spacing": np.asarray(prepared.grid.spacing, np.float64),
        "present": np.asarray(prepared.present, bool),
    }


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


def stage_all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, str | None]]:
    """Stage every job; yields (job, None or the reason it was left out) as they finish.

    Workers are spawned (a forked jax hangs), hold one case each, and at most two jobs a worker wait in the queue.
    """
    if processes <= 1 or len(jobs) < 2:
        for job in jobs:
            yield job, stage(job)
        return
    waiting, running = list(jobs)[::-1], {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < 2 * processes:
                    job = waiting.pop()
                    running[pool.submit(stage, job)] = job
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise JaxsegError(
                f"a worker process died while preparing cases, among them {', '.join(job.case.id for job in list(running.values())[:4])}: "
                "most often the memory was short. What was done is kept; run the same command again with processes=1. "
                "(In a script of your own, call this under `if __name__ == '__main__':`.)"
            ) from error
        finally:
            for future in running:
                future.cancel()
