"""What the main job is asked for, and the cases that its folders hold: channels fitted to the labelled ones, broken scans left out, ids that name
nobody. Called by `pipeline`; `cli` and `demo` fill in a `MainJob`."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseg.data.archive import index_archive, read_index
from jaxseg.data.archive.patients import patient_key
from jaxseg.data.cases import Case, CaseSet, find_cases, unpacked
from jaxseg.data.contoured import DRAWN, find_contoured
from jaxseg.data.io.decoded import Rules
from jaxseg.data.pseudonyms import may_name_people, pseudonymous
from jaxseg.data.scan_names import modalities_differ, modality
from jaxseg.errors import InputError
from jaxseg.files import write_json
from jaxseg.progress import bar

NAMES = "names.json"  # key → case id, where ids that may name people were replaced; private


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
class Inputs:
    """The cases of a job, and the scans that were left out with their reasons."""

    unlabelled: CaseSet
    labelled: CaseSet
    test: CaseSet | None
    left_out: list[dict[str, str]]
    ok: int


def read_inputs(job: MainJob) -> Inputs:
    """Find the cases of a job, and index its unlabelled scans into `OUT/index`; ids that may name people are replaced by keys (`OUT/names.json`).

    Raises:
        InputError: no case has a label, the channels of two folders have none in common, or no unlabelled scan can be read.
    """
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
    kept = _with_images((unpacked(case, channels) for case in cases), lambda name, _: name.lower() in wanted)
    if not kept:
        raise InputError(
            f"{folder}: its scans have the channels {', '.join(cases.channels)}, the labelled cases have {', '.join(channels)}: "
            "none in common; name the files alike, or choose with --channels"
        )
    return dataclasses.replace(cases, cases=kept)


def _without(cases: CaseSet, broken: Mapping[Path, str]) -> CaseSet:
    """The cases with what is left of them without the broken files; a case keeps its sound channels."""
    sound = _with_images(cases, lambda _, path: path.resolve() not in broken)
    if not sound:
        raise InputError(
            f"no scan of the unlabelled folder can be used, the first one because: {next(iter(broken.values()))} (the reasons of all: "
            "index/scans.parquet in the output folder)"
        )
    return dataclasses.replace(cases, cases=sound)


def _with_images(cases: Iterable[Case], wanted: Callable[[str, Path], bool]) -> tuple[Case, ...]:
    """The cases with those of their images alone whose (channel, path) are wanted; none that keeps no image."""
    fewer = (dataclasses.replace(case, images={name: path for name, path in case.images.items() if wanted(name, path)}) for case in cases)
    return tuple(case for case in fewer if case.images)
