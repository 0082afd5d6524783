"""What an archive holds, counted row by row: numbers, kinds, reasons, histograms. Called by `index`; `jaxseg.index_page` draws it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from jaxseg.data.archive.scan_row import Row

SPACING_EDGES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # mm; what is larger falls into the last bin
SHAPE_EDGES = (0, 16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)  # voxels


class Totals:
    """Counts of an archive; memory is that of the kinds that occur, eight bytes for each patient, and the reasons."""

    def __init__(self) -> None:
        self.scans = self.ok = self.noted = self.bytes = self.duplicates = 0
        self._patients: set[int] = set()
        self._studies: set[int] = set()
        self._counts = {name: Counter[str]() for name in ("modalities", "formats", "dtypes", "orientations", "reasons", "flags")}
        self._spacing = {axis: [0] * len(SPACING_EDGES) for axis in "xyz"}
        self._shape = {axis: [0] * len(SHAPE_EDGES) for axis in "xyz"}
        self.left_out: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Count one row."""
        place = self.scans
        self.scans += 1
        self.ok += row["ok"]
        self.noted += bool(row["notes"])
        self.bytes += row["bytes"] or 0
        self.duplicates += row["duplicate_of"] is not None
        self._patients.add(int(row["patient"], 16))
        self._studies.add(int(row["study"], 16))
        for name, column in (("modalities", "modality"), ("formats", "format"), ("dtypes", "dtype"), ("orientations", "orientation")):
            if row[column]:
                self._counts[name][row[column]] += 1
        self._counts["flags" if row["ok"] else "reasons"].update(row["flags"])
        if not row["ok"]:
            self.left_out.append({"row": place, "patient": row["patient"], "reason": row["reason"]})
        for values, histograms, edges in ((row["spacing"], self._spacing, SPACING_EDGES), (row["shape"], self._shape, SHAPE_EDGES)):
            for axis, value in zip("xyz", values or ()):
                histograms[axis][_bin(value, edges)] += 1

    def to_json(self) -> dict[str, Any]:
        """What `summary.json` holds; no path and no name."""
        counts = {name: dict(sorted(counter.items())) for name, counter in self._counts.items()}
        histograms = {
            "spacing_mm": {"edges": list(SPACING_EDGES), **self._spacing},
            "shape_voxels": {"edges": list(SHAPE_EDGES), **self._shape},
        }
        return self.line() | counts | {"histograms": histograms, "left_out": self.left_out}

    def line(self) -> dict[str, Any]:
        """The totals alone, for one line at the end of a run."""
        return {
            "scans": self.scans,
            "ok": self.ok,
            "patients": len(self._patients),
            "studies": len(self._studies),
            "noted": self.noted,
            "bytes": self.bytes,
            "duplicates": self.duplicates,
        }


def _bin(value: float, edges: Sequence[float]) -> int:
    return max(place for place, edge in enumerate(edges) if value >= edge)


def count(rows: Iterable[Row]) -> Totals:
    """The totals of some rows."""
    totals = Totals()
    for row in rows:
        totals.add(row)
    return totals
