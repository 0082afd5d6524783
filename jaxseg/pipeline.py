"""The main job: index → prepare → pretrain → fine-tune from the pretrained encoder and from scratch → segment → evaluate → report.

Called by `jaxseg run` and `jaxseg demo`. Every stage leaves its result in the output folder and is kept when that is complete, so the same
command goes on where it was interrupted. Training itself is handed in (`Trainers`): this package knows neither `pretrain` nor `finetune`.
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxseg.audit import refuse_overlap
from jaxseg.clock import StageClock
from jaxseg.config import as_json
from jaxseg.data.cases import Case
from jaxseg.data.duplicates import scans_of_cases, scans_of_store
from jaxseg.data.preprocess import check_label, guess_recipe
from jaxseg.data.staging import without_paths
from jaxseg.data.store import Store, build_store
from jaxseg.data.untaught import untaught
from jaxseg.errors import ConfigError, InputError
from jaxseg.evaluate import evaluate_cases, structures_of
from jaxseg.files import lock_folder, read_json, write_json
from jaxseg.infer.folder import segment_cases
from jaxseg.job_floor import floor_of
from jaxseg.job_inputs import Inputs, MainJob, read_inputs
from jaxseg.job_report import draw_report
from jaxseg.plan import CROP, Plan, make_plan
from jaxseg.progress import bar
from jaxseg.train.run import has_trained
from jaxseg.zoo import load_model

ARMS = ("pretrained", "scratch")
_NOT_REMEMBERED = ("out", "allow_overlap")  # settings that change no result


@dataclass(frozen=True)
class Trainers:
    """The two training functions, handed in by the command line.

    Attributes:
        pretrain: (plan, store, out) → model folder with the encoder.
        finetune: (plan, store, names, out, init) → model folder; `init` None trains from scratch.
    """

    pretrain: Callable[[Plan, Path, Path], Path]
    finetune: Callable[[Plan, Path, tuple[str, ...], Path, Path | None], Path]


def run_main_job(job: MainJob, trainers: Trainers) -> dict[str, Any]:
    """Do the main job, or go on where it was. Returns what `OUT/summary.json` holds.

    Without `job.test` the labelled cases that were not trained on are the test cases.

    Raises:
        InputError, ConfigError, StorageError, Preempted: see `jaxseg.errors`; a ConfigError also where test scans are among those trained on.
    """
    for folder in (job.unlabelled, job.labelled, *([job.test] if job.test else [])):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
    if job.test is None and job.labels is None:
        raise ConfigError("without --test there must be labelled cases to test on: say with --labels N how many to train on")
    with lock_folder(job.out):
        _remember(job)
        clock = StageClock(job.out / "stages.json")
        with clock.stage("index"):
            inputs = read_inputs(job)
        with clock.stage("prepare"):
            plan = _plan(job, inputs)
            stores = _prepare(job.out / "store", inputs, plan)
        training = _training_names(job, stores["labelled"], inputs)
        held_out = _held_out(inputs, stores["labelled"], training)
        if not job.allow_overlap:
            _refuse_seen(stores, training, held_out)
        held_out, not_scored = _with_usable_labels(held_out, plan)
        lost_labels = untaught(stores["labelled"], training)
        models = _train(job.out, plan, trainers, training, clock)
        left_out = inputs.left_out + [
            {"path": item["name"], "reason": item["reason"]} for store in stores.values() for item in store.left_out
        ]
        scores: dict[str, Any] = {}
        for arm in ARMS:
            with clock.stage(f"segment {arm}"):
                missed = _segment(models[arm], held_out, job.out / "predictions" / arm, arm)
            with clock.stage(f"evaluate {arm}"):
                scores[arm], lost = _evaluate(job.out, arm, held_out, plan)
        learnt = [case for case in inputs.labelled.labelled if case.id in training]
        floor = floor_of(learnt, [case for case in held_out if case.id in scores["scratch"]["per_case"]], plan.recipe)
        left_out += not_scored + lost + [{"path": case, "reason": reason} for case, reason in missed]
        summary = {
            "seconds": clock.seconds,
            "peak_memory_gib": clock.record["peak_memory_gib"],
            "index": {"ok": inputs.ok, "left_out": left_out},
            "cases": {"unlabelled": len(stores["unlabelled"].names), "train": len(training), "test": len(held_out)},
            **({"untaught": list(lost_labels)} if lost_labels else {}),
            **{arm: scores[arm] for arm in ARMS},
            **({"position_only": floor} if floor else {}),
        }
        write_json(job.out / "summary.json", summary)
        report = draw_report(job.out)
        _say_farewell(job.out, report, summary)
        return summary


def _remember(job: MainJob) -> None:
    """Refuse to mix two jobs in one folder: what a stage left there would be kept although it belongs to other settings.

    Until something was trained, settings and scans may be set right: index and store know by themselves what changed, and the plan is made again.
    """
    path, wanted = (
        job.out / "job.json",
        {name: _plain(value) for name, value in dataclasses.asdict(job).items() if name not in _NOT_REMEMBERED},
    )
    if not path.is_file():
        write_json(path, wanted)
        return
    before = read_json(path)
    # A setting that did not exist when the job began meant what is now its default.
    before = {field.name: _plain(field.default) for field in dataclasses.fields(job) if field.name not in _NOT_REMEMBERED} | before
    changed = [f"{name}: {before[name]} then, {value} now" for name, value in wanted.items() if before[name] != value]
    if not _has_trained(job.out):
        (job.out / "plan.json").unlink(missing_ok=True)
        write_json(path, wanted)
    elif changed:
        raise ConfigError(
            f"{job.out}: this folder holds a job with other settings ({'; '.join(changed)}); choose another --out, or set them back"
        )


def _has_trained(out: Path) -> bool:
    runs = [out / "pretrain", *(out / "finetune" / arm for arm in ARMS)]
    return (out / "models").exists() or any(map(has_trained, runs))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _plan(job: MainJob, inputs: Inputs) -> Plan:
    path = job.out / "plan.json"
    if path.is_file():
        return Plan.from_json(read_json(path))
    learnt = inputs.labelled.labelled[: job.labels]  # what the others' labels show is not for the training to know
    recipe = guess_recipe(inputs.labelled, max_voxels=job.max_voxels, crop=None if job.spacing else CROP, outlined=learnt)
    if not recipe.labels:
        raise InputError(
            f"{job.labelled}: the labels of all {len(inputs.labelled.labelled)} labelled cases are empty (no voxel above 0): there is nothing to "
            "learn; give labels that outline something, or say which file is the label with --label-name"
        )
    if job.spacing is not None:
        recipe = dataclasses.replace(recipe, spacing=job.spacing)
    plan = make_plan(
        recipe,
        minutes=job.minutes,
        seed=job.seed,
        devices=jax.local_device_count(),
        objective=job.objective,
        signal=job.signal,
    )
    write_json(path, as_json(plan))
    return plan


def _prepare(out: Path, inputs: Inputs, plan: Plan) -> dict[str, Store]:
    # A label that lies beside an unlabelled scan is none of pretraining's business.
    bare = tuple(dataclasses.replace(case, label=None) for case in inputs.unlabelled)
    sets = {
        "unlabelled": dataclasses.replace(inputs.unlabelled, cases=bare),
        "labelled": dataclasses.replace(inputs.labelled, cases=inputs.labelled.labelled),
    }
    stores = {}
    for name, cases in sets.items():
        with bar(f"prepare {name}") as progress:
            stores[name] = build_store(cases, plan.recipe, out / name, progress=progress)
    return stores


def _training_names(job: MainJob, store: Store, inputs: Inputs) -> tuple[str, ...]:
    available = tuple(case.id for case in inputs.labelled.labelled if case.id in store.names)
    count = len(available) if job.labels is None else job.labels
    if not 0 < count <= len(available) - (inputs.test is None):
        spare = ", and one at least must be left to test on" if inputs.test is None else ""
        raise ConfigError(f"--labels {count}: {len(available)} labelled cases can be used{spare}")
    return available[:count]


def _held_out(inputs: Inputs, store: Store, training: tuple[str, ...]) -> tuple[Case, ...]:
    if inputs.test is not None:
        return inputs.test.cases
    return tuple(case for case in inputs.labelled.labelled if case.id not in training and case.id in store.names)


def _refuse_seen(stores: dict[str, Store], training: tuple[str, ...], held_out: Sequence[Case]) -> None:
    """ConfigError where test scans are among those that either training learns from, or are of a patient whose label is."""
    tests = scans_of_cases(held_out)
    refuse_overlap(scans_of_store(stores["unlabelled"]), tests, "test cases")
    refuse_overlap(scans_of_store(stores["labelled"], training), tests, "test cases", by="fine-tuning", patients=True)


def _with_usable_labels(cases: Sequence[Case], plan: Plan) -> tuple[tuple[Case, ...], list[dict[str, str]]]:
    """The test cases without the labels that nothing could be compared with, and those with their reasons: known before hours of training.

    Raises:
        InputError: there are labels, and none of them can be used.
    """
    kept, refused = [], []
    for case in cases:
        try:
            check_label(case, plan.recipe)
        except InputError as error:
            called = "label" + "".join(case.label.suffixes[-2:] if case.label else ())
            refused.append({"path": f"{case.id}/{called}", "reason": f"not scored: {without_paths(str(error), case)}"})
            case = dataclasses.replace(case, label=None)
        kept.append(case)
    if refused and all(case.label is None for case in kept):
        raise InputError(f"none of the {len(refused)} labels of the test cases can be used; {refused[0]['path']}: {refused[0]['reason']}")
    for item in refused:
        print(f"{item['path']}: {item['reason']}", file=sys.stderr)
    return tuple(kept), refused


def _train(out: Path, plan: Plan, trainers: Trainers, training: tuple[str, ...], clock: StageClock) -> dict[str, Path]:
    with clock.stage("pretrain"):
        encoder = trainers.pretrain(plan, out / "store" / "unlabelled", out / "pretrain")
    models = {}
    for arm in ARMS:
        with clock.stage(f"finetune {arm}"):
            made = trainers.finetune(
                plan, out / "store" / "labelled", training, out / "finetune" / arm, encoder if arm == "pretrained" else None
            )
            models[arm] = out / "models" / arm
            shutil.copytree(made, models[arm], dirs_exist_ok=True)
    return models


def _segment(model: Path, cases: Sequence[Case], out: Path, arm: str) -> list[tuple[str, str]]:
    with bar(f"segment ({arm})") as progress:
        return segment_cases(load_model(model), cases, out, allow_missing=True, progress=progress)


def _evaluate(out: Path, arm: str, cases: Sequence[Case], plan: Plan) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Scores of the cases with a label, and those left out of them; a case that could not be segmented counts as Dice 0."""
    predictions = out / "predictions" / arm
    made = {case.id: predictions / f"{case.id}.nii.gz" for case in cases}
    pairs = {case.id: (made[case.id] if made[case.id].is_file() else None, case.label) for case in cases if case.label is not None}
    if not pairs:
        return {"dice": None, "low": None, "high": None, "per_case": {}}, []
    summary = evaluate_cases(pairs, out / "evaluation" / arm, resample=True, rules=cases[0].rules, **structures_of(plan.recipe))
    lost = [{"path": item["case"], "reason": f"not scored: {item['reason']}"} for item in summary["left_out"]]
    return {key: summary[key] for key in ("dice", "low", "high", "per_case")}, lost


def _say_farewell(out: Path, report: Path, summary: dict[str, Any]) -> None:
    print(f"\nreport   {report}\nmodels   {out / 'models'}\nsummary  {out / 'summary.json'}", file=sys.stderr)
    for arm in ARMS:
        score = summary[arm]
        if score["dice"] is not None:
            print(f"{arm:10s} Dice {score['dice']:.3f} (95 % interval {score['low']:.3f} to {score['high']:.3f})", file=sys.stderr)
    left_out = summary["index"]["left_out"]
    print(
        f"{summary['seconds']:.0f} s, {summary['peak_memory_gib']:.1f} GiB; {len(left_out)} scans left out (reasons in the report)",
        file=sys.stderr,
    )
