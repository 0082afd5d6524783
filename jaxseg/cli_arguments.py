"""What each verb of `jaxseg` takes on the command line. `cli` parses with it, and does what the verb says."""

import argparse
import math
from pathlib import Path

from jaxseg import __version__

_KEEP_NAMES = "keep case names that may name people (default: words that the cases do not share, and dates, are replaced by keys)"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `.verb` of what it parsed says which verb was given."""
    parser = argparse.ArgumentParser(
        prog="jaxseg",
        description="Self-supervised pretraining and few-label segmentation of 3D medical scans, in JAX.",
        epilog="Exit codes: 0 done; 2 something you can mend; 3 done, with some inputs left out and listed; 75 interrupted, run it again.",
    )
    parser.add_argument("--version", action="version", version=f"jaxseg {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in (
        *(_demo, _run, _index, _audit, _datasets, _prepare, _plan, _pretrain, _finetune, _segment, _evaluate, _report),
        *(_models, _convert, _export_torch, _doctor),
    ):
        add(verbs)
    return parser


def _verb(verbs, name: str, text: str, *, add_help: bool = True) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", add_help=add_help)


class _Help(argparse.Action):
    """--help after a config is for the config's own parser, which lists its fields; without one it shows this help."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if getattr(namespace, "config", None) is None:
            parser.print_help()
            parser.exit()
        namespace.fields = True


def _orientation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qform-sform",
        choices=("refuse", "sform", "qform"),
        default="refuse",
        help="which form of a NIfTI file counts where it states two (default: refuse it where they conflict)",
    )
    parser.add_argument(
        "--assume-orientation", type=str.upper, help="axes such as RAS or LPS of files that state none (default: refuse them)"
    )


def _with_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a shipped config's name, or a .py file")
    parser.add_argument(
        "-h",
        "--help",
        dest="fields",
        action=_Help,
        nargs=0,
        default=False,
        help="show this help; after CONFIG: list every field of the config",
    )


def _demo(verbs) -> None:
    parser = _verb(verbs, "demo", "the main job on a phantom archive made on the spot")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take on two cores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms and the training (default: %(default)s)")


