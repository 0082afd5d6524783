"""`python -m jaxseg.restore_overflow FOLDER --out RESTORED`: 8-bit scans that have wrapped around, put back (`data.overflow`), a folder at a time.

Cases are found as `jaxseg prepare` finds them. Channels that wrapped around (the index notes them: "may have wrapped around") are restored; all other files of
a case are copied as they are, under the same names, and so is a `dataset.json`. A case with a scan that is broken or cannot be restored is left out, labels
and all. `RESTORED/restored.json` is `{"folder", "cases"}`, and a case either `{"case", "restored": {path: {"step", "unsure", "jumps", "edges"}}}`, empty where
all was copied, or `{"case", "left_out": {"path", "reason"}}`. The same command goes on where it was interrupted.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.archive.scan_row import WRAPPED
from jaxseg.data.archive.values import wrapped_share
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.io import nifti
from jaxseg.data.io.decoded import Decoded, Rules
from jaxseg.data.io.scans import decode_path
from jaxseg.data.overflow import restore
from jaxseg.errors import InputError, JaxsegError
from jaxseg.files import lock_folder, read_json, write_bytes, write_json, write_whole
from jaxseg.warning_lines import warnings_as_lines

RECORD = "restored.json"


def restore_folder(folder: str | Path, out: str | Path, *, processes: int | None = None) -> list[dict[str, Any]]:
    """Restore every case of a folder into `out`, a case a process; returns the "cases" of `restored.json`.

    Raises:
        InputError: no cases, labels that lie outside of the folder, or `out` lies within it (or is it) or holds what was made of another.
        StorageError: the disk, or another run in `out`. JaxsegError: a worker process died.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if out == folder or folder in out.parents:
        raise InputError(f"{out}: lies within the folder to restore; choose an --out outside of it")
    cases = find_cases(folder, dicom=False).cases
    if beyond := next((path for case in cases for path in _files(case) if folder not in path.parents), None):
        raise InputError(f"{folder}: {beyond} belongs to its cases and lies outside of it; give {folder.parent}")
    with lock_folder(out):
        known = _known(folder, out)
        waiting = [case for case in cases if case.id not in known]
        workers = max(1, min(processes or os.cpu_count() or 1, len(waiting)))
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(_restore_case, case, folder, out) for case in waiting]
            try:
                for done in concurrent.futures.as_completed(jobs):
                    row = done.result()
                    known[row["case"]] = row
                    rows = [known[case.id] for case in cases if case.id in known]
                    write_json(out / RECORD, {"folder": str(folder), "cases": rows})
                    print(_line(row), file=sys.stderr, flush=True)
            except BrokenProcessPool as error:
                raise JaxsegError(
                    "a worker process died: most often the memory was short. What was done is kept; run the same command again with --processes 1"
                ) from error
            finally:
                for job in jobs:
                    job.cancel()
        for description in [folder / "dataset.json", *folder.glob("*/dataset.json")]:
            if description.is_file():
                _copy(description, out / description.relative_to(folder))
    return [known[case.id] for case in cases]


def _files(case: Case) -> list[Path]:
    return list(filter(None, [*dict.fromkeys(case.images.values()), case.label, case.mask, *case.anonymised]))


def _known(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """The cases that an earlier run has done."""
    if not (out / RECORD).is_file():
        return {}
    before = read_json(out / RECORD)
    if before["folder"] != str(folder):
        raise InputError(f"{out}: holds what was restored of {before['folder']}; choose another --out")
    return {row["case"]: row for row in before["cases"]}


def _restore_case(case: Case, folder: Path, out: Path) -> dict[str, Any]:
    """All files of a case, or none of them."""
    mended: dict[Path, bytes] = {}
    facts: dict[str, Any] = {}
    for path in dict.fromkeys(case.images.values()):
        name = path.relative_to(folder).as_posix()
        try:
            decoded = decode_path(path, Rules())
            if not _has_wrapped(decoded):
                continue
            found = restore(decoded.stored)
        except InputError as error:
            return {"case": case.id, "left_out": {"path": name, "reason": str(error).removeprefix(f"{path}: ")}}
        head = decoded.header
        mended[path] = nifti.encode(found.levels, head.grid, space_code=head.space_code, zipped=path.name.lower().endswith(".gz"))
        facts[name] = {key: round(value, 5) for key, value in dataclasses.asdict(found).items() if key != "levels"}
    for path in _files(case):
        target = out / path.relative_to(folder)
        if path in mended:
            write_bytes(target, mended[path])
        else:
            _copy(path, target)
    return {"case": case.id, "restored": facts}


def _copy(path: Path, target: Path) -> None:
    write_whole(target, lambda temporary: shutil.copyfile(path, temporary))


def _has_wrapped(decoded: Decoded) -> bool:
    """Whether a restoration is worth trying: unscaled 8 bits in three axes, of which neighbours jump."""
    head, stored = decoded.header, decoded.stored
    if stored.dtype != np.uint8 or stored.ndim != 3 or (head.slope, head.inter) != (1, 0):
        return False
    return wrapped_share(stored[..., None], float(stored.max()) - float(stored.min())) > WRAPPED


def _line(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return f"{row['left_out']['path']}: left out: {row['left_out']['reason']}"
    return (
        "\n".join(
            f"{name}: step {found['step']:.4f}, {found['unsure']:.1%} unsure, {found['jumps']:.1%} jump, {found['edges']:.1%} edges"
            for name, found in row["restored"].items()
        )
        or f"{row['case']}: copied"
    )


def main(arguments: list[str]) -> int:
    """Restore a folder; 3 where cases were left out."""
    parser = argparse.ArgumentParser(prog="python -m jaxseg.restore_overflow", description="8-bit scans that have wrapped around, put back")
    parser.add_argument("folder", type=Path, help="scans, in any layout that `jaxseg prepare` knows")
    parser.add_argument("--out", type=Path, required=True, help="where to put the restored copy")
    parser.add_argument("--processes", type=int, help="default: one a core")
    given = parser.parse_args(arguments)
    try:
        with warnings_as_lines("restore_overflow"):
            rows = restore_folder(given.folder, given.out, processes=given.processes)
    except JaxsegError as error:
        print(f"restore_overflow: error: {error}", file=sys.stderr)
        return error.exit_code
    lost, mended = sum("left_out" in row for row in rows), sum(bool(row.get("restored")) for row in rows)
    print(f"{mended} of {len(rows)} cases restored, {len(rows) - mended - lost} copied, {lost} left out: {given.out / RECORD}")
    return 3 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
