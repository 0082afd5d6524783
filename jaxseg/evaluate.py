"""Predictions against truths, case by case: `cases.csv` and `summary.json`. `jaxseg evaluate` and the main job call it.

Written rule for empty masks (per case and label): both empty is Dice 1, and distances are left out and counted; one empty is Dice 0, and
distances are the diagonal of the image.
"""

import csv
import functools
import io
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import __version__
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.contoured import DRAWN, draw_contours
from jaxseg.data.io import find_scans, load_label
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.recipe import Recipe
from jaxseg.data.staging import without_paths
from jaxseg.data.volume import MIN_COMMON_VIEW, Volume, common_view, to_grid
from jaxseg.errors import ConfigError, GeometryError, InputError
from jaxseg.files import write_json, write_text
from jaxseg.metrics import bootstrap_interval, confusion, dice, iou, surface_distances, volumetric_similarity
from jaxseg.pairing import label_files, listed, pair_folders

Pairs = Mapping[str, tuple[Path | None, Path]]
"""case id → (prediction or None where there is none, truth)"""
Structures = Mapping[str, Sequence[int]]
"""name of a label or region → the values that belong to it"""

METRICS = ("dice", "iou", "hausdorff_mm", "hd95_mm", "assd_mm", "surface_dice", "volumetric_similarity")


@dataclass(frozen=True)
class Row:
    """One label or region of one case. Distances are NaN where both masks are empty."""

    case: str
    label: str
    dice: float
    iou: float
    hausdorff_mm: float
    hd95_mm: float
    assd_mm: float
    surface_dice: float
    volumetric_similarity: float
    volume_pred_ml: float
    volume_truth_ml: float
    empty_pred: bool
    empty_truth: bool
    missing: bool = False


def evaluate_folders(
    pred: str | Path,
    truth: str | Path,
    out: str | Path,
    *,
    labels: Mapping[str, int] | Sequence[int] | None = None,
    regions: Structures | None = None,
    ignore: Sequence[int] = (),
    tolerance_mm: float = 2.0,
    resample: bool = False,
    allow_missing: bool = False,
    label_name: str | None = None,
    rules: Rules = PLAIN,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare the label files of two folders, paired by case id, and write `out/cases.csv` and `out/summary.json`.

    Args:
        pred: folder with one label file a case, named by the case.
        truth: folder of label files (`ID.nii.gz`, `ID_seg.nii.gz`, `labelsTr/ID.nii.gz`, `ID/seg.nii.gz`), images beside them or not; or of DICOM
            series with contours as SEG or RTSTRUCT, which are drawn into `out/drawn`, and need `labels` or `regions` (those of one value), or
            `label_name`, to say which structure has which value.
        labels, regions, ignore, resample: see `evaluate_cases`.
        allow_missing: a truth without a prediction counts as Dice 0 in every label and is listed, instead of being an error. Predictions
            without a truth are listed either way.
        label_name: which file of a case is its truth, where several might be; of DICOM contours the structures that are the label,
            of value 1, see `draw_contours`.
        rules: what holds for label files that state no orientation, or two.

    Returns what `summary.json` holds; `left_out` lists the cases of which a file is broken, or whose two files lie on different grids.
    Raises InputError for folders without a pair, missing predictions, and where no case can be scored; ConfigError for DICOM contours whose values
    nothing tells.
    """
    truths, lost = _truths(Path(truth), Path(out) / DRAWN, _values_of(labels, regions), label_name)
    pairing = pair_folders(Path(pred), Path(truth), truths)
    missing = [case for case, (prediction, _) in pairing.pairs.items() if prediction is None]
    if missing and not allow_missing:
        raise InputError(
            f"{pred}: no prediction for {len(missing)} of the {len(pairing.pairs)} truths in {truth}: {listed(missing)}; "
            "segment them too, or pass --allow-missing, which counts them as Dice 0"
        )
    return evaluate_cases(
        pairing.pairs,
        out,
        labels=labels,
        regions=regions,
        ignore=ignore,
        tolerance_mm=tolerance_mm,
        resample=resample,
        without_truth=pairing.extra,
        lost_truths=lost,
        rules=rules,
        seed=seed,
        progress=progress,
    )


def evaluate_cases(
    pairs: Pairs,
    out: str | Path,
    *,
    labels: Mapping[str, int] | Sequence[int] | None = None,
    regions: Structures | None = None,
    ignore: Sequence[int] = (),
    tolerance_mm: float = 2.0,
    resample: bool = False,
    without_truth: Sequence[str] = (),
    lost_truths: Mapping[str, str] = types.MappingProxyType({}),
    rules: Rules = PLAIN,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """`evaluate_folders` for files that are paired already; a prediction that is None counts as Dice 0 in every label.

    Args:
        labels: label values, or {name: value}; None scores every value that any truth holds, but 0.
        regions: {name: values}: unions of labels, scored instead of labels.
        ignore: values in the truths of voxels that nobody contoured: what is predicted there counts neither way.
        tolerance_mm: of the surface Dice.
        resample: bring a prediction on another grid onto the truth's by world coordinates, instead of leaving the case out. A scan is segmented on its
            first channel's grid, and the truth may have been drawn on another channel's.
        without_truth: case ids to list in the summary as predictions without a truth.
        lost_truths: what else to list in `left_out`, with its reason: truths that could not be made.
        rules: by which predictions and truths are read.
        seed: of the bootstrap over cases.
        progress: called with (cases done, cases in all).

    One unusable case never stops the others: it is in no score, and stands in `left_out` of the summary with its reason.
    """
    if not pairs:
        raise InputError("there is no case to evaluate: no truth was found")
    structures = _structures(pairs, labels, regions, rules, ignore)
    rows: list[Row] = []
    unusable: dict[str, InputError] = {}
    for done, (case, (prediction, truth)) in enumerate(pairs.items(), 1):
        try:
            rows += score_case(case, *_read_pair(case, prediction, truth, resample, rules), structures, tolerance_mm, ignore)
        except InputError as error:
            unusable[case] = error
        if progress is not None:
            progress(done, len(pairs))
    _refuse_all(unusable, pairs)
    summary = summarise(rows, tolerance_mm=tolerance_mm, seed=seed) | {
        "left_out": [
            *({"case": case, "reason": _without_paths(error, case, *pairs[case])} for case, error in unusable.items()),
            *({"case": case, "reason": reason} for case, reason in lost_truths.items()),
        ],
        "without_truth": sorted(without_truth),
        "version": __version__,
    }
    write_text(Path(out) / "cases.csv", as_csv(rows))
    write_json(Path(out) / "summary.json", summary)
    return summary


def _truths(
    folder: Path, drawn: Path, values: Mapping[str, int | list[int]] | None, label_name: str | None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Case id → truth, and those that could not be drawn of DICOM contours, with the reason."""
    scans = functools.cache(lambda root: tuple(find_scans(root)))
    try:
        return label_files(folder, label_name), {}
    except InputError as no_files:
        try:
            cases = find_cases(folder, scans=scans)
        except InputError:
            raise no_files from None
        if cases.kind != "DICOM":
            raise
    if not values and label_name is None:
        raise ConfigError(
            f"{folder}: its truths are DICOM contours, which have names and no values: say with --like MODEL, --labels NAME=VALUE,… or --label-name "
            "which structure is which label of the predictions"
        )
    contoured = draw_contours(cases, [folder], drawn, label=label_name, labels=values, scans=scans)
    truths = {case.id: case.label for case in contoured.cases if case.label is not None}
    if not truths:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*contoured.left_out.items()][:2])
        raise InputError(f"{folder}: none of its {len(cases)} cases has contours that can be scored. {reasons}")
    return truths, contoured.left_out