def _run(verbs) -> None:
    parser = _verb(verbs, "run", "the main job on your own scans: from an archive and a few contoured cases to a model and a report")
    parser.add_argument("--unlabelled", type=Path, required=True, help="folder of scans without labels, to pretrain on")
    parser.add_argument("--labelled", type=Path, required=True, help="folder of scans with labels, to fine-tune on")
    parser.add_argument("--test", type=Path, help="folder of scans to segment; those with labels are scored")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it makes")
    parser.add_argument("--labels", type=int, help="use only the first so many labelled cases (default: all)")
    parser.add_argument("--channels", type=_names, help="channel names to use, such as T1,FLAIR (default: those of the labelled cases)")
    parser.add_argument(
        "--label-name",
        help="which file of a labelled case is its label, such as seg (default: recognised by name); of DICOM contours the structures, such as gtv*",
    )
    parser.add_argument(
        "--spacing", type=_spacing, help="working voxel size in mm, such as 1,1,3 (default: from the scans and their labels)"
    )
    _orientation(parser)
    parser.add_argument("--keep-names", action="store_true", help=_KEEP_NAMES)
    parser.add_argument("--allow-overlap", action="store_true", help="go on where test scans or their patients are among those trained on")
    parser.add_argument(
        "--objective",
        choices=("mae", "lesions"),
        default="mae",
        help="what pretraining learns: to restore hidden voxels, or to outline artificial lesions (which helped on phantoms and "
        "lost on real sarcomas, see docs/results.md) (default: %(default)s)",
    )
    parser.add_argument(
        "--signal",
        type=_signal,
        action="append",
        metavar="CHANNEL=MARGIN,LIVING,DEAD",
        help="of artificial lesions in one channel: how far their margin, living and dead part lie above the tissue around, in standard "
        "deviations, such as FLAIR=1.8,1,0; once a channel (default: any signal)",
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="about how long training may take on two cores (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def _index(verbs) -> None:
    parser = _verb(verbs, "index", "read every scan below some folders: geometry, content hash, and what must not be trained on")
    parser.add_argument("roots", type=Path, nargs="+", metavar="ROOT")
    parser.add_argument("--out", type=Path, required=True, help="folder for scans.parquet, summary.json and the page index.html")
    parser.add_argument(
        "--channels",
        type=_names,
        help="channel names of 4-D scans, such as T1,T2; prepare goes by them (default: those of a dataset.json)",
    )
    _orientation(parser)
    parser.add_argument(
        "--allow-burned-in", action="store_true", help="admit DICOM series with text burned into their pixels, which may name the patient"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of files that have not changed since an earlier or interrupted run"
    )
    parser.add_argument("--processes", type=int, help="how many read at once (default: one a core where the archive is large enough)")


def _audit(verbs) -> None:
    parser = _verb(verbs, "audit", "scans and patients that two indexes or stores have in common; exit code 2 if there are any")
    parser.add_argument("pretrain", type=Path, metavar="PRETRAIN", help="an index, a store or a model folder")
    parser.add_argument("test", type=Path, metavar="TEST", help="an index or a store")
    parser.add_argument("--out", type=Path, help="also write the overlaps to this JSON file")


def _datasets(verbs) -> None:
    parser = _verb(verbs, "datasets", "list the public datasets that are read by name, or check a local copy of one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a dataset, such as brats2021 or msd03_liver")
    parser.add_argument("root", type=Path, nargs="?", metavar="ROOT", help="folder of the local copy; nothing is downloaded")
    parser.add_argument("--headers-only", action="store_true", help="do not read the voxels of the label files")


def _prepare(verbs) -> None:
    parser = _verb(verbs, "prepare", "turn scans into a store that training reads: orientation, spacing, intensity, foreground")
    parser.add_argument("source", type=Path, help="a folder of scans, or the folder of their index (`jaxseg index`)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the store; what is there and unchanged is kept")
    parser.add_argument(
        "--channels", type=_names, help="channel names, such as T1,PET,CT; of 4-D files in their order (default: those found)"
    )
    parser.add_argument("--dataset", help="the public dataset that it is a local copy of, such as brats2021; see `jaxseg datasets`")
    parser.add_argument(
        "--label-name",
        help="which file of a case is its label (default: recognised by name); of DICOM contours the structures, such as gtv*",
    )
    parser.add_argument("--spacing", type=_spacing, help="voxel size in mm, such as 1,1,3 (default: the median of the scans)")
    parser.add_argument("--like", type=Path, help="a store or model folder whose recipe is used")
    parser.add_argument(
        "--intensity", type=_names, help="zscore, percentile, nyul, ct or ct:LOW:HIGH: one rule, or one a channel with commas"
    )
    parser.add_argument(
        "--resampling",
        choices=("linear", "nnunet"),
        help="nnunet: crop, normalise, then cubic, thick slices by themselves (default: linear)",
    )
    parser.add_argument(
        "--strip", choices=("mask", "surface"), help="cut to the brain: by each case's brain mask file, or found in the scan"
    )
    parser.add_argument("--n4", action="store_true", default=None, help="remove bias fields of MR channels (pip install 'jaxseg[itk]')")
    parser.add_argument("--register", choices=("rigid", "affine"), help="lay each channel over the labelled (or first) one (jaxseg[itk])")
    parser.add_argument(
        "--defaced", action="store_true", default=None, help="find faces replaced by a constant and leave them out of pretraining's loss"
    )
    _orientation(parser)
    parser.add_argument("--processes", type=int, help="how many cases are prepared at once (default: 2)")
    parser.add_argument("--memory-gib", type=float, help="what they may take together (default: four fifths of what is free)")
    parser.add_argument(
        "--beam", metavar="OPTIONS", help="prepare on Apache Beam, with its options in quotes, such as '--runner=FlinkRunner …'"
    )
    parser.add_argument("--keep-names", action="store_true", help=_KEEP_NAMES)
    parser.add_argument(
        "--names", metavar="FILE", type=Path, help="write which key stands for which case name, for you alone (outside of OUT)"
    )


def _plan(verbs) -> None:
    parser = _verb(verbs, "plan", "settings for pretrain and finetune from a store and the device's memory, as a file to edit")
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument("--out", type=Path, default=Path("plan.py"), help="the .py (or .json) file to write (default: %(default)s)")
    parser.add_argument("--memory-gib", type=float, help="of one device (default: what the first device, or the machine, has)")


def _pretrain(verbs) -> None:
    _with_config(
        _verb(
            verbs, "pretrain", "pretrain an encoder on a store: jaxseg pretrain CONFIG --store S --out O [--field value …]", add_help=False
        )
    )


def _finetune(verbs) -> None:
    _with_config(
        _verb(
            verbs,
            "finetune",
            "fine-tune for segmentation: jaxseg finetune CONFIG --store S --out O --init P [--field value …]",
            add_help=False,
        )
    )


def _segment(verbs) -> None:
    parser = _verb(verbs, "segment", "segment scans with a model folder, each on its own grid")
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument(
        "scans", type=Path, nargs="+", help="folders of scans, or the files of one case, one a channel in the model's order (or 4-D)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the label files, one a case")
    parser.add_argument("--overlap", type=_share, default=0.5, help="of neighbouring windows (default: %(default)s)")
    parser.add_argument(
        "--batch", type=_count, help="windows a call of the network (default: 1 on a CPU, 4 elsewhere; fewer where memory runs out)"
    )
    parser.add_argument("--allow-missing", action="store_true", help="segment scans that lack one of the model's channels")
    parser.add_argument("--every-window", action="store_true", help="run windows that hold nothing but air, too, instead of skipping them")
    _orientation(parser)


def _evaluate(verbs) -> None:
    parser = _verb(verbs, "evaluate", "compare a folder of predictions with a folder of truths")
    parser.add_argument("predictions", type=Path)
    parser.add_argument("truths", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for cases.csv and summary.json")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument(
        "--labels",
        type=_structures,
        metavar="NAME=VALUE,…",
        help="what is scored: labels by their values, and regions by the sum of theirs, such as oedema=2,core=1+3 (default: every value that "
        "any truth holds)",
    )
    scored.add_argument("--like", type=Path, metavar="MODEL", help="score the labels or regions of this model folder (or store)")
    parser.add_argument(
        "--label-name",
        help="which file of a case is its truth, where several might be, such as tumour_seg; of DICOM contours the structures that are the label (of "
        "value 1), such as gtv*",
    )
    parser.add_argument("--tolerance", type=_length, default=2.0, help="of the surface Dice, in mm (default: %(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help="a truth without a prediction counts as Dice 0 instead of an error")
    parser.add_argument("--resample", action="store_true", help="bring predictions on another grid onto the truth's, by world coordinates")
    _orientation(parser)


def _report(verbs) -> None:
    parser = _verb(verbs, "report", "draw the report page of a finished demo or run again")
    parser.add_argument("folder", type=Path, help="the --out folder of `jaxseg demo` or `jaxseg run`")


def _models(verbs) -> None:
    _verb(verbs, "models", "list the architectures of the model zoo")


def _convert(verbs) -> None:
    parser = _verb(verbs, "convert", "a published checkpoint (.pt, .pth, .safetensors, Orbax) as a model folder")
    parser.add_argument("file", type=Path, help="the checkpoint; nothing is downloaded, and nothing in it is executed")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--model", help="the model that it must be; needed for arrays in jaxseg's own names")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="what shapes cannot tell")
    parser.add_argument("--partial", action="store_true", help="take what fits: fresh weights for what is missing, the rest left out")
    parser.add_argument("--channels", type=_names, help="names of the input channels for the card, such as T1,FLAIR")
    parser.add_argument("--licence", help="of the weights, for the card")


def _export_torch(verbs) -> None:
    parser = _verb(verbs, "export-torch", "a UNETR or Swin UNETR as .safetensors that MONAI loads")
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--old-merging", action="store_true", help="for MONAI 0.9 to 1.4, where a Swin UNETR merges patches as it did")


def _doctor(verbs) -> None:
    _verb(verbs, "doctor", "say what this machine is and whether jaxseg can work on it")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _setting(text: str) -> tuple[str, object]:
    import json

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as heads=12, found {text!r}")
    for form in (value, f"[{value}]") if "," in value else (value,):
        try:
            return name, json.loads(form)
        except json.JSONDecodeError:
            continue
    return name, value


def _structures(text: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for part in _names(text):
        name, _, numbers = part.partition("=")
        values = tuple(int(number) for number in numbers.split("+") if number.strip().isdecimal())
        if not name or name in found or len(values) != numbers.count("+") + 1 or min(values) < 1:
            raise argparse.ArgumentTypeError(
                f"expected different names with label values from 1 on such as oedema=2,core=1+3, found {text!r}"
            )
        found[name] = values
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with label values such as oedema=2,core=1+3, found {text!r}")
    return found


def _signal(text: str) -> tuple[str, tuple[float, ...]]:
    channel, _, numbers = text.rpartition("=")
    try:
        values = tuple(float(part) for part in numbers.split(","))
    except ValueError:
        values = ()
    if not channel or len(values) != 3:
        raise argparse.ArgumentTypeError(f"expected a channel and three numbers such as FLAIR=1.8,1,0, found {text!r}")
    return channel, values


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 up to but not including 1, found {text!r}")
    return value


def _length(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a length in mm that is not negative, such as 2, found {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _spacing(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.replace("x", ",").split(","))
    if len(values) != 3 or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"expected three positive numbers such as 1,1,3, found {text!r}")
    return values
