"""Rows of an earlier index, or of one that was interrupted, whose files have not changed since. Called by `index` to resume."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from jaxseg.data.archive.scan_row import Row, Task
from jaxseg.data.archive.table import metadata, stream_rows
from jaxseg.errors import InputError


class KnownRows:
    """Rows by path, size and time stamp. Kept in memory: 24 bytes of key and place a row; the rows themselves stay on disk."""

    def __init__(self, files: Sequence[Path], about: dict[str, Any]) -> None:
        """
        Args:
            files: tables of an index, the newest last; those that are damaged or were made by other rules are passed over.
            about: what the new index says about itself.
        """
        self._files: list[Path] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
        for file in files:
            if self._usable(file, about):
                self._add(file, about["roots"], metadata(file)["roots"])
        self._group = functools.lru_cache(2)(self._read_group)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, task: Task) -> Row | None:
        """The row of an unchanged scan, or None."""
        place = self._places.get(_key(str(task.ref.path), task.ref.key, task.root, task.size, task.mtime))
        return None if place is None else dict(self._group(place[0], place[1])[place[2]])

    @staticmethod
    def _usable(file: Path, about: dict[str, Any]) -> bool:
        try:
            found = metadata(file)
        except InputError:
            return False
        if any(found[name] != about[name] for name in ("salt", "rules")):
            return False
        both = dict(zip(found["roots"], found["declared"], strict=True))
        return all(both.get(root, declared) == declared for root, declared in zip(about["roots"], about["declared"], strict=True))

    def _add(self, file: Path, roots: list[str], before: list[str]) -> None:
        numbers = {place: roots.index(root) for place, root in enumerate(before) if root in roots}
        self._files.append(file)
        with parquet.ParquetFile(file) as table:
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        group = offset = 0
        for row in stream_rows(file, ["path", "series", "root", "bytes", "mtime"]):
            while offset >= sizes[group]:
                group, offset = group + 1, 0
            if row["root"] in numbers:
                key = _key(row["path"], row["series"], numbers[row["root"]], row["bytes"], row["mtime"])
                self._places[key] = (len(self._files) - 1, group, offset)
            offset += 1

    def _read_group(self, file: int, group: int) -> list[Row]:
        with parquet.ParquetFile(self._files[file]) as table:
            return table.read_row_group(group).to_pylist()


def _key(path: str, series: str, root: int, size: int, mtime: int) -> bytes:
    return hashlib.sha256(f"{path}\0{series}\0{root}\0{size}\0{mtime}".encode(errors="replace")).digest()[:16]
