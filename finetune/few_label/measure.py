"""One cell of a few-label study: train, segment the test cases, score them, and what that cost. Called by `study`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from finetune.config import FinetuneConfig
from finetune.few_label.equal_time import seconds_in, seconds_per_step
from finetune.side_by_side import SIDE_BY_SIDE
from finetune.train import TEACHER, finetune
from jaxseg.data.cases import Case
from jaxseg.data.recipe import Recipe
from jaxseg.data.staging import without_paths
from jaxseg.errors import InputError
from jaxseg.evaluate import evaluate_cases, structures_of
from jaxseg.infer.folder import segment_cases
from jaxseg.train.groups import frozen
from jaxseg.train.log import read_log
from jaxseg.train.optim import make_optimizer
from jaxseg.zoo import Model, load_model
from jaxseg.zoo.cost import PASSES, count_flops, count_params, update_flops

PER_LABEL = ("dice", "hd95_mm", "surface_dice")


def measure(settings: FinetuneConfig, names: tuple[str, ...], tests: Sequence[Case], recipe: Recipe, *, overlap: float) -> dict[str, Any]:
    """Scores of a fine-tuning on the scans' own grids, and its budget.

    Args:
        settings: the run; what is there already of it in `settings.out` is gone on with.
        names: the cases to train on.
        tests: the cases to score, each with its label.
        recipe: of the store, which says what is scored.
        overlap: of the windows.

    Returns:
        `dice` (mean over cases of the mean over labels), `low`, `high` (95 % bootstrap over cases), `per_case`; `per_label` (means over cases of `PER_LABEL`,
        None where no case has a value); `left_out` (test cases that could not
        be segmented, which count as 0, or scored, which count nowhere, with the reason); `budget`; `curve` of the loss and `monitored` Dice, as (step, value).
    """
    out = Path(settings.out)
    model = load_model(finetune(settings, names=names))
    return score(model, tests, recipe, out, overlap=overlap) | {
        "budget": budget_of(settings, model.network, model.card["crop"], out),
        "curve": [[line["step"], line["loss"]] for line in read_log(out / "log.jsonl") if "loss" in line],
        "monitored": [[line["step"], line["evaluation"]["dice"]] for line in read_log(out / "log.jsonl") if "evaluation" in line],
    }


def score(model: Model, tests: Sequence[Case], recipe: Recipe, out: Path, *, overlap: float) -> dict[str, Any]:
    """Segment the test cases into `OUT/predictions` and score them on their own grids: the part of `measure` that training has no hand in."""
    of_id = {case.id: case for case in tests}
    left_out = segment_cases(model, tests, out / "predictions", overlap=overlap, allow_missing=True)
    pairs = {case.id: (_made(out, case), case.label) for case in tests if case.label is not None}
    summary = evaluate_cases(pairs, out / "evaluation", resample=True, rules=tests[0].rules, **structures_of(recipe))
    if summary["left_out"]:
        # Every cell has scores of the same cases, or none: they are paired.
        raise InputError("; ".join(f"test case {item['case']} cannot be scored: {item['reason']}" for item in summary["left_out"]))
    return {
        **{key: summary[key] for key in ("dice", "low", "high", "per_case")},
        "per_label": {label: {key: found[key] for key in PER_LABEL} for label, found in summary["per_label"].items()},
        "left_out": [{"case": case, "reason": without_paths(reason, of_id[case])} for case, reason in left_out],
    }


def budget_of(settings: FinetuneConfig, network: nnx.Module, crop: Sequence[int], out: Path) -> dict[str, Any]:
    """What a run was given: steps, crops, seconds of training, parameters (and those that were trained), floating-point operations in all.

    Operations are those of the network's passes, and of products of matrices in the updates (Muon's; AdamW has none). A frozen encoder's
    parameters are not trained, but its backward pass is computed all the same, so its operations count. Of a semi-supervised run the teacher
    counts, too: its passes over the unlabelled crops, and its own training where that is a stage of its own (`seconds`, `crops` and `flops`
    hold both stages, `steps` the second). Of runs side by side `seconds` is the share of one, and `side_by_side` says how many they were.
    """
    params = nnx.state(network, nnx.Param)
    still = jax.tree.leaves(frozen(params, settings.optim.freeze))
    trained = sum(math.prod(leaf.shape) for leaf, stays in zip(jax.tree.leaves(params), still) if not stays)
    crops = settings.loop.steps * settings.batch
    stages = 2 if settings.semi.method == "pseudo_labels" else 1
    unlabelled = crops if settings.semi.method else 0
    x, y, z = crop
    log = read_log(out / "log.jsonl")
    return {
        "steps": settings.loop.steps,
        "crops": stages * crops,
        "unlabelled_crops": unlabelled,
        "seconds": round(seconds_in(log) + seconds_in(read_log(out / TEACHER / "log.jsonl")), 1),
        "seconds_per_step": seconds_per_step(log),
        "parameters": count_params(network),
        "trained_parameters": trained,
        **({SIDE_BY_SIDE: log[-1][SIDE_BY_SIDE]} if log and SIDE_BY_SIDE in log[-1] else {}),
        "flops": (PASSES * stages * crops + (PASSES + 1) * unlabelled) * count_flops(network, (x, y, z))
        + stages * settings.loop.steps * update_flops(make_optimizer(settings.optim, params), params),
    }


def _made(out: Path, case: Case) -> Path | None:
    path = out / "predictions" / f"{case.id}.nii.gz"
    return path if path.is_file() else None
