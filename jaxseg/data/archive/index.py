"""`index_archive`: every scan below some folders to `scans.parquet`, in parts, so that an interrupted run goes on. Called by the pipeline and the CLI."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxseg.data.archive.known import KnownRows
from jaxseg.data.archive.readers import read_rows
from jaxseg.data.archive.scan_row import Row, Settings, Task, owner_keys
from jaxseg.data.archive.spread import gather_spread
from jaxseg.data.archive.table import FILE, VERSION, Index, metadata, stream_rows, write_part, write_table
from jaxseg.data.archive.totals import Totals
from jaxseg.data.archive.walk import check_root, count_files, declared_channels, holds_scans, refuse_nested, tasks_below
from jaxseg.data.io.decoded import Rules
from jaxseg.errors import InputError
from jaxseg.files import lock_folder, write_json

PART_ROWS = 256
_PARTS = "parts"


def index_archive(
    roots: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    channels: Sequence[str] | None = None,
    policy: Literal["sform", "qform"] | None = None,
    assume_orientation: str | None = None,
    burned_in: bool = False,
    salt: str | None = "",
    resume: bool = False,
    threads: int = 2,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Read every scan below `roots` and write `out/scans.parquet` and `out/summary.json`, each whole or not at all.

    `ok` is false for everything that must not be trained on as it stands: damaged, non-finite or constant scans, fewer than two
    slices, 4-D without channels declared (by `channels` or a dataset.json in its root), unusable or contradictory geometry.
    Rows are in the order of roots, then folders and names. Scans with equal voxels and geometry are marked `duplicate_of` the first.
    A DICOM series that lies in several folders of a root is one row, at the folder that holds them all.
    Memory is that of the scans being read and of a part of the table, whatever the archive's size.

    Args:
        policy: which of two contradicting affines of a NIfTI file to believe; such files are refused without it.
        assume_orientation: axis codes such as "RAS" for files that state none; they are refused without it.
        burned_in: admit DICOM series with text burned into their pixels; they are flagged, and not ok without it.
        salt: makes patient and study keys unguessable. None: that of the index already in `out`, or a new random one. Empty: the keys
            are the same in every index, and whoever guesses a name can check the guess.
        resume: keep the rows of files whose size and time stamp have not changed since an earlier or interrupted run.
        threads, processes: how many scans are read at once; processes (one a core) are started for large archives alone, by default.
        progress: called with (scans done, about how many in all).

    Raises:
        InputError: a root does not exist or is a zip or tar file, or there is no scan below any of them.
        StorageError: `out` cannot be written, or another process is indexing into it.
    """
    out = Path(out)
    # Whole paths: an index is read from other working folders, too.
    listed = tuple(Path(os.path.abspath(root)) for root in ([roots] if isinstance(roots, str | Path) else roots))
    for root in listed:
        check_root(root)
    refuse_nested(listed)
    if not any(map(holds_scans, listed)):
        raise InputError(
            f"{', '.join(map(str, listed))}: no .nii or .nii.gz file below, nor NRRD, MetaImage or DICOM; expected an archive of scans"
        )
    declared = {number: declared_channels(root, channels) for number, root in enumerate(listed)}
    settings = Settings(Rules(policy, assume_orientation, burned_in=burned_in), _salt(out, salt), listed, declared)
    with lock_folder(out / _PARTS):
        about = _about(settings)
        known = KnownRows(_tables(out) if resume else [], about)
        parts = _next_parts(out, resume)
        items = (
            _kept(task, known, settings) or task for number, root in enumerate(listed) for task in tasks_below(root, number, settings.rules)
        )
        rows = read_rows(items, settings, processes=processes, threads=threads)
        _write_parts(parts, rows, about, sum(map(count_files, listed)) if progress else 0, progress)
        totals = _assemble(out, parts, about, settings)
        _remove_parts(out)
    return Index(out, totals.scans, totals.ok)


