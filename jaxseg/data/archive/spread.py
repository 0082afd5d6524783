"""DICOM series whose files lie in several folders of a root, which are one scan each. Called by `index` when every folder has been read by itself.

An archive is walked folder by folder, so that memory does not grow with it; a series that was met in a second folder is then read once more,
from all of its folders together.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.archive.flags import flag_of_reason
from jaxseg.data.archive.scan_row import Row, Settings, Task, read_row
from jaxseg.data.archive.table import stream_rows
from jaxseg.data.io.scans import ScanRef, find_scans, joined

SEVERAL = "several folders"
# What is wrong with a part of a series; a localiser, or a file that is no DICOM, is none.
_OF_PARTS = {"missing slices", "duplicate slices", "slices", "not 3-D", "constant"}
Place = tuple[str, str]


def gather_spread(files: Sequence[Path], settings: Settings) -> dict[Place, list[Row]]:
    """(path, series) → the rows that take the place of that row, for every series that lies in several folders of one root.

    The first folder's row becomes that of the whole scan, at the lowest folder that holds all of its files, and the others' none. Where the
    files together are no sound scan, every row stays, is not ok, and says why. Whole copies of a series are left alone: they are duplicates.
    """
    replaced: dict[Place, list[Row]] = {}
    for rows in _repeated(files).values():
        whole = len({row["path"] for row in rows}) > 1 and not (
            all(row["ok"] for row in rows) and len({row["voxel_hash"] for row in rows}) == 1
        )
        refs = [ref for row in rows for ref in _refs(Path(row["path"]), row["series"], settings)] if whole else []
        if len(refs) > 1:
            together = _together(refs, rows[0]["root"], settings)
            replaced |= {(row["path"], row["series"]): [] for row in rows} | {(rows[0]["path"], rows[0]["series"]): [together]}
            if not together["ok"]:
                replaced |= {(row["path"], row["series"]): [_refused(row, together["reason"], len(refs))] for row in rows}
    return replaced


def _repeated(files: Sequence[Path]) -> dict[tuple[int, str], list[Row]]:
    """The rows of every series that has several, by root; eight bytes a series are held to find them."""
    columns = ["format", "series", "root", "ok", "flags"]
    keys = [_key(row) for file in files for row in stream_rows(file, columns) if _is_part(row)]
    values, counts = np.unique(np.asarray(keys, np.uint64), return_counts=True)
    twice = {int(value) for value in values[counts > 1]}
    found: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in (row for file in files if twice for row in stream_rows(file) if _is_part(row) and _key(row) in twice):
        found[row["root"], row["series"]].append(row)
    return found


def _is_part(row: Row) -> bool:
    return row["format"] == "DICOM" and (row["ok"] or not _OF_PARTS.isdisjoint(row["flags"]))


def _key(row: Row) -> int:
    return int(row["series"], 16) ^ row["root"]


def _refs(folder: Path, series: str, settings: Settings) -> list[ScanRef]:
    """The part of a series that lies in a folder itself."""
    for ref in find_scans(folder, settings.rules):
        if ref.path != folder:
            break
        if ref.key == series and not ref.reason:
            return [ref]
    return []


def _together(refs: Sequence[ScanRef], root: int, settings: Settings) -> Row:
    ref = joined(refs)
    facts = [file.stat() for file in ref.files]
    row = read_row(Task(ref, root, sum(fact.st_size for fact in facts), max(fact.st_mtime_ns for fact in facts)), settings)
    if row["ok"]:
        row["notes"] = "; ".join(filter(None, [row["notes"], f"put together from {len(refs)} folders"]))
        row["flags"] = [*row["flags"], SEVERAL]
    return row


def _refused(row: Row, reason: str, count: int) -> Row:
    said = f"its series lies in {count} folders, which together are no sound scan: {reason}. Put the files of one scan into one folder"
    return row | {"ok": False, "reason": said, "flags": [flag_of_reason(said)]}
