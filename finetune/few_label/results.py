"""`results.json` of a few-label study: learning curves, comparisons and label equivalence, out of the cells measured so far. Called by `study`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from finetune.few_label.arms import INITIALISED, Arm, describe, pairs_of
from finetune.few_label.cells import DONE, FAILED
from finetune.few_label.config import FewLabelConfig, Labels
from finetune.few_label.equal_time import logged_seconds, stated_seconds
from jaxseg import __version__
from jaxseg.audit import card_of
from jaxseg.config import as_json
from jaxseg.files import sha256_of
from jaxseg.metrics import wilcoxon
from jaxseg.metrics.label_efficiency import hierarchical_interval, holm, label_equivalence

VERSION = 1  # of results.json
BASELINE, LONGER = "scratch", "scratch_x4"
Runs = Mapping[tuple[int, int], Float[np.ndarray, "cases"]]
"""(draw, seed) → Dice of every test case"""


@dataclass(frozen=True)
class Plan:
    """What is the same in all cells: the settings, the arms, the split file, what the leakage audit counted, the position-only floors, the digest
    of the test cases, and why some cells are not possible."""

    config: FewLabelConfig
    arms: tuple[Arm, ...]
    split: str
    audits: dict[str, Any]
    floors: list[dict[str, Any]]
    tested: str
    impossible: Mapping[str, str]


def summarise(plan: Plan, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `results.json` holds.

    `cells`: each with arm, labels, draw, seed, status and, if done, its scores and budget. `curves`: arm → a point for each N with a cell
    that is done: mean over cases, then draws, and its 95 % interval over (draw, case). `comparisons`: arm minus another (`arms.pairs_of`) at each
    N, over the (draw, seed) that both have: mean and interval, p of Wilcoxon's test over cases (of their means over draws), `p_holm` over all
    comparisons with scratch, and over all others.
    `equivalence`: labels that scratch would need for the arm's Dice; for arms that start from a pretraining also those that scratch with four
    times the steps would need, which tells fewer labels from faster training. `failures`: cells that failed. `floors`: Dice without looking at the image.
    """
    runs: dict[tuple[str, Labels], Runs] = {
        (arm.name, count): _runs(cells, arm.name, count) for arm in plan.arms for count in plan.config.labels
    }
    counts: dict[Labels, int | None] = {count: _number(count, cells) for count in plan.config.labels}
    curves = {
        arm.name: [
            _point(runs[arm.name, count], count, counts[count]) | {"subsets": _subsets(cells, arm.name, count)}
            for count in plan.config.labels
            if runs[arm.name, count]
        ]
        for arm in plan.arms
    }
    comparisons = [
        _comparison(name, against, count, runs[name, count], runs[against, count])
        for name, against in pairs_of(plan.arms)
        for count in plan.config.labels
        if _common(runs, name, against, count)
    ]
    for family in (True, False):
        rows = [comparison for comparison in comparisons if (comparison["against"] == BASELINE) == family]
        for comparison, adjusted in zip(rows, holm([comparison["p"] for comparison in rows])):
            comparison["p_holm"] = adjusted
    asked: list[tuple[str, str, Labels]] = [
        (arm.name, against, count)
        for against in (BASELINE, LONGER)
        for arm in plan.arms
        for count in plan.config.labels
        if (arm.name != BASELINE if against == BASELINE else arm.kind in INITIALISED)
    ]
    return {
        "version": VERSION,
        "jaxseg": __version__,
        "config": as_json(plan.config),
        "split": {"file": plan.split, "sha256": sha256_of(plan.split)},
        "audit": {"allow_overlap": plan.config.allow_overlap, **plan.audits},
        "arms": [
            {
                "name": arm.name,
                "kind": arm.kind,
                "about": describe(arm, plan.config),
                "pretraining_seconds": _pretraining(arm, plan.config),
                "pretraining_flops": _operations(arm),
            }
            for arm in plan.arms
        ],
        "curves": curves,
        "comparisons": comparisons,
        "equivalence": [found for row in asked if (found := _equivalence(runs, counts, *row))],
        "floors": plan.floors,
        "failures": [cell for cell in map(_brief, cells) if cell["status"] == FAILED],
        "cells": [_brief(cell) for cell in cells],
    }


def _runs(cells: Sequence[dict[str, Any]], arm: str, count: Labels) -> Runs:
    done = [cell for cell in cells if cell["status"] == DONE and (cell["arm"], cell["labels"]) == (arm, count)]
    return {(cell["draw"], cell["seed"]): np.array([cell["per_case"][case] for case in sorted(cell["per_case"])]) for cell in done}


def _subsets(cells: Sequence[dict[str, Any]], arm: str, count: Labels) -> int:
    """How many different lists of labelled cases these cells had: draws are independent, so that two may begin with the same case."""
    place = (arm, count)
    return len({cell["settings"]["cases"] for cell in cells if cell["status"] == DONE and (cell["arm"], cell["labels"]) == place})