def _kept(task: Task, known: KnownRows, settings: Settings) -> Row | None:
    """The known row of a scan; None where whose it is reads otherwise now, as where files were added that tell what a number in its name counts."""
    row = known.find(task)
    return row if row is not None and owner_keys(task, settings).items() <= row.items() else None


def _salt(out: Path, salt: str | None) -> str:
    if salt is not None:
        return salt
    for table in reversed(_tables(out)):
        try:
            return str(metadata(table)["salt"])
        except InputError:
            continue
    return secrets.token_hex(16)


def _about(settings: Settings) -> dict[str, Any]:
    return {
        "version": VERSION,
        "salt": settings.salt,
        "roots": [str(root) for root in settings.roots],
        "declared": [list(settings.declared[number]) for number in range(len(settings.roots))],
        "rules": asdict(settings.rules),
    }


def _tables(out: Path) -> list[Path]:
    """The finished index, then the parts of interrupted runs, the newest last."""
    runs = sorted((path for path in (out / _PARTS).glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    return [path for path in [out / FILE, *(part for run in runs for part in sorted(run.glob("*.parquet")))] if path.is_file()]


def _next_parts(out: Path, resume: bool) -> Path:
    runs = [path for path in (out / _PARTS).glob("*") if path.name.isdigit()]
    if not resume:
        for run in runs:
            shutil.rmtree(run)
    parts = out / _PARTS / str(max((int(run.name) for run in runs), default=-1) + 1)
    parts.mkdir(parents=True)
    return parts


def _remove_parts(out: Path) -> None:
    """The parts of this run and of earlier ones, and their folder if nothing else lies in it."""
    for run in (path for path in (out / _PARTS).glob("*") if path.name.isdigit()):
        shutil.rmtree(run)
    (out / _PARTS / ".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: somebody's own files
        (out / _PARTS).rmdir()


def _write_parts(
    parts: Path, rows: Iterator[Row], about: dict[str, Any], expected: int, progress: Callable[[int, int], None] | None
) -> None:
    done = 0

    def counted() -> Iterator[Row]:
        nonlocal done
        for row in rows:
            done += 1
            if progress is not None:
                progress(done, max(done + 1, expected))
            yield row

    stream = counted()
    for number in range(1 << 30):
        part = list(islice(stream, PART_ROWS))
        if not part:
            break
        write_part(parts / f"{number:08d}.parquet", part, about)
    if progress is not None:
        progress(done, done)


def _assemble(out: Path, parts: Path, about: dict[str, Any], settings: Settings) -> Totals:
    """Scans.parquet and summary.json from the parts: a row group a part, series put together and duplicates marked on the way."""
    files = sorted(parts.glob("*.parquet"))
    spread = gather_spread(files, settings)
    copied = _copied_hashes(files) | {int(row["voxel_hash"][:16], 16) for rows in spread.values() for row in rows if row["ok"]}
    first: dict[str, str] = {}
    totals = Totals()

    def groups() -> Iterator[list[Row]]:
        for file in files:
            rows = [kept for row in stream_rows(file) for kept in spread.get((row["path"], row["series"]), [row])]
            for row in rows:
                row["duplicate_of"] = None
                if row["ok"] and int(row["voxel_hash"][:16], 16) in copied:
                    earlier = first.setdefault(row["voxel_hash"], row["path"])
                    row["duplicate_of"] = earlier if earlier != row["path"] else None
                totals.add(row)
            yield rows

    write_table(out / FILE, groups(), about)
    write_json(out / "summary.json", totals.to_json())
    return totals


def _copied_hashes(files: Iterable[Path]) -> set[int]:
    """Beginnings of the voxel hashes that occur more than once; eight bytes a scan are held."""
    found = [
        np.array([int(row["voxel_hash"][:16], 16) for row in stream_rows(file, ["ok", "voxel_hash"]) if row["ok"]], np.uint64)
        for file in files
    ]
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return {int(value) for value in values[counts > 1]}
