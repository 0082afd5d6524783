"""The page of an index: what an archive holds, in tables and histograms, without a path or a name. Called by `jaxseg index`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from jaxseg.files import read_json
from jaxseg.report import Figure, Section, Table, Text, write_page

_SHOWN = 200  # scans that were left out and are listed; the others are in the index
_COLOURS = {"x": "#0072B2", "y": "#D55E00", "z": "#009E73"}


def draw_index_page(out: str | Path) -> Path:
    """Write `OUT/index.html` from the `summary.json` of an index; InputError if there is none."""
    summary = read_json(Path(out) / "summary.json")
    sections = [_numbers(summary), _kinds(summary), _geometry(summary["histograms"]), _left_out(summary)]
    lead = (
        f"{summary['scans']:,} scans of {summary['patients']:,} patients, {summary['bytes'] / 2**30:,.2f} GiB on disk: {summary['ok']:,} may be "
        f"trained on, {summary['scans'] - summary['ok']:,} were left out with a reason. Paths stand in scans.parquet alone."
    )
    return write_page(Path(out) / "index.html", "An archive of scans", lead, sections)


def _numbers(summary: Mapping[str, Any]) -> Section:
    rows = [
        ["scans", f"{summary['scans']:,}"],
        ["may be trained on", f"{summary['ok']:,}"],
        ["left out", f"{summary['scans'] - summary['ok']:,}"],
        ["patients, studies", f"{summary['patients']:,}, {summary['studies']:,}"],
        ["copies of another scan", f"{summary['duplicates']:,}"],
        ["with notes", f"{summary['noted']:,}"],
    ]
    return Section("Totals", [Table(["", "number"], rows)])


def _kinds(summary: Mapping[str, Any]) -> Section:
    parts: list[Text | Figure | Table] = [
        Figure(_bars(summary["modalities"]), "scans by modality", "Modality, as guessed; the evidence stands in the column modality_from.")
    ]
    for name in ("formats", "dtypes", "orientations"):
        parts.append(Table([name.removesuffix("s"), "scans"], [[kind, f"{count:,}"] for kind, count in _sorted(summary[name])]))
    if summary["flags"]:
        rows = [[flag, f"{count:,}"] for flag, count in _sorted(summary["flags"])]
        parts.append(Table(["flag", "scans"], rows, "Of scans that may be used: what to know of them."))
    return Section("Kinds", parts)


def _geometry(histograms: Mapping[str, Any]) -> Section:
    return Section(
        "Geometry",
        [
            Figure(
                _steps(histograms["spacing_mm"], "spacing (mm)"),
                "histograms of spacing along three axes",
                "Spacing along the axes as stored.",
            ),
            Figure(_steps(histograms["shape_voxels"], "voxels"), "histograms of shape along three axes", "Shape along the axes as stored."),
        ],
    )


def _left_out(summary: Mapping[str, Any]) -> Section:
    left_out = summary["left_out"]
    if not left_out:
        return Section("Left out", [Text("Nothing was left out.")])
    parts: list[Text | Figure | Table] = [Figure(_bars(summary["reasons"]), "scans left out by reason", "Why scans were left out.")]
    rows = [[str(item["row"]), item["patient"], item["reason"]] for item in left_out[:_SHOWN]]
    caption = f"The first {_SHOWN} of {len(left_out):,}." if len(left_out) > _SHOWN else "Every scan that was left out."
    parts.append(Table(["row of scans.parquet", "patient key", "reason"], rows, caption))
    return Section("Left out", parts)


def _sorted(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _bars(counts: Mapping[str, int]) -> bytes:
    items = _sorted(counts)[:20][::-1] or [("none", 0)]
    canvas = Canvas(figsize=(6.4, 0.9 + 0.28 * len(items)), dpi=110)
    axes = canvas.add_subplot()
    bars = axes.barh([name for name, _ in items], [count for _, count in items], color="#0072B2")
    axes.bar_label(bars, labels=[f"{count:,}" for _, count in items], padding=3, fontsize=8)
    axes.margins(x=0.12)
    return _png(canvas, axes, "scans")


def _steps(histogram: Mapping[str, Sequence[float]], xlabel: str) -> bytes:
    """Counts between the edges for each axis; the last bin has no upper edge."""
    edges = histogram["edges"]
    names = [f"{low:g}–{high:g}" for low, high in zip(edges, edges[1:])] + [f"≥ {edges[-1]:g}"]
    canvas = Canvas(figsize=(8.4, 3.2), dpi=110)
    axes = canvas.add_subplot()
    for place, (axis, colour) in enumerate(_COLOURS.items()):
        axes.bar([at + 0.27 * (place - 1) for at in range(len(names))], histogram[axis], width=0.25, color=colour, label=axis)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("scans")
    axes.legend(frameon=False, fontsize=9)
    return _png(canvas, axes, xlabel)


def _png(canvas: Canvas, axes: Any, xlabel: str) -> bytes:
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    canvas.tight_layout()
    stream = io.BytesIO()
    FigureCanvasAgg(canvas)
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