def _rows(runs: Runs, keys: Sequence[tuple[int, int]]) -> Float[np.ndarray, "draws cases"]:
    """Scores of these runs, a row a draw: the mean over its seeds."""
    draws = sorted({draw for draw, _ in keys})
    return np.stack([np.mean([runs[key] for key in keys if key[0] == draw], axis=0) for draw in draws])


def _number(count: Labels, cells: Sequence[dict[str, Any]]) -> int | None:
    """How many labels that is; for "all" it is known once a cell is done."""
    if count != "all":
        return count
    return next((cell["labelled"] for cell in cells if cell["labels"] == "all" and cell["status"] == DONE), None)


def _point(runs: Runs, count: Labels, number: int | None) -> dict[str, Any]:
    rows = _rows(runs, sorted(runs))
    interval = hierarchical_interval(rows)
    return {"labels": count, "number": number, **interval._asdict(), "draws": len(rows), "runs": len(runs), "cases": rows.shape[1]}


def _common(runs: Mapping[tuple[str, Labels], Runs], name: str, against: str, count: Labels) -> list[tuple[int, int]]:
    return sorted(set(runs[name, count]) & set(runs.get((against, count), {})))


def _comparison(name: str, against: str, count: Labels, ours: Runs, theirs: Runs) -> dict[str, Any]:
    keys = sorted(set(ours) & set(theirs))
    first, second = _rows(ours, keys), _rows(theirs, keys)
    interval = hierarchical_interval(first - second)
    place = {"arm": name, "against": against, "labels": count}
    return {**place, **interval._asdict(), "p": wilcoxon(first.mean(0), second.mean(0)), "draws": len(first), "runs": len(keys)}


def _pretraining(arm: Arm, config: FewLabelConfig) -> float | None:
    """Wall time of the pretraining that an arm starts from; None for the others, and where nothing says it."""
    return stated_seconds(config).get(arm.init, logged_seconds(arm.init)) if arm.init else None


def _operations(arm: Arm) -> int | None:
    """Floating-point operations of the pretraining that an arm starts from, as its card says; None for the others, and where it says nothing."""
    return (card_of(arm.init).get("training") or {}).get("flops") if arm.init else None


def _equivalence(
    runs: Mapping[tuple[str, Labels], Runs], counts: Mapping[Labels, int | None], name: str, against: str, count: Labels
) -> dict[str, Any] | None:
    """The label-equivalence factor of an arm at N against scratch (`against`); None where it, or all of scratch, is not measured.

    One draw is never compared with another: what counts are as many of the arm's runs as a point of scratch has, and of scratch's points those that
    have all of these (`runs` of `runs_of_arm`, and `points`, the labels of scratch's). All labels are those of every draw.
    """
    runs_of_arm = runs[name, count]
    if count == "all":
        measured = {key for other in counts if other != "all" for key in runs.get((against, other), {})}
        runs_of_arm = _in_every_draw(runs_of_arm, sorted(measured | set(runs_of_arm)))
    ours, at = set(runs_of_arm), counts[count]
    theirs: dict[Labels, Runs] = {}
    for other in counts:
        found = runs.get((against, other), {})
        theirs[other] = _in_every_draw(found, sorted(ours)) if other == "all" else found
    shared = {other: ours & set(found) for other, found in theirs.items() if counts[other] is not None}
    keys = sorted(max(shared.values(), key=lambda some: (len(some), sum(some <= each for each in shared.values())), default=set()))
    points: list[tuple[int, Labels]] = []
    for other, number in counts.items():
        if number is not None and set(keys) <= set(theirs[other]) and number not in dict(points):
            points.append((number, other))
    points.sort(key=lambda point: point[0])
    if not keys or at is None:
        return None
    found = label_equivalence([number for number, _ in points], [_rows(theirs[c], keys) for _, c in points], _rows(runs_of_arm, keys), at)
    high = None if np.isinf(found.high) else found.high
    low = None if np.isinf(found.low) else found.low
    limits = {"fewest": points[0][0], "most": points[-1][0], "points": [number for number, _ in points]}
    return {
        "arm": name,
        "against": against,
        "labels": count,
        "scratch_labels": found.labels,
        "factor": found.factor,
        "bound": found.bound,
        "low": low,
        "high": high,
        "runs": len(keys),
        "runs_of_arm": len(ours),
    } | limits


def _in_every_draw(runs: Runs, keys: Sequence[tuple[int, int]]) -> Runs:
    """The runs on all labels, which are measured in one draw, as those of each draw that is asked for."""
    of_seed = {seed: scores for (_, seed), scores in runs.items()}
    return {(draw, seed): of_seed[seed] for draw, seed in keys if seed in of_seed}


def _brief(cell: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cell.items() if key not in ("settings", "curve", "monitored")}
