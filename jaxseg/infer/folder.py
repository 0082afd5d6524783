"""Many scans through one model: labels written one file a case, each on its scan's own grid. Called by `jaxseg segment` and the main job."""

import dataclasses
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.cases import Case, find_cases, unpacked
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.io.scans import find_scans, format_of, stem
from jaxseg.data.packed import volumes_in
from jaxseg.data.scan_names import modalities_differ, modality, modality_of_file, split_number
from jaxseg.data.stacking import stack_case
from jaxseg.errors import InputError, JaxsegError, StorageError
from jaxseg.files import make_folder
from jaxseg.infer.made_from import Predictions, origin_of
from jaxseg.infer.predict import recipe_of_model, segment
from jaxseg.zoo import Model, load_model


def segment_cases(
    model: Model,
    cases: Iterable[Case],
    out: Path,
    *,
    overlap: float = 0.5,
    batch: int | None = None,
    allow_missing: bool = False,
    skip_air: bool = True,
    progress: Any = None,
) -> list[tuple[str, str]]:
    """Segment every case into `OUT/ID.nii.gz`; one that is there already is kept where this model made it of the same scan with the same settings.

    Labels of another model, scan or setting, or of which nothing is known, are made again; where that fails they are removed. One line on
    standard error says how many were kept.

    Args:
        batch: windows a call of the network, fewer where the device's memory does not suffice; None for one on a CPU and four elsewhere.
        skip_air: run no window that holds nothing but air.

    Returns:
        (case id, reason) of the cases that could not be segmented; one bad scan never stops the others.

    Raises:
        InputError: labels would be written over a file of their own case. StorageError: `out` cannot be written.
    """
    left_out, cases, predictions = [], list(cases), Predictions(out)
    make_folder(out)
    for case in cases:
        predictions.refuse_inputs(case)
    kept = replaced = 0
    for number, case in enumerate(cases):
        there = predictions.path(case).is_file()
        try:
            recipe = recipe_of_model(model)
            origin = origin_of(case, model, recipe, overlap=overlap, skip_air=skip_air)
            if predictions.holds(case, origin, allow_missing=allow_missing):
                kept += 1
            else:
                scan = stack_case(case, recipe)
                labels = segment(model, scan, overlap=overlap, batch=batch, allow_missing=allow_missing, skip_air=skip_air)
                predictions.write(case, labels, origin, lacked_channels=len(scan.channels) < len(recipe.channels))
                replaced += there
        except StorageError:
            raise
        except JaxsegError as error:
            predictions.remove(case)
            left_out.append((case.id, str(error)))
        if progress is not None:
            progress(number + 1, len(cases))
    if kept or replaced:
        print(
            f"{out}: {kept} of {len(cases)} label files kept (same model, scan and settings); {replaced} of another origin made again",
            file=sys.stderr,
        )
    return left_out


def segment_folder(
    model: str | Path,
    scans: Sequence[Path],
    out: str | Path,
    *,
    overlap: float = 0.5,
    batch: int | None = None,
    allow_missing: bool = False,
    skip_air: bool = True,
    rules: Rules = PLAIN,
    progress: Any = None,
) -> list[tuple[str, str]]:
    """Segment folders of scans, or the files of one case, with a model folder; see `segment_cases` for what is kept of an earlier run.

    Args:
        model: a model folder.
        scans: folders in any layout that `find_cases` knows; or files, one a channel in the model's order (or a 4-D
            one with all of them), which are one case.
        out: folder for the label files.
        batch: windows a call, see `segment_cases`.
        allow_missing: take a scan without one of the model's channels as if that channel were empty, instead of refusing it.
        skip_air: run no window that holds nothing but air.
        rules: what holds for scans that state no orientation, or two.

    Returns:
        (case id, reason) of the cases that could not be segmented.

    Raises:
        InputError: no scan was found, none of them could be segmented, a file that was not made here would be written over, or scans lie in `out`
            itself (it may lie below them).
        CheckpointError: the model folder is damaged.
    """
    network = load_model(model)
    cases = _files_as_case(network, scans, rules) if all(path.is_file() for path in scans) else _folders_as_cases(network, scans, rules)
    for case in cases:
        Predictions(Path(out)).refuse_strange(case)
    _refuse_folder_of_scans(Path(out), scans, cases)
    options: dict[str, Any] = {"overlap": overlap, "batch": batch, "allow_missing": allow_missing, "skip_air": skip_air}
    left_out = segment_cases(network, cases, Path(out), **options, progress=progress)
    if len(left_out) == len(cases):
        case, reason = left_out[0]
        raise InputError(f"none of the {len(cases)} cases could be segmented; {case}: {reason}")
    return left_out