def _values_of(labels: Mapping[str, int] | Sequence[int] | None, regions: Structures | None) -> dict[str, int | list[int]] | None:
    if regions is not None:
        return {name: int(values[0]) for name, values in regions.items() if len(values) == 1}
    return dict(labels) if isinstance(labels, Mapping) else None


def score_case(
    case: str, prediction: Volume | None, truth: Volume, structures: Structures, tolerance_mm: float, ignore: Sequence[int] = ()
) -> list[Row]:
    """One row a structure, for two label maps on one grid; without a prediction all scores are 0 and distances the image's diagonal.

    Where the truth is one of `ignore` both maps count as background.
    """
    reference = truth.array[..., 0]
    guess = np.zeros_like(reference) if prediction is None else prediction.array[..., 0]
    if ignore:
        known = ~np.isin(reference, list(ignore))
        guess, reference = guess * known, reference * known
    return [
        _row(case, name, np.isin(guess, list(values)), np.isin(reference, list(values)), truth, tolerance_mm, prediction is None)
        for name, values in structures.items()
    ]


def summarise(rows: Sequence[Row], *, tolerance_mm: float, seed: int = 0) -> dict[str, Any]:
    """Scores over cases: pure, from rows to what `summary.json` holds.

    `dice` is the mean over cases of the mean over labels, `low` and `high` its 95 % bootstrap interval over cases; `per_label` holds the
    mean of each metric over cases (None where every distance was left out) and how many masks were empty.
    """
    per_case: dict[str, list[float]] = {}
    per_label: dict[str, list[Row]] = {}
    for row in rows:
        per_case.setdefault(row.case, []).append(row.dice)
        per_label.setdefault(row.label, []).append(row)
    means = {case: float(np.mean(values)) for case, values in per_case.items()}
    interval = bootstrap_interval(list(means.values()), seed=seed)
    return {
        "dice": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": len(means),
        "per_case": means,
        "per_label": {label: _label_summary(of_label) for label, of_label in per_label.items()},
        "distances_left_out": sum(math.isnan(row.hd95_mm) for row in rows),
        "without_prediction": sorted({row.case for row in rows if row.missing}),
        "tolerance_mm": tolerance_mm,
    }


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV text with a header; distances that were left out are empty fields, flags 0 or 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows([_field(value) for value in asdict(row).values()] for row in rows)
    return text.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _label_summary(rows: Sequence[Row]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for metric in METRICS:
        kept = [value for row in rows if not math.isnan(value := getattr(row, metric))]
        summary[metric] = float(np.mean(kept)) if kept else None
    both = sum(row.empty_pred and row.empty_truth for row in rows)
    return summary | {
        "n": len(rows),
        "empty_truth": sum(row.empty_truth for row in rows),
        "empty_pred": sum(row.empty_pred for row in rows),
        "both_empty": both,
        "distances_left_out": sum(math.isnan(row.hd95_mm) for row in rows),
    }


def _row(case: str, name: str, guess: np.ndarray, reference: np.ndarray, truth: Volume, tolerance_mm: float, missing: bool) -> Row:
    counts = confusion(guess, reference)
    surfaces = surface_distances(guess, reference, truth.spacing)
    lost = missing and surfaces.both_empty  # an absent file is a miss even where there was nothing to find
    return Row(
        case=case,
        label=name,
        dice=0.0 if lost else dice(guess, reference),
        iou=0.0 if lost else iou(guess, reference),
        hausdorff_mm=surfaces.diagonal if lost else surfaces.hausdorff(),
        hd95_mm=surfaces.diagonal if lost else surfaces.hausdorff(95.0),
        assd_mm=surfaces.diagonal if lost else surfaces.assd(),
        surface_dice=0.0 if lost else surfaces.surface_dice(tolerance_mm),
        volumetric_similarity=0.0 if lost else volumetric_similarity(guess, reference),
        volume_pred_ml=(counts.tp + counts.fp) * truth.grid.voxel_volume_ml,
        volume_truth_ml=(counts.tp + counts.fn) * truth.grid.voxel_volume_ml,
        empty_pred=counts.tp + counts.fp == 0,
        empty_truth=counts.tp + counts.fn == 0,
        missing=missing,
    )


def _read_pair(case: str, prediction: Path | None, truth: Path, resample: bool, rules: Rules) -> tuple[Volume | None, Volume]:
    reference = load_label(truth, rules=rules)
    if prediction is None:
        return None, reference
    guess = load_label(prediction, rules=rules)
    if not guess.grid.same_as(reference.grid):
        if resample and common_view(reference.grid, guess.grid) >= MIN_COMMON_VIEW:
            return to_grid(guess, reference.grid, labels=True), reference
        raise GeometryError(
            f"case {case}: the prediction {prediction} has {guess.grid.describe()}, the truth {truth} has {reference.grid.describe()}; "
            "metrics need one grid: segment the scan that the truth was drawn on, or resample one of them (--resample, where they lie at one place)"
        )
    return guess, reference


def _refuse_all(unusable: Mapping[str, InputError], pairs: Pairs) -> None:
    """An error where no case is left."""
    if len(unusable) == len(pairs):
        case, error = next(iter(unusable.items()))
        raise type(error)(f"none of the {len(pairs)} cases can be scored; {case}: {error}")


def _without_paths(error: InputError, case: str, prediction: Path | None, truth: Path) -> str:
    """A reason that calls the files what they are: case ids may stand for names that paths still hold."""
    return without_paths(str(error), Case(case, {"truth": truth} | ({"prediction": prediction} if prediction else {})))


def structures_of(recipe: Recipe) -> dict[str, Any]:
    """What `evaluate_cases` is to score for a recipe, as its keyword arguments: the labels, or the regions, by the values in the label files."""
    named = {name: value for name, value in recipe.labels.items() if name != "ignore"}
    if not named:
        raise ConfigError(
            "this recipe names no labels, so it does not say what to score; take that of a model for segmentation, or name the labels"
        )
    ignored = recipe.labels.get("ignore", [])
    left_out = {"ignore": [ignored] if isinstance(ignored, int) else ignored} if ignored else {}
    if recipe.regions:
        return {"regions": {name: [value] if isinstance(value, int) else value for name, value in named.items()}, **left_out}
    return {"labels": named, **left_out}


def _structures(
    pairs: Pairs, labels: Mapping[str, int] | Sequence[int] | None, regions: Structures | None, rules: Rules, ignore: Sequence[int]
) -> Structures:
    if regions is not None:
        return regions
    if labels is None:
        found: set[int] = set()
        unusable: dict[str, InputError] = {}
        for case, (_, truth) in pairs.items():
            try:
                found |= set(np.unique(load_label(truth, rules=rules).array).tolist())
            except InputError as error:
                unusable[case] = error
        _refuse_all(unusable, pairs)
        labels = sorted(found - {0, *ignore})
        if not labels:
            raise InputError(f"none of the {len(pairs)} truths holds a label other than 0; name the labels to score (--labels, --like)")
    named = labels.items() if isinstance(labels, Mapping) else [(str(value), value) for value in labels]
    return {name: (int(value),) for name, value in named}
