"""`jaxseg VERB`: each verb calls one public function. Nothing heavy is imported before a verb needs it."""

import contextlib
import os
import sys
from collections.abc import Sequence

from jaxseg.cli_arguments import make_parser
from jaxseg.errors import ConfigError, InputError, JaxsegError, Preempted
from jaxseg.freed_memory import keep_freed_memory
from jaxseg.warning_lines import warnings_as_lines

_COMPUTING = ("demo", "run", "pretrain", "finetune", "segment")  # what trains or segments
_LISTING = ("models", "datasets", "doctor")  # what only prints: whoever closes the pipe has seen enough
BROKEN_PIPE = 141  # the exit code of work that could not say how it ended, as of a process that SIGPIPE ends
PARTIAL = 3  # the exit code of a run that finished with some inputs left out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 the user can mend it, 3 some inputs left out, 75 interrupted (run again)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    parser = make_parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and known.verb not in ("pretrain", "finetune"):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    if getattr(known, "fields", False):
        rest = ["--help"]
    if known.verb in _COMPUTING:
        keep_freed_memory()  # before what the verb imports starts a thread
    try:
        with contextlib.nullcontext() if debug else warnings_as_lines(f"jaxseg {known.verb}"):
            return _CALLS[known.verb](known, rest) or 0
    except JaxsegError as error:
        if debug:
            raise
        print(f"jaxseg {known.verb}: {'interrupted' if isinstance(error, Preempted) else 'error'}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # whoever read our output has seen enough; the interpreter must not try to flush the rest
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0 if known.verb in _LISTING else BROKEN_PIPE
    except PermissionError as error:
        if debug:
            raise
        print(f"jaxseg {known.verb}: error: {error.filename}: cannot be read or written ({error.strerror})", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print(f"jaxseg {known.verb}: interrupted; the same command goes on where it was", file=sys.stderr)
        return Preempted.exit_code


def _call_demo(known, _rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.demo import run_demo

    use_cache()
    run_demo(known.out, minutes=known.minutes, seed=known.seed, trainers=_trainers())
    return 0


def _call_run(known, _rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.job_inputs import MainJob
    from jaxseg.pipeline import run_main_job

    use_cache()
    job = MainJob(
        unlabelled=known.unlabelled,
        labelled=known.labelled,
        test=known.test,
        out=known.out,
        labels=known.labels,
        channels=known.channels,
        label_name=known.label_name,
        spacing=known.spacing,
        minutes=known.minutes,
        seed=known.seed,
        allow_overlap=known.allow_overlap,
        keep_names=known.keep_names,
        objective=known.objective,
        signal=dict(known.signal) if known.signal else None,
        policy=_rules(known).policy,
        assume_orientation=known.assume_orientation,
    )
    summary = run_main_job(job, _trainers())
    return PARTIAL if summary["index"]["left_out"] else 0


def _rules(known):
    from jaxseg.data.io.decoded import Rules

    return Rules(None if known.qform_sform == "refuse" else known.qform_sform, known.assume_orientation)


def _trainers():
    import finetune.plan
    import pretrain.plan
    from jaxseg.pipeline import Trainers

    return Trainers(pretrain=pretrain.plan.run, finetune=finetune.plan.run)


def _call_index(known, _rest) -> int:
    import json

    from jaxseg.data.archive import index_archive
    from jaxseg.files import read_json
    from jaxseg.index_page import draw_index_page
    from jaxseg.progress import bar

    with bar("index") as progress:
        index = index_archive(
            known.roots,
            known.out,
            channels=known.channels,
            policy=_rules(known).policy,
            assume_orientation=known.assume_orientation,
            burned_in=known.allow_burned_in,
            salt=None,
            resume=known.resume,
            processes=known.processes,
            progress=progress,
        )
    page = draw_index_page(known.out)
    summary = read_json(known.out / "summary.json")
    print(f"page: {page}", file=sys.stderr)
    kept = ("scans", "ok", "patients", "studies", "duplicates", "bytes", "modalities", "reasons")
    print(json.dumps({**{name: summary[name] for name in kept}, "left_out": index.scans - index.ok}))
    return PARTIAL if index.ok < index.scans else 0


def _call_audit(known, _rest) -> int:
    import json

    from jaxseg.audit import audit
    from jaxseg.files import write_json

    overlaps = audit(known.pretrain, known.test)
    for line in overlaps.lines():
        print(line, file=sys.stderr)
    if known.out is not None:
        write_json(known.out, overlaps.to_json())
    print(json.dumps(overlaps.counts()))
    return InputError.exit_code if overlaps else 0


def _call_datasets(known, _rest) -> int:
    from jaxseg.data.datasets import check_dataset, find_dataset, list_datasets
    from jaxseg.progress import bar

    if known.root is None:
        for dataset in [find_dataset(known.name)] if known.name else list_datasets():
            print(f"{dataset.name:24s} {dataset.title} ({', '.join(dataset.channels)})")
        return 0
    with bar("datasets") as progress:
        checked = check_dataset(known.name, known.root, voxels=not known.headers_only, progress=progress)
    print("\n".join(checked.lines))
    for fault in checked.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return PARTIAL if checked.faults else 0


def _call_prepare(known, _rest) -> int:
    import shlex

    from jaxseg.data.beam import stage_on_beam
    from jaxseg.prepare import NAMES, Wishes, prepare_folder
    from jaxseg.progress import bar

    wishes = Wishes(known.spacing, known.intensity, known.resampling, known.strip, known.n4, known.register, known.defaced)
    if known.dataset:
        from jaxseg.data.datasets import open_dataset

        for fault in open_dataset(known.dataset, known.source, channels=known.channels).faults:
            print(f"fault: {fault}", file=sys.stderr)

    with bar("prepare") as progress:
        store = prepare_folder(
            known.source,
            known.out,
            channels=known.channels,
            label_name=known.label_name,
            dataset=known.dataset,
            wishes=wishes,
            rules=_rules(known),
            like=known.like,
            keep_names=known.keep_names,
            names=known.names,
            processes=known.processes,
            memory_gib=known.memory_gib,
            stage=None if known.beam is None else stage_on_beam(shlex.split(known.beam)),
            progress=progress,
        )
    labels = f" ({', '.join(store.recipe.labels)})" if store.recipe.labels else ""
    print(
        f"{known.out}: {len(store.names)} cases, {len(store.labelled)} labelled{labels}, channels {', '.join(store.recipe.channels)}, "
        f"spacing {store.recipe.spacing} mm"
    )
    for place, name in enumerate(store.recipe.channels):
        if lacking := sum(not store.entry(case).present[place] for case in store.names):
            print(f"channel {name}: {lacking} of {len(store.names)} cases lack it", file=sys.stderr)
    outside = {case: share for case in store.names if (share := store.entry(case).info.get("label_outside_body"))}
    if outside:
        worst = max(outside, key=lambda case: outside[case])
        print(
            f"{len(outside)} cases have over 1 % of their labelled voxels where the scan looks like air ({worst}: {outside[worst]:.0%}), which a network "
            "sees as empty; add a channel that shows the body (CT, MR), call the channel PET if it is one, or leave these cases out",
            file=sys.stderr,
        )
    if not known.keep_names and (known.out / NAMES).is_file():
        said = "--names FILE writes" if known.names is None else f"{known.names} says"
        print(
            f"case ids that may name people were replaced by keys in all that is written; {said} whose they are, for you alone (--keep-names keeps the ids)",
            file=sys.stderr,
        )
    for item in store.left_out:
        print(f"left out: {item['name']}: {item['reason']}", file=sys.stderr)
    return PARTIAL if store.left_out else 0


def _call_plan(known, _rest) -> int:
    from jaxseg.doctor import device_memory_gib
    from jaxseg.plan_file import write_plan

    memory = device_memory_gib() if known.memory_gib is None else known.memory_gib
    plan = write_plan(known.store, known.out, memory)
    print(
        f"{known.out}: {plan.size} network, crops of {plan.crop}, tokens of {plan.token} voxels, {plan.batch} a step, about {plan.memory_gib} GiB"
    )
    return 0


def _join_processes() -> None:
    """Where the environment says that this is one of several processes, make one job of them.

    JAX_COORDINATOR_ADDRESS is HOST:PORT of the first process; JAX_NUM_PROCESSES and JAX_PROCESS_ID say how many there are and which this
    is, unless a cluster that JAX knows (SLURM, TPU pods, …) says so itself.
    """
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        import jax

        count, place = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
        jax.distributed.initialize(num_processes=int(count) if count else None, process_id=int(place) if place else None)


def _call_pretrain(known, rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.config import load_config
    from pretrain.config import PretrainConfig
    from pretrain.train import pretrain

    use_cache()
    _join_processes()
    print(f"model: {pretrain(load_config(known.config, 'pretrain', PretrainConfig, rest))}")
    return 0


def _call_finetune(known, rest) -> int:
    from finetune.config import FinetuneConfig
    from finetune.train import finetune
    from jaxseg.compilation import use_cache
    from jaxseg.config import load_config

    use_cache()
    _join_processes()
    print(f"model: {finetune(load_config(known.config, 'finetune', FinetuneConfig, rest))}")
    return 0


def _call_segment(known, _rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.infer.folder import segment_folder
    from jaxseg.progress import bar

    use_cache()
    with bar("segment") as progress:
        left_out = segment_folder(
            known.model,
            known.scans,
            known.out,
            overlap=known.overlap,
            batch=known.batch,
            allow_missing=known.allow_missing,
            skip_air=not known.every_window,
            rules=_rules(known),
            progress=progress,
        )
    for case, reason in left_out:
        print(f"left out: {case}: {reason}", file=sys.stderr)
    return PARTIAL if left_out else 0


def _call_evaluate(known, _rest) -> int:
    from jaxseg.evaluate import evaluate_folders, structures_of
    from jaxseg.prepare import recipe_of

    scored = {"regions": known.labels} if known.labels else structures_of(recipe_of(known.like)) if known.like else {}
    summary = evaluate_folders(
        known.predictions,
        known.truths,
        known.out,
        tolerance_mm=known.tolerance,
        resample=known.resample,
        allow_missing=known.allow_missing,
        label_name=known.label_name,
        rules=_rules(known),
        **scored,
    )
    print(f"Dice {summary['dice']:.3f} (95 % interval {summary['low']:.3f} to {summary['high']:.3f}) over {len(summary['per_case'])} cases")
    if alone := summary["without_truth"]:
        shown = ", ".join(alone[:6]) + (", …" if len(alone) > 6 else "")
        print(f"{len(alone)} predictions have no truth in {known.truths}, and are in no score: {shown}", file=sys.stderr)
    for item in summary["left_out"]:
        print(f"left out: {item['case']}: {item['reason']}", file=sys.stderr)
    return PARTIAL if summary["left_out"] else 0


def _call_report(known, _rest) -> int:
    from jaxseg.job_report import draw_report

    print(f"report: {draw_report(known.folder)}")
    return 0


def _call_models(_known, _rest) -> int:
    from jaxseg.zoo import describe_models

    for name, text in describe_models():
        print(f"{name:16s} {text}")
    return 0


def _call_convert(known, _rest) -> int:
    from jaxseg.zoo import load_pretrained, save_model

    model = load_pretrained(
        known.file,
        model=known.model,
        partial=known.partial,
        settings=dict(known.set),
        channels=known.channels,
        licence=known.licence,
    )
    print(f"model: {save_model(known.out, model.network, model.card)}")
    return 0


def _call_export_torch(known, _rest) -> int:
    from jaxseg.zoo.export.file import export_file

    arguments = export_file(known.folder, known.out, old_merging=known.old_merging)
    name, versions = arguments.pop("class"), arguments.pop("versions", None)
    call = f"monai.networks.nets.{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    print(f"{known.out}: load it into {call}{f' of MONAI {versions}, not of later ones' if versions else ''}")
    return 0


def _call_doctor(_known, _rest) -> int:
    from jaxseg.doctor import examine

    rows = examine()
    for what, finding, fine in rows:
        print(f"{'ok ' if fine else 'NO '} {what:20s} {finding}")
    if not all(fine for _, _, fine in rows):
        raise ConfigError("something above needs mending before jaxseg can work here")
    return 0


_CALLS = {
    "demo": _call_demo,
    "run": _call_run,
    "index": _call_index,
    "audit": _call_audit,
    "datasets": _call_datasets,
    "prepare": _call_prepare,
    "plan": _call_plan,
    "pretrain": _call_pretrain,
    "finetune": _call_finetune,
    "segment": _call_segment,
    "evaluate": _call_evaluate,
    "report": _call_report,
    "models": _call_models,
    "convert": _call_convert,
    "export-torch": _call_export_torch,
    "doctor": _call_doctor,
}


if __name__ == "__main__":
    sys.exit(main())