def _refuse_folder_of_scans(out: Path, scans: Sequence[Path], cases: Sequence[Case]) -> None:
    """InputError where predictions would lie among scans, to be taken for scans the next time."""
    folders = {path.resolve() for path in scans} | {path.resolve().parent for case in cases for path in case.images.values()}
    if out.resolve() in folders:
        raise InputError(
            f"{out}: this is a folder of scans, and labels must not lie among them; choose another --out, such as {out / 'predictions'}"
        )


def _folders_as_cases(model: Model, scans: Sequence[Path], rules: Rules) -> list[Case]:
    found: dict[str, Case] = {}
    for folder in scans:
        for case in find_cases(folder, labels=False).read_by(rules):
            if case.id in found:
                raise InputError(
                    f"{folder}: case {case.id} was found in another of the folders too; segment them into different --out folders"
                )
            found[case.id] = unpacked(_with_channels_of_numbers(case, model.card["channels"]), model.card["channels"])
    return list(found.values())


def _with_channels_of_numbers(case: Case, channels: Sequence[str]) -> Case:
    """A case whose channels are nnU-Net's numbers, as many as the model has, with the model's names in that order: its training data had the same."""
    if sorted(case.images) != [f"{place:04d}" for place in range(len(channels))]:
        return case
    if len(channels) > 1:  # said once a run: the text is the same for all cases
        numbers = ", ".join(sorted(case.images))
        warnings.warn(f"channels {numbers} are taken for the model's {', '.join(channels)}, in this order", stacklevel=2)
    return dataclasses.replace(case, images={name: case.images[f"{place:04d}"] for place, name in enumerate(channels)})


def _modality_of(path: Path) -> str | None:
    """What a file's name says that it is, or of a DICOM file its header."""
    if path.is_file() and format_of(path) == "DICOM":
        return modality(next((ref.modality for ref in find_scans(path)), ""))
    return modality_of_file(stem(path))


def _files_as_case(model: Model, files: Sequence[Path], rules: Rules) -> list[Case]:
    channels, name = model.card["channels"], stem(files[0])
    if len(files) == 1 and len(channels) > 1 and (case := unpacked(Case(name, {"image": files[0]}, rules=rules), channels)).packed:
        return [case]
    if len(files) != len(channels):
        count = volumes_in(files[0]) if len(files) == 1 else 1
        given = f"{files[0]} is a 4-D file with {count} volumes" if count > 1 else f"{len(files)} files were given"
        raise InputError(
            f"this model takes {len(channels)} channels ({', '.join(channels)}), but {given}; "
            "give one file a channel, in that order, a 4-D file with as many volumes, or a folder"
        )
    for path, channel in zip(files, channels):
        if modalities_differ(_modality_of(path), modality(channel)):
            raise InputError(
                f"{path}: by its name, or its header, this is no {channel}, for which it was given; give the files in the order "
                f"{', '.join(channels)}, or rename "
                "the file if its name is wrong"
            )
    numbered = [split_number(stem(path)) for path in files]
    if len(files) > 1 and None not in numbered:
        owners, places = [number[0] for number in numbered if number], [number[1] for number in numbered if number]
        if len(set(owners)) > 1 or places != sorted(set(places)):
            raise InputError(
                f"{', '.join(path.name for path in files)}: by the numbers in their names these are not the channels of one scan in order "
                "(CASE_0000, CASE_0001, …); give one case at a time, or a folder of them"
            )
    return [Case(name, dict(zip(channels, files)), rules=rules)]
