"""The main job: index → prepare → pretrain → fine-tune from the pretrained encoder and from scratch → segment → evaluate → report.

Called by `jaxseg run` and `jaxseg demo`. Every stage leaves its result in the output folder and is kept when that is complete, so the same
command goes on where it was interrupted. Training itself is handed in (`Trainers`): this package knows neither `pretrain` nor `finetune`.
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from jaxseg.audit import refuse_overlap
from jaxseg.clock import StageClock
from jaxseg.config import as_json
from jaxseg.data.archive import index_archive, read_index
from jaxseg.data.archive.patients import patient_key
from jaxseg.data.cases import Case, CaseSet, find_cases, unpacked
from jaxseg.data.contoured import DRAWN, find_contoured
from jaxseg.data.duplicates import scans_of_cases, scans_of_store
from jaxseg.data.io.decoded import Rules
from jaxseg.data.preprocess import check_label, guess_recipe
from jaxseg.data.pseudonyms import may_name_people, pseudonymous
from jaxseg.data.scan_names import modalities_differ, modality
from jaxseg.data.staging import without_paths
from jaxseg.data.store import Store, build_store
from jaxseg.data.untaught import untaught
from jaxseg.errors import ConfigError, InputError
from jaxseg.evaluate import evaluate_cases, structures_of
from jaxseg.files import lock_folder, read_json, write_json
from jaxseg.infer.folder import segment_cases
from jaxseg.job_report import draw_report
from jaxseg.plan import Plan, make_plan
from jaxseg.progress import bar
from jaxseg.train.run import has_trained
from jaxseg.zoo import load_model

ARMS = ("pretrained", "scratch")
NAMES = "names.json"  # key → case id, where ids that may name people were replaced; private
_NOT_REMEMBERED = ("out", "allow_overlap")  # settings that change no result


@dataclass(frozen=True)
class MainJob:
    """What the user asked for; see `jaxseg run --help`. `max_voxels` bounds a typical scan on the working grid, `signal` is that of a `Plan`, `policy` and
    `assume_orientation` those of `load_volume`."""

    unlabelled: Path
    labelled: Path
    out: Path
    test: Path | None = None
    labels: int | None = None
    channels: tuple[str, ...] | None = None
    label_name: str | None = None
    spacing: tuple[float, float, float] | None = None
    minutes: float = 20.0
    seed: int = 0
    max_voxels: int = 600_000
    keep_names: bool = False
    allow_overlap: bool = False
    objective: Literal["mae", "lesions"] = "mae"
    signal: dict[str, tuple[float, float, float]] | None = None
    policy: Literal["sform", "qform"] | None = None
    assume_orientation: str | None = None

    @property
    def rules(self) -> Rules:
        """By which all its scans and labels are read."""
        return Rules(self.policy, self.assume_orientation)


@dataclass(frozen=True)
class Trainers:
    """The two training functions, handed in by the command line.

    Attributes:
        pretrain: (plan, store, out) → model folder with the encoder.
        finetune: (plan, store, names, out, init) → model folder; `init` None trains from scratch.
    """

    pretrain: Callable[[Plan, Path, Path], Path]
    finetune: Callable[[Plan, Path, tuple[str, ...], Path, Path | None], Path]


@dataclass(frozen=True)
class Inputs:
    """The cases of a job, and the scans that were left out with their reasons."""

    unlabelled: CaseSet
    labelled: CaseSet
    test: CaseSet | None
    left_out: list[dict[str, str]]
    ok: int


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
            inputs = _read_inputs(job)
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
        left_out += not_scored + lost + [{"path": case, "reason": reason} for case, reason in missed]
        summary = {
            "seconds": clock.seconds,
            "peak_memory_gib": clock.record["peak_memory_gib"],
            "index": {"ok": inputs.ok, "left_out": left_out},
            "cases": {"unlabelled": len(stores["unlabelled"].names), "train": len(training), "test": len(held_out)},
            **({"untaught": list(lost_labels)} if lost_labels else {}),
            **{arm: scores[arm] for arm in ARMS},
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


def _read_inputs(job: MainJob) -> Inputs:
    contoured = find_contoured(job.labelled, job.out / DRAWN, channels=job.channels, label=job.label_name)
    labelled, unusable = contoured.cases.read_by(job.rules), list(contoured.left_out.items())
    if not labelled.labelled:
        why = "".join(f"; {name}: {reason}" for name, reason in unusable[:2])
        raise InputError(
            f"{job.labelled}: {len(labelled)} cases were found, none with a label; name the label's file with --label-name{why}"
        )
    unlabelled = _same_channels(
        find_cases(job.unlabelled, label=job.label_name, labels=False).read_by(job.rules), labelled.channels, job.unlabelled
    )
    test = None
    if job.test is not None:
        contoured = find_contoured(job.test, job.out / DRAWN, label=job.label_name, labels=labelled.labels)
        test = _same_channels(contoured.cases.read_by(job.rules), labelled.channels, job.test)
        unusable += contoured.left_out.items()
    with bar("index") as progress:
        index = index_archive(
            [job.unlabelled],
            job.out / "index",
            channels=next((case.packed for case in unlabelled if case.packed), None),
            policy=job.policy,
            assume_orientation=job.assume_orientation,
            salt=None,
            resume=True,
            progress=progress,
        )
    hidden = not job.keep_names and may_name_people([case.id for cases in (labelled, test or ()) for case in cases])
    unlabelled, labelled, *tests = _named(job, [unlabelled, labelled, *([] if test is None else [test])])
    test = tests[0] if tests else None
    broken = {Path(row["path"]).resolve(): row["reason"] for row in index.left_out}
    images = {path.resolve(): f"{case.id}/{name}{''.join(path.suffixes[-2:])}" for case in unlabelled for name, path in case.images.items()}
    left_out = [{"path": images[path], "reason": reason} for path, reason in broken.items() if path in images]
    for name, reason in unusable:
        case, _, what = name.partition("/")
        left_out.append({"path": f"{patient_key(case, read_index(job.out / 'index').salt) if hidden else case}/{what}", "reason": reason})
    return Inputs(_without(unlabelled, broken), labelled, test, left_out, ok=len(set(images) - set(broken)))


def _named(job: MainJob, sets: Sequence[CaseSet]) -> list[CaseSet]:
    """The cases under ids that name nobody: their own where these are codes (or names are kept), else the keys that the job's index gives them.

    `OUT/names.json`, readable by its owner alone, says which key is whose.
    """
    naming = [not job.keep_names and may_name_people(case.id for case in cases) for cases in sets]
    if not any(naming):
        return list(sets)
    salt = read_index(job.out / "index").salt
    keys = {patient_key(case.id, salt): case.id for cases, names in zip(sets, naming) if names for case in cases}
    path = write_json(job.out / NAMES, dict(sorted(keys.items())), mode=0o600)
    print(
        f"case ids that may name people were replaced by keys in all that is written; {path} says whose they are, for you alone "
        "(--keep-names keeps the ids)",
        file=sys.stderr,
    )
    return [pseudonymous(cases, salt) if names else cases for cases, names in zip(sets, naming)]


def _same_channels(cases: CaseSet, channels: Sequence[str], folder: Path) -> CaseSet:
    """The cases with those channels alone that the labelled ones have (in any case of letters); a lone channel needs no name, but may not state
    another modality."""
    if len(cases.channels) == len(channels) == 1:
        if modalities_differ(modality(cases.channels[0]), modality(channels[0])):
            raise InputError(
                f"{folder}: by their names its scans are {cases.channels[0]}, those of the labelled cases {channels[0]}; give scans of one modality, or "
                "rename the files where their names are wrong"
            )
        return cases
    wanted = {name.lower() for name in channels}
    kept = []
    for case in (unpacked(case, channels) for case in cases):
        images = {name: path for name, path in case.images.items() if name.lower() in wanted}
        if images:
            kept.append(dataclasses.replace(case, images=images))
    if not kept:
        raise InputError(
            f"{folder}: its scans have the channels {', '.join(cases.channels)}, the labelled cases have {', '.join(channels)}: "
            "none in common; name the files alike, or choose with --channels"
        )
    return dataclasses.replace(cases, cases=tuple(kept))


def _without(cases: CaseSet, broken: Mapping[Path, str]) -> CaseSet:
    """The cases with what is left of them without the broken files; a case keeps its sound channels."""
    sound = []
    for case in cases:
        images = {name: path for name, path in case.images.items() if path.resolve() not in broken}
        if images:
            sound.append(dataclasses.replace(case, images=images))
    if not sound:
        raise InputError(
            f"no scan of the unlabelled folder can be used, the first one because: {next(iter(broken.values()))} (the reasons of all: "
            "index/scans.parquet in the output folder)"
        )
    return dataclasses.replace(cases, cases=tuple(sound))


def _plan(job: MainJob, inputs: Inputs) -> Plan:
    path = job.out / "plan.json"
    if path.is_file():
        return Plan.from_json(read_json(path))
    recipe = guess_recipe(inputs.labelled, max_voxels=job.max_voxels)
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
