"""Rows as a table in Markdown, under a head that says where they were measured. Called by `bench.__main__`, pasted into docs/results.md."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_COLUMNS = ("workload", "kind", "peer", "peer ms", "ours ms", "ratio (95 %)", "peer MiB", "ours MiB", "compile s", "a second", "differ by")
_OF_PEAK = "of peak"


def head(machine: Mapping[str, Any]) -> str:
    """Lines that say machine, versions, commit and date."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, commit {machine['commit']}; {machine['machine']}; {machine['device']}, {machine['precision']}, "
        f"matmul peak {machine['peak_tflops']:.3g} TFLOP/s; Python {machine['python']}, {versions}.\n"
        "Ratio: the peer's time over ours, above 1 we are faster; median over paired rounds. MiB: the peak of the whole process; in brackets "
        "what it holds at its end that is no file's page."
    )


def table(rows: Sequence[Row]) -> str:
    """The rows; what was not measured is a dash, and why it was not stands below."""
    on_gpu = any(row.get("peak_fraction") is not None for row in rows)
    columns = _COLUMNS + ((_OF_PEAK,) if on_gpu else ())
    lines = [columns, ("---",) * len(columns), *(_cells(row)[: len(columns)] for row in rows)]
    notes = [f"{row['workload']}: no peer ({row['absent']})" for row in rows if row["absent"]]
    notes += [f"{row['workload']}: the peer's form is {row['peer_form']}" for row in rows if row["peer_form"]]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *notes])


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    return (
        row["workload"],
        row["kind"],
        row["peer"],
        _number(row["peer_ms"], ".4g"),
        _number(row["ours_ms"], ".4g"),
        ratio,
        _mebibytes(row, "peer"),
        _mebibytes(row, "ours"),
        _number(row["compile_s"], ".1f"),
        f"{row['per_second']:.3g} {row['unit']}",
        _number(row["equal"], ".1e"),
        _number(row.get("peak_fraction"), ".0%"),
    )


def _mebibytes(row: Row, side: str) -> str:
    anonymous = row.get(f"{side}_anonymous_mib")
    return _number(row[f"{side}_mib"], ".0f") + ("" if anonymous is None else f" ({anonymous:.0f})")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
