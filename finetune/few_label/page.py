"""The report of a few-label study: a learning-curve figure, a table in Markdown, and one page that holds all. Called by `study`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.few_label.cells import DONE, FAILED, NOT_MEASURED, NOT_POSSIBLE
from finetune.few_label.results import BASELINE, LONGER
from jaxseg.files import write_bytes, write_text
from jaxseg.report.figures import learning_curve_figure
from jaxseg.report.page import Figure, Section, Table, Text, write_page

LEAD = (
    "Mean Dice over the test cases, then over draws of labelled cases, with the 95 % bootstrap interval over both. All arms share the test cases, "
    "the subsets, the crops a step and the augmentation; where steps, parameters or compute differ, the budget table says so. An interval over "
    "one draw says nothing of other draws, and one over fewer than five is too narrow: a bootstrap sees only (D - 1) / D of the variance between D draws."
)

BUDGETS = (
    "Budgets are not equal, and nothing here is corrected for that. Seconds are the mean over cells of training on the machines that ran them; the "
    "pretraining is done once and comes on top of each arm that starts from it (its compute is not counted here). Of semi-supervised arms the "
    "teacher's training and passes count. Of cells trained side by side (`side_by_side` in cell.json) the seconds are one cell's share. Arms of equal "
    "time: the steps follow from seconds measured in this study, and cell.json says how."
)

GROUPS = {
    "Pretraining": ("untrained", "frozen", "equal_time"),
    "Networks": ("no_transformer", "resenc", "resenc_time", "anchor"),
    "Fewer contours": ("partial", "partial_scratch", "regions", "regions_scratch"),
    "Unlabelled scans": ("mean_teacher", "pseudo_labels"),
}
"""Arms (kinds) whose curves are drawn together, each time beside scratch, scratch with four times the steps and the pretrained ones"""
MANY = 6  # lines that one figure holds


def write_report(out: Path, results: dict[str, Any], pictures: Section | None = None) -> None:
    """Write `learning_curve.png`, `table.md` and `index.html` from what `results.json` holds; `pictures` are of test cases."""
    write_bytes(out / "learning_curve.png", learning_curve_figure(_lines(results), floor=_floor_line(results)))
    scratch, others = _comparisons(results)
    scores, labels, equivalence, budgets = _scores(results), _per_label(results), _equivalence(results), _budgets(results)
    left_out = _left_out(results)
    tables = [scores, labels, scratch, equivalence, others, budgets, left_out]
    write_text(out / "table.md", "\n".join(_markdown(table) for table in tables if table.rows))
    sections = [
        Section("Learning curves", [*_figures(results), scores]),
        *([Section("Each label", [labels])] if labels.rows else []),
        Section("Against scratch", [scratch, equivalence] if scratch.rows else [Text("No arm has been measured beside scratch yet.")]),
        Section("Against each other", [others] if others.rows else [Text("No such pair of arms has been measured yet.")]),
        *([pictures] if pictures else []),
        Section("Budgets", [budgets, Text(BUDGETS)]),
        Section("Failures", [_failures(results)] if results["failures"] else [Text("No cell failed.")]),
        *([Section("Test cases left out", [left_out])] if left_out.rows else []),
        Section("Test set", [Text(_audit(results))]),
    ]
    done, cells = sum(cell["status"] == DONE for cell in results["cells"]), len(results["cells"])
    write_page(
        out / "index.html",
        f"Few labels: {Path(results['config']['scans']).name}",
        f"{LEAD} {_few_tests(results)}{done} of {cells} cells are measured.",
        sections,
    )


def _few_tests(results: dict[str, Any]) -> str:
    """What too few test cases mean, in words; nothing where there are enough or no cell is done."""
    count = max((len(cell["per_case"]) for cell in results["cells"] if cell["status"] == DONE), default=0)
    if count == 1:
        return "There is one test case: intervals say nothing of other cases. "
    if 0 < count < 6:
        return f"There are {count} test cases: no p of theirs can be below 0.05, and intervals over so few are too narrow. "
    return ""


def _lines(results: dict[str, Any]) -> dict[str, list[tuple[float, float, float, float]]]:
    return {
        arm: [(point["number"], point["mean"], point["low"], point["high"]) for point in sorted(points, key=lambda point: point["number"])]
        for arm, points in results["curves"].items()
    }


def _figures(results: dict[str, Any]) -> list[Figure]:
    """The learning curves, in groups where there are too many for one figure."""
    lines = {arm: points for arm, points in _lines(results).items() if points}
    kinds = {arm["name"]: arm["kind"] for arm in results["arms"]}
    groups = {
        f"{title}. ": {arm: points for arm, points in lines.items() if kinds[arm] in (*group, BASELINE, LONGER, "pretrained")}
        for title, group in GROUPS.items()
        if len(lines) > MANY and any(kinds[arm] in group for arm in lines)
    }
    said = "Bars: 95 % intervals. Dashed: a predictor that never looks at the image."
    return [
        Figure(
            learning_curve_figure(shown, floor=_floor_line(results)),
            f"Dice against the number of labelled cases, one line an arm: {', '.join(shown)}",
            title + said,
        )
        for title, shown in (groups or {"": lines}).items()
    ]


def _floor_line(results: dict[str, Any]) -> list[tuple[float, float]]:
    numbers = {point["labels"]: point["number"] for points in results["curves"].values() for point in points}
    return sorted((number, dice) for count, number in numbers.items() if (dice := _floor(results, count)) is not None)


def _floor(results: dict[str, Any], count: Any) -> float | None:
    found = [floor["dice"] for floor in results["floors"] if floor["labels"] == count]
    return statistics.mean(found) if found else None


def _scores(results: dict[str, Any]) -> Table:
    counts = results["config"]["labels"]
    rows = [[f"{arm['name']}: {arm['about']}", *[_score(results, arm["name"], count) for count in counts]] for arm in results["arms"]]
    floors = [_floor(results, count) for count in counts]
    rows.append(["position-only floor", *["" if floor is None else f"{floor:.3f}" for floor in floors]])
    return Table(["arm", *[f"N = {count}" for count in counts]], rows, "Dice [95 % interval], number of draws × seeds")


def _per_label(results: dict[str, Any]) -> Table:
    """Dice, distance and surface Dice of every label: a mean Dice hides the label that is missed. Cells from before these were kept have none."""
    counts = results["config"]["labels"]
    found: dict[tuple[str, str], dict[Any, list[dict[str, Any]]]] = {}
    for cell in results["cells"]:
        for label, values in cell.get("per_label", {}).items():
            found.setdefault((label, cell["arm"]), {}).setdefault(cell["labels"], []).append(values)
    labels, arms = dict.fromkeys(label for label, _ in found), [arm["name"] for arm in results["arms"]]
    rows = [
        [label, arm, *[_of_label(found[label, arm].get(count, [])) for count in counts]]
        for label in labels
        for arm in arms
        if (label, arm) in found
    ]
    caption = (
        "Dice, 95th percentile of the surface distance (HD95) and surface Dice at 2 mm of each label: means over test cases, then cells. A missed lesion "
        "counts with the image's diagonal as its distance."
    )
    return Table(["label", "arm", *[f"N = {count}" for count in counts]], rows, caption)


def _of_label(cells: Sequence[dict[str, Any]]) -> str:
    def mean(key: str, form: str) -> str:
        values = [cell[key] for cell in cells if cell[key] is not None]
        return form.format(statistics.mean(values)) if values else "–"

    return f"{mean('dice', '{:.3f}')}, {mean('hd95_mm', '{:.1f} mm')}, {mean('surface_dice', '{:.3f}')}" if cells else ""


def _score(results: dict[str, Any], arm: str, count: Any) -> str:
    cells = [cell for cell in results["cells"] if (cell["arm"], cell["labels"]) == (arm, count)]
    failed = sum(cell["status"] == FAILED for cell in cells)
    said = f"; {failed} failed" if failed else ""
    if all(cell["status"] == NOT_POSSIBLE for cell in cells):
        return f"{NOT_POSSIBLE}: too few labelled cases or draws"
    point = next((point for point in results["curves"][arm] if point["labels"] == count), None)
    if point is None:
        return f"all {failed} failed" if failed == len(cells) else f"{NOT_MEASURED}{said}"
    missing = sum(cell["status"] == NOT_MEASURED for cell in cells)
    said += f"; {missing} {NOT_MEASURED}" if missing else ""
    # Two draws may label the same cases: the same run, if the seed is the same.
    said += (
        f" (only {point['subsets']} different subsets in {point['draws']} draws)"
        if point["subsets"] < point["draws"] and count != "all"
        else ""
    )
    return f"{_interval(point)}, {point['runs']}{said}"


def _interval(values: dict[str, Any], sign: str = "") -> str:
    return f"{values['mean']:{sign}.3f} [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"


def _comparisons(results: dict[str, Any]) -> tuple[Table, Table]:
    """Against scratch, and the other pairs of arms."""
    head = ["arm", "against", "N", "difference [95 % interval]", "p", "p (Holm)", "pairs of runs"]
    said = "on the same cases, draws and seeds. p: Wilcoxon's signed-rank test over cases; Holm's correction over this table."
    rows = {True: [], False: []}
    for row in results["comparisons"]:
        cells = [
            row["arm"],
            row["against"],
            str(row["labels"]),
            _interval(row, "+"),
            f"{row['p']:.2g}",
            f"{row['p_holm']:.2g}",
            str(row["runs"]),
        ]
        rows[row["against"] == BASELINE].append(cells)
    return Table(head, rows[True], f"Arm minus scratch {said}"), Table(head, rows[False], f"Arm minus the one it is set against {said}")


def _equivalence(results: dict[str, Any]) -> Table:
    rows = [
        [
            row["arm"],
            row["against"],
            str(row["labels"]),
            f"{row['bound']} {row['scratch_labels']:.3g}".strip(),
            _factor(row),
            _ends(row),
            f"{row['runs']} of {row['runs_of_arm']}",
            ", ".join(map(str, row["points"])),
        ]
        for row in results["equivalence"]
    ]
    caption = (
        'Label equivalence: how many labels scratch needs for the same Dice. ">" is beyond the most that scratch was given, "<" below the fewest; an end of an '
        'interval marked "≤" is at the fewest or below. A factor against scratch that is gone against scratch_x4 is faster training, not fewer labels. Runs '
        "are those of the arm's that scratch was measured with as well, at the N of the last column."
    )
    return Table(["arm", "against", "N", "scratch needs", "factor", "95 % interval", "runs", "scratch at N"], rows, caption)


def _factor(row: dict[str, Any]) -> str:
    return f"{row['bound']} {row['factor']:.2f}".strip()


def _ends(row: dict[str, Any]) -> str:
    at = row["scratch_labels"] / row["factor"]

    def said(end: float | None) -> str:
        if end is None:
            return f"> {row['most'] / at:.2f}"
        return f"≤ {end:.2f}" if end <= row["fewest"] / at * (1 + 1e-9) else f"{end:.2f}"

    return f"{said(row['low'])} to {said(row['high'])}"


def _budgets(results: dict[str, Any]) -> Table:
    rows = []
    for arm in results["arms"]:
        budgets = [cell["budget"] for cell in results["cells"] if cell["arm"] == arm["name"] and cell["status"] == DONE]
        if budgets:
            before, operations = arm["pretraining_seconds"], arm["pretraining_flops"]
            rows.append(
                [
                    arm["name"],
                    *[_span(budgets, name) for name in ("steps", "crops", "unlabelled_crops")],
                    _span(budgets, "seconds", mean=True),
                    "" if before is None else f"{before:.0f}",
                    f"{budgets[0]['parameters'] / 1e6:.3g} ({budgets[0]['trained_parameters'] / 1e6:.3g})",
                    _span(budgets, "flops", scale=1e-12),
                    "" if operations is None else f"{1e-12 * operations:.3g}",
                ]
            )
    head = [
        "arm",
        "steps",
        "labelled crops",
        "unlabelled crops",
        "seconds",
        "pretraining, seconds",
        "million parameters (trained)",
        "TFLOP",
        "pretraining, TFLOP",
    ]
    return Table(head, rows, "Fine-tuning of one cell; from least to most where cells differ.")


def _span(budgets: Sequence[dict[str, Any]], name: str, *, scale: float = 1.0, mean: bool = False) -> str:
    """One number for all cells where they agree (or of their mean), and the least and the most where they do not."""
    values = [scale * budget.get(name, 0) for budget in budgets]
    values = [statistics.mean(values)] if mean else sorted(values)
    low, high = (f"{value:.0f}" if value >= 1000 or value == round(value) else f"{value:.3g}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _failures(results: dict[str, Any]) -> Table:
    rows = [[cell["arm"], str(cell["labels"]), str(cell["draw"]), str(cell["seed"]), cell["reason"]] for cell in results["failures"]]
    return Table(["arm", "N", "draw", "seed", "reason"], rows)


def _left_out(results: dict[str, Any]) -> Table:
    """The test cases that could not be segmented, with how many cells that lowers."""
    found: dict[tuple[str, str], int] = {}
    for cell in results["cells"]:
        for item in cell.get("left_out", ()):
            found[item["case"], item["reason"]] = found.get((item["case"], item["reason"]), 0) + 1
    rows = [[case, reason, str(count)] for (case, reason), count in found.items()]
    return Table(["case", "reason", "cells"], rows, "Test cases that could not be segmented: each counts with a Dice of 0 in these cells.")


def _audit(results: dict[str, Any]) -> str:
    parts = [
        f"{name}: {counts['pretrain']} cases against {counts['test']} test cases, of which {counts['same content']} are of equal content, "
        f"{counts['near copy']} near copies, {_patients(counts)}."
        for name, counts in results["audit"].items()
        if isinstance(counts, dict)
    ]
    parts += [
        f"{name}: its card does not say what it was trained on: unknown." for name, counts in results["audit"].items() if counts is None
    ]
    allowed = " Overlap was allowed." if results["audit"]["allow_overlap"] else ""
    return " ".join(["Leakage audit.", *parts]) + allowed + f" Split: SHA-256 {results['split']['sha256'][:16]}."


def _patients(counts: dict[str, int]) -> str:
    unknown = counts.get("patients unknown", 0)
    if unknown and unknown == counts["pretrain"]:
        return "patients unknown"
    return f"{counts['same patient']} of the same patient" + (f" (of {unknown} cases the patient is unknown)" if unknown else "")


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    return f"{table.caption}\n\n" + line(table.head) + line(["---"] * len(table.head)) + "".join(line(row) for row in table.rows)
