"""`python -m jaxseg.restore_overflow FOLDER --out RESTORED`: 8-bit scans that have wrapped around, put back (`data.overflow`), a folder at a time.

Cases are found as `jaxseg prepare` finds them. Channels that wrapped around (the index notes them: "may have wrapped around") are restored; all other files of
a case are copied as they are, under the same names. A case with a scan that cannot be restored is left out, labels and all. `RESTORED/restored.json` tells
of every scan: `{"path", "step", "unsure", "jumps"}` or `{"path", "reason"}`; the same command goes on where it was interrupted.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from jaxseg.data.archive.scan_row import WRAPPED
from jaxseg.data.archive.values import wrapped_share
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.overflow import restore
from jaxseg.errors import InputError, JaxsegError
from jaxseg.files import read_json, write_json, write_whole

RECORD = "restored.json"


def restore_folder(folder: str | Path, out: str | Path, *, processes: int | None = None) -> list[dict[str, Any]]:
    """Restore every case of a folder into `out`, a case a process; returns the rows of `restored.json`, one a scan that had wrapped around.

    Raises:
        InputError: no cases, or `out` lies within the folder (or is it); errors of the disk.
    """
    folder, out = Path(folder).resolve(), Path(out).resolve()
    if out == folder or folder in out.parents:
        raise InputError(f"{out}: lies within the folder to restore; choose an --out outside of it")
    cases = find_cases(folder).cases
    known = {row["case"]: row for row in read_json(out / RECORD)} if (out / RECORD).is_file() else {}
    waiting = [case for case in cases if case.id not in known]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        max(1, min(processes or os.cpu_count() or 1, len(waiting) or 1)), mp_context=context
    ) as pool:
        jobs = [pool.submit(_restore_case, case, folder, out) for case in waiting]
        try:
            for done in concurrent.futures.as_completed(jobs):
                row = done.result()
                known[row["case"]] = row
                write_json(out / RECORD, [known[case.id] for case in cases if case.id in known])
                print(_line(row), file=sys.stderr, flush=True)
        finally:
            for job in jobs:
                job.cancel()
    return [known[case.id] for case in cases]


def _restore_case(case: Case, folder: Path, out: Path) -> dict[str, Any]:
    """All files of a case, or none of them."""
    mended: dict[Path, nibabel.Nifti1Image] = {}
    facts: dict[str, Any] = {}
    for path in case.images.values():
        image = nibabel.load(path)
        assert isinstance(image, nibabel.Nifti1Image)
        stored = np.asanyarray(image.dataobj)
        if not _has_wrapped(stored):
            continue
        name = path.relative_to(folder).as_posix()
        try:
            found = restore(stored)
        except InputError as error:
            return {"case": case.id, "left_out": {"path": name, "reason": str(error)}}
        mended[path] = nibabel.Nifti1Image(found.levels, image.affine, image.header)
        facts[name] = {key: round(value, 5) for key, value in dataclasses.asdict(found).items() if key != "levels"}
    for path in filter(None, [*case.images.values(), case.label, case.mask, *case.anonymised]):
        target = out / path.relative_to(folder)
        if path in mended:
            write_whole(target, mended[path].to_filename)
        else:
            write_whole(target, lambda temporary, source=path: shutil.copyfile(source, temporary))
    return {"case": case.id, "restored": facts}


def _has_wrapped(stored: np.ndarray) -> bool:
    if stored.dtype != np.uint8 or stored.ndim != 3:
        return False
    return wrapped_share(stored[..., None], float(stored.max()) - float(stored.min())) > WRAPPED


def _line(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return f"{row['left_out']['path']}: left out: {row['left_out']['reason']}"
    return (
        "\n".join(
            f"{name}: step {found['step']:.4f}, {found['unsure']:.1%} unsure, {found['jumps']:.1%} jump"
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
        rows = restore_folder(given.folder, given.out, processes=given.processes)
    except JaxsegError as error:
        print(f"restore_overflow: error: {error}", file=sys.stderr)
        return error.exit_code
    lost = sum("left_out" in row for row in rows)
    print(f"{sum(bool(row.get('restored')) for row in rows)} of {len(rows)} cases restored, {lost} left out: {given.out / RECORD}")
    return 3 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
