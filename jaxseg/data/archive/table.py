"""The index as a file: `scans.parquet`, written in parts and read in row groups, so that memory is that of one part. Called by `index` and readers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from jaxseg.data.archive.scan_row import COLUMNS, Row
from jaxseg.data.archive.values import NAMES
from jaxseg.data.io.decoded import Rules
from jaxseg.errors import InputError
from jaxseg.files import write_whole

FILE = "scans.parquet"
VERSION = 3
_META = b"jaxseg.index"
_TYPES: dict[str, pa.DataType] = {
    "ok": pa.bool_(),
    "flags": pa.list_(pa.string()),
    "files": pa.int32(),
    "bytes": pa.int64(),
    "mtime": pa.int64(),
    "root": pa.int32(),
    "shape": pa.list_(pa.int32()),
    "spacing": pa.list_(pa.float64()),
    "channels": pa.int32(),
    "perceptual": pa.binary(),
    **{name: pa.float64() for name in NAMES},
}
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in COLUMNS])


@dataclass(frozen=True, eq=False)
class Index:
    """An index on disk: how many scans it lists and how many are `ok`. Two are equal when their rows are.

    `rows` and `left_out` read the whole table; `stream` reads it row group by row group.
    """

    folder: Path
    scans: int
    ok: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row, columns as in `scans.parquet`."""
        return tuple(self.stream())

    @property
    def left_out(self) -> tuple[dict[str, str], ...]:
        """Path and reason of the scans that must not be trained on as they stand."""
        return tuple({"path": row["path"], "reason": row["reason"]} for row in self.stream(["path", "ok", "reason"]) if not row["ok"])

    @property
    def roots(self) -> tuple[Path, ...]:
        """What was indexed; a row's `root` counts them."""
        return tuple(Path(root) for root in metadata(self.folder / FILE)["roots"])

    @property
    def salt(self) -> str:
        """The secret that patient and study keys were made with."""
        return str(metadata(self.folder / FILE)["salt"])

    @property
    def declared(self) -> tuple[tuple[str, ...], ...]:
        """For each root the channels of its 4-D files, as they were named when it was indexed; () where nobody did."""
        return tuple(tuple(channels) for channels in metadata(self.folder / FILE)["declared"])

    @property
    def rules(self) -> Rules:
        """What its scans were read by."""
        return Rules(**metadata(self.folder / FILE)["rules"])

    def stream(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Row after row, of those columns."""
        return stream_rows(self.folder / FILE, columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and (self.scans, self.ok) == (other.scans, other.ok) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]


def read_index(out: str | Path) -> Index:
    """The index in a folder; InputError if there is none, it is damaged, or another version wrote it."""
    path = Path(out) / FILE
    if not path.is_file():
        raise InputError(f"{path}: no index here; make one with `jaxseg index`")
    ok = scans = 0
    for row in stream_rows(path, ["ok"]):
        scans, ok = scans + 1, ok + bool(row["ok"])
    return Index(Path(out), scans, ok)


def metadata(path: Path) -> dict[str, Any]:
    """What an index says about itself: version, salt, roots, rules."""
    with _opened(path) as file:
        found = (file.schema_arrow.metadata or {}).get(_META)
        missing = sorted(set(SCHEMA.names) - set(file.schema_arrow.names))
    about = json.loads(found) if found else {}
    if missing or about.get("version") != VERSION:
        lacks = f"lacks the columns {', '.join(missing)}" if missing else f"was written by another version ({about.get('version')})"
        raise InputError(f"{path}: {lacks}; make the index again with `jaxseg index`")
    return about


def stream_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a parquet file of the index, one row group in memory at a time."""
    metadata(path)
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            try:
                yield from file.read_row_group(group, columns=list(columns) if columns else None).to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{path}: damaged ({error}); make the index again") from None


def write_part(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Some rows as a file of their own, whole or not at all."""
    write_whole(path, lambda temporary: parquet.write_table(_table(rows, about), temporary, compression="zstd"))


def write_table(path: Path, groups: Iterable[Sequence[Row]], about: dict[str, Any]) -> None:
    """The index, a row group for every group of rows, whole or not at all."""

    def write(temporary: Path) -> None:
        with parquet.ParquetWriter(temporary, _schema(about), compression="zstd") as writer:
            for rows in groups:
                writer.write_table(_table(rows, about))

    write_whole(path, write)


def _table(rows: Sequence[Row], about: dict[str, Any]) -> pa.Table:
    schema = _schema(about)
    return pa.table({name: pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names}, schema=schema)


def _schema(about: dict[str, Any]) -> pa.Schema:
    return SCHEMA.with_metadata({_META: json.dumps(about).encode()})


def _opened(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); make the index again") from None
