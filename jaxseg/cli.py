"""`jaxseg VERB`: each verb calls one public function. Nothing heavy is imported before a verb needs it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxseg import __version__
from jaxseg.errors import ConfigError, JaxsegError, Preempted

PARTIAL = 3  # the exit code of a run that finished with some inputs left out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 the user can mend it, 3 some inputs left out, 75 interrupted (run again)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and known.verb not in ("pretrain", "finetune"):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        return known.call(known, rest) or 0
    except JaxsegError as error:
        if debug:
            raise
        print(f"jaxseg {known.verb}: {'interrupted' if isinstance(error, Preempted) else 'error'}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # whoever read our output has seen enough; the interpreter must not try to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"jaxseg {known.verb}: interrupted; the same command goes on where it was", file=sys.stderr)
        return Preempted.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxseg",
        description="Self-supervised pretraining and few-label segmentation of 3D medical scans, in JAX.",
        epilog="Exit codes: 0 done; 2 something you can mend; 3 done, with some inputs left out and listed; 75 interrupted, run it again.",
    )
    parser.add_argument("--version", action="version", version=f"jaxseg {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in (_demo, _run, _index, _prepare, _pretrain, _finetune, _segment, _evaluate, _report, _models, _doctor):
        add(verbs)
    return parser


def _verb(verbs, name: str, call: Callable, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(call=call)
    return parser


def _demo(verbs) -> None:
    parser = _verb(verbs, "demo", _call_demo, "the main job on a phantom archive made on the spot")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take on two cores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms and the training (default: %(default)s)")


def _call_demo(known, _rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.demo import run_demo

    use_cache()
    run_demo(known.out, minutes=known.minutes, seed=known.seed, trainers=_trainers())
    return 0


def _run(verbs) -> None:
    parser = _verb(
        verbs, "run", _call_run, "the main job on your own scans: from an archive and a few contoured cases to a model and a report"
    )
    parser.add_argument("--unlabelled", type=Path, required=True, help="folder of scans without labels, to pretrain on")
    parser.add_argument("--labelled", type=Path, required=True, help="folder of scans with labels, to fine-tune on")
    parser.add_argument("--test", type=Path, help="folder of scans to segment; those with labels are scored")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it makes")
    parser.add_argument("--labels", type=int, help="use only the first so many labelled cases (default: all)")
    parser.add_argument("--channels", type=_names, help="channel names to use, such as T1,FLAIR (default: those of the labelled cases)")
    parser.add_argument("--label-name", help="which file of a labelled case is its label, such as seg (default: recognised by name)")
    parser.add_argument("--spacing", type=_spacing, help="working voxel size in mm, such as 1,1,3 (default: from the scans)")
    parser.add_argument("--minutes", type=float, default=20.0, help="about how long training may take on two cores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def _call_run(known, _rest) -> int:
    from jaxseg.compilation import use_cache
    from jaxseg.pipeline import MainJob, run_main_job

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
    )
    summary = run_main_job(job, _trainers())
    return PARTIAL if summary["index"]["left_out"] else 0


def _trainers():
    import finetune.plan
    import pretrain.plan
    from jaxseg.pipeline import Trainers

    return Trainers(pretrain=pretrain.plan.run, finetune=finetune.plan.run)


def _index(verbs) -> None:
    parser = _verb(
        verbs, "index", _call_index, "read every scan below some folders: geometry, content hash, and what must not be trained on"
    )
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT")
    parser.add_argument("--out", type=Path, required=True, help="folder for scans.parquet")


def _prepare(verbs) -> None:
    parser = _verb(
        verbs, "prepare", _call_prepare, "turn scans into a store that training reads: orientation, spacing, intensity, foreground"
    )
    parser.add_argument("source", type=Path, help="a folder of scans")
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--channels", type=_names, help="channel names, such as T1,PET,CT (default: those found)")
    parser.add_argument("--label-name", help="which file of a case is its label (default: recognised by name)")
    parser.add_argument("--spacing", type=_spacing, help="voxel size in mm, such as 1,1,3 (default: the median of the scans)")
    parser.add_argument("--like", type=Path, help="a store or model folder whose recipe is used")


def _pretrain(verbs) -> None:
    parser = _verb(
        verbs, "pretrain", _call_pretrain, "pretrain an encoder on a store: jaxseg pretrain CONFIG --store S --out O [--field value …]"
    )
    parser.add_argument("config", help="a shipped config's name, or a .py file")


def _finetune(verbs) -> None:
    parser = _verb(
        verbs, "finetune", _call_finetune, "fine-tune for segmentation: jaxseg finetune CONFIG --store S --out O --init P [--field value …]"
    )
    parser.add_argument("config", help="a shipped config's name, or a .py file")


def _segment(verbs) -> None:
    parser = _verb(verbs, "segment", _call_segment, "segment scans with a model folder, each on its own grid")
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument(
        "scans", type=Path, nargs="+", help="folders of scans, or the files of one case, one a channel in the model's order"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the label files, one a case")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows (default: %(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help="segment scans that lack one of the model's channels")


def _evaluate(verbs) -> None:
    parser = _verb(verbs, "evaluate", _call_evaluate, "compare a folder of predictions with a folder of truths")
    parser.add_argument("predictions", type=Path)
    parser.add_argument("truths", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for cases.csv and summary.json")
    parser.add_argument("--tolerance", type=float, default=2.0, help="of the surface Dice, in mm (default: %(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help="a truth without a prediction counts as Dice 0 instead of an error")


def _report(verbs) -> None:
    parser = _verb(verbs, "report", _call_report, "draw the report page of a finished demo or run again")
    parser.add_argument("folder", type=Path, help="the --out folder of `jaxseg demo` or `jaxseg run`")


def _models(verbs) -> None:
    _verb(verbs, "models", _call_models, "list the architectures of the model zoo")


def _doctor(verbs) -> None:
    _verb(verbs, "doctor", _call_doctor, "say what this machine is and whether jaxseg can work on it")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _spacing(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.replace("x", ",").split(","))
    if len(values) != 3 or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"expected three positive numbers such as 1,1,3, found {text!r}")
    return values


def _call_index(known, _rest) -> int:
    import json

    from jaxseg.data.archive import index_archive
    from jaxseg.progress import bar

    with bar("index") as progress:
        index = index_archive(known.roots, known.out, progress=progress)
    print(json.dumps({"scans": len(index.rows), "ok": index.ok, "left_out": len(index.left_out)}))
    return PARTIAL if index.left_out else 0


def _call_prepare(known, _rest) -> int:
    from jaxseg.prepare import prepare_folder
    from jaxseg.progress import bar

    with bar("prepare") as progress:
        store = prepare_folder(
            known.source,
            known.out,
            channels=known.channels,
            label_name=known.label_name,
            spacing=known.spacing,
            like=known.like,
            progress=progress,
        )
    print(f"{known.out}: {len(store.names)} cases, channels {', '.join(store.recipe.channels)}, spacing {store.recipe.spacing} mm")
    for item in store.left_out:
        print(f"left out: {item['name']}: {item['reason']}", file=sys.stderr)
    return PARTIAL if store.left_out else 0


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
            known.model, known.scans, known.out, overlap=known.overlap, allow_missing=known.allow_missing, progress=progress
        )
    for case, reason in left_out:
        print(f"left out: {case}: {reason}", file=sys.stderr)
    return PARTIAL if left_out else 0


def _call_evaluate(known, _rest) -> int:
    from jaxseg.evaluate import evaluate_folders

    summary = evaluate_folders(known.predictions, known.truths, known.out, tolerance_mm=known.tolerance, allow_missing=known.allow_missing)
    print(f"Dice {summary['dice']:.3f} (95 % interval {summary['low']:.3f} to {summary['high']:.3f}) over {len(summary['per_case'])} cases")
    return 0


def _call_report(known, _rest) -> int:
    from jaxseg.job_report import draw_report

    print(f"report: {draw_report(known.folder)}")
    return 0


def _call_models(_known, _rest) -> int:
    from jaxseg.zoo import describe_models

    for name, text in describe_models():
        print(f"{name:16s} {text}")
    return 0


def _call_doctor(_known, _rest) -> int:
    from jaxseg.doctor import examine

    rows = examine()
    for what, finding, fine in rows:
        print(f"{'ok ' if fine else 'NO '} {what:20s} {finding}")
    if not all(fine for _, _, fine in rows):
        raise ConfigError("something above needs mending before jaxseg can work here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
