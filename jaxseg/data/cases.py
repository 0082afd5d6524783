"""Which files of a folder are one case, its channels and its label. Called by the pipeline, `preprocess` and the store; reads names only.

`layouts` knows the ways in which people lay out a folder.
"""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data import layouts
from jaxseg.data.archive.patients import is_numbered, owner_of
from jaxseg.data.dicom_cases import dicom_cases
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.io.scans import ScanRef, composed, find_scans, printable, stem
from jaxseg.data.layouts import Declared
from jaxseg.data.packed import holds_channels, miscounted
from jaxseg.data.scan_names import Found, is_anonymisation, is_called, is_modality, numbers_are_channels, tokens
from jaxseg.errors import InputError


@dataclass(frozen=True)
class Case:
    """One patient's scan: a file per channel, perhaps a label, perhaps a split, perhaps a mask of the brain or body.

    A 4-D file stands under each of its channels; `packed` then names all channels in the order of the file. `fold` is that of a published
    cross-validation. `anonymised` are masks that are not 0 where anonymisation took voxels away. `patient` is whose scan it is, where folders say
    more of that than the id does. `rules` are those by which all its files are read.
    """

    id: str
    images: dict[str, Path]
    label: Path | None = None
    split: str | None = None
    packed: tuple[str, ...] = ()
    mask: Path | None = None
    fold: int | None = None
    anonymised: tuple[Path, ...] = ()
    patient: str | None = None
    rules: Rules = PLAIN

    def __post_init__(self):
        # Names on old disks need not be UTF-8; an id stands in files of ours, which are.
        object.__setattr__(self, "id", composed(printable(self.id)))


@dataclass(frozen=True)
class CaseSet:
    """The cases of a folder in order of their ids.

    Attributes:
        channels: all channel names in a fixed order; a case may lack some.
        labels: name → value (or values, for a region) where the folder declares them, else None.
        kind: the layout that was recognised, for messages.
        regions: whether labels overlap (each is a list of values).
    """

    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[str, int | list[int]] | None
    kind: str
    regions: bool = False

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a label."""
        return tuple(case for case in self.cases if case.label is not None)

    def read_by(self, rules: Rules) -> "CaseSet":
        """The same cases, whose files are read by these rules."""
        return dataclasses.replace(self, cases=tuple(dataclasses.replace(case, rules=rules) for case in self.cases))


class NoSuchLabel(InputError):
    """Labels there are, but none of the name that was asked for."""


def find_cases(
    folder: str | Path,
    *,
    channels: Sequence[str] | None = None,
    label: str | None = None,
    labels: bool = True,
    dicom: bool = True,
    scans: Callable[[Path], Iterable[ScanRef]] = find_scans,
) -> CaseSet:
    """Sort the scans of a folder into cases, by their names alone (a broken scan is found like any other).

    Understands, in this order: a `dataset.json` here or one level below (nnU-Net, Medical Decathlon), or beside this folder where it is the dataset's
    `imagesTr/` or `imagesTs/` (then the cases of that folder, with the labels beside it); BIDS (`sub-01/[ses-1/]anat/`, with
    labels beside the images or in `derivatives/`); `imagesTr/` or `images/` with `labelsTr/` or `labels/`, or folders called after channels
    (`T1/`, `FLAIR/`, `labels/`); one flat folder (`ID_T1.nii.gz`, `ID_seg.nii.gz`); a folder per case (`STS_001/T1.nii.gz`), also deeper
    (`SITE/PATIENT/VISIT/T1.nii.gz`, whose id is `SITE_PATIENT_VISIT`) and within cases (`CASE/labels/x.nii.gz`, `CASE/followup/T1.nii.gz`; scans
    there that are called after no channel of the cases are passed over, with a warning that names their folders); folders of several cases
    each (`SITE/CASE_T1.nii.gz`, `SITE_CASE`).
    A folder without any such file, but with DICOM series, is understood as well (`dicom_cases`): a case a study. DICOM files beside
    scans of another format are passed over, with a warning that counts them.
    Files are matched by name; hidden files are passed over. Four digits at the end of a name are a channel only where they are numbered as nnU-Net's
    (`scan_names.numbers_are_channels`), else they belong to the case. A brain mask is neither image nor label: it is the case's `mask`; nor are masks of
    what anonymisation took away (`T1_anon_mask`).

    Args:
        channels: use these channels in this order (any case of letters); a case that lacks one is kept without it. A 4-D file with as many volumes,
            called after none of them, holds them in this order: for that headers are read.
        label: which file is the label: its name or the part after the case id, such as "tumour". A case without it has no label.
        labels: pass labels over where this is False: a job that needs none is not stopped by a label too many, or one without an image.
        dicom: look for DICOM series where there is no other scan.
        scans: what reads the headers of these (`find_scans`, or one that keeps what it read for who needs it again).

    Raises:
        InputError: no case was found, none has the label that was named (`NoSuchLabel`), a case has several possible labels or files of the same
            channel, a label without an image, no two folders have a channel in common, or no case has a channel that was asked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'this is a file, expected a folder of cases' if folder.exists() else 'no such folder'}")
    try:
        found, declared, kind = layouts.recognise(folder, label)
    except layouts.NothingFound as nothing:
        try:
            studies = dicom_cases(folder, scans) if dicom else []
        except InputError as none:
            raise InputError(f"{nothing}. {none}") from None
        if not studies:
            raise
        series = [Case(study.id, study.images, patient=study.patient) for study in studies]
        return _case_set(folder, series, Declared(), "DICOM", channels)
    if dicom:
        _warn_of_dicom(folder)
    if not labels:
        found = _without_labels(folder, found)
    by_id: dict[tuple[str, str | None], list[Found]] = {}
    for file in found:
        by_id.setdefault((composed(file.case), file.split), []).append(file)
    cases = [_case(folder, case, split, files, label) for (case, split), files in sorted(by_id.items(), key=lambda item: str(item[0]))]
    if (
        labels
        and label is not None
        and (offered := [file for file in found if file.role == "label"])
        and not any(case.label for case in cases)
    ):
        names = sorted({file.channel or file.path.name for file in offered})
        raise NoSuchLabel(
            f"{folder}: no case has a label called {label}; there are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}: name one of these (--label-name)"
        )
    cases = _name_lone_images(cases, declared)
    if kind in (layouts.PER_CASE, layouts.DEEPER, layouts.NESTED):
        _check_channels_meet(folder, cases)
    if kind == layouts.NESTED:
        cases = [dataclasses.replace(case, patient=next(iter(case.images.values())).relative_to(folder).parts[0]) for case in cases]
    if kind in (layouts.DEEPER, layouts.COLLECTIONS):
        stems: dict[Path, set[str]] = {}
        for file in found:
            stems.setdefault(file.path.parent, set()).add(stem(file.path))
        numbered = {path: numbers_are_channels(names) for path, names in stems.items()}
        cases = [dataclasses.replace(case, patient=_owner(case, folder, kind, numbered)) for case in cases]
    _check_unique(folder, cases)
    return _case_set(folder, cases, declared, kind, channels)


def _warn_of_dicom(folder: Path) -> None:
    count = sum(path.suffix.lower() == ".dcm" and not path.name.startswith(".") for path in folder.rglob("*"))
    if count:
        warnings.warn(
            f"{folder}: {count} DICOM files (.dcm) lie beside scans of another format and are passed over; give their folder by itself",
            RuntimeWarning,
            stacklevel=3,
        )


def _owner(case: Case, root: Path, kind: str, numbered: Mapping[Path, bool]) -> str | None:
    """The case's patient as its path says; a folder of cases is one patient's only where its name has a number."""
    image = next(iter(case.images.values()))
    owner = owner_of(image, root, numbered=numbered[image.parent]).patient
    return None if kind == layouts.COLLECTIONS and owner == image.parent.name and not is_numbered(owner) else owner


def _without_labels(folder: Path, found: list[Found]) -> list[Found]:
    """The images, and the masks of cases that have one."""
    cases = {(composed(file.case), file.split) for file in found if file.role == "image"}
    if not cases:
        raise InputError(f"{folder}: only files that are called like labels or masks, such as {found[0].path.name}; expected images")
    return [file for file in found if file.role != "label" and (composed(file.case), file.split) in cases]


def _case(folder: Path, case: str, split: str | None, files: list[Found], label: str | None) -> Case:
    images: dict[str, Path] = {}
    for file in (file for file in files if file.role == "image"):
        if twice := [path for channel, path in images.items() if channel.lower() == file.channel.lower()]:
            raise InputError(f"{folder}: case {case} has two files for channel {file.channel!r}: {twice[0].name} and {file.path.name}")
        images[file.channel] = file.path
    labels = [file for file in files if file.role == "label"]
    if label is not None and any(file.channel for file in labels):  # in a folder of labels they are called by the case alone
        labels = [file for file in labels if is_called(file, label)]
    if len(labels) > 1:
        names = ", ".join(sorted(file.path.name for file in labels)[:6]) + (", …" if len(labels) > 6 else "")
        raise InputError(
            f"{folder}: case {case} has {len(labels)} files that may be its label: {names}; say which with label= (--label-name)"
        )
    if not images:
        kind, lone = ("label", labels[0]) if labels else ("mask", files[0])
        raise InputError(f"{folder}: case {case} has a {kind} ({lone.path.name}) but no image; add its image or move the {kind} away")
    packed = tuple(images) if len(images) > len(set(images.values())) else ()
    masks = [file.path for file in files if file.role == "mask" and not is_anonymisation(file.channel)]
    anonymised = tuple(sorted(file.path for file in files if file.role == "mask" and is_anonymisation(file.channel)))
    mask = masks[0] if len(masks) == 1 else None
    return Case(case, images, labels[0].path if labels else None, split, packed, mask, anonymised=anonymised)


def _name_lone_images(cases: list[Case], declared: Declared) -> list[Case]:
    """One image a case, called differently in each: that is one channel, `image`, not a channel per case."""
    names = {name for case in cases for name in case.images}
    lone = all(len(case.images) == 1 for case in cases) and len(names) == len(cases) > 1
    if declared.channels or not lone or any(is_modality(name) for name in names):
        return cases
    return [dataclasses.replace(case, images={"image": next(iter(case.images.values()))}) for case in cases]


def _check_channels_meet(folder: Path, cases: list[Case]) -> None:
    """Several folders whose files are all called differently are hardly cases with a channel a file."""
    counts = Counter(name.lower() for case in cases for name in case.images)
    strange = not any(is_modality(tokens(name)[0]) for name in counts if tokens(name)) and max(counts.values()) == 1
    if strange and len(cases) > 1 and max(len(case.images) for case in cases) > 1:
        held = "; ".join(
            f"{case.id} has {', '.join(list(case.images)[:3])}{', …' if len(case.images) > 3 else ''}"
            for case in sorted(cases, key=lambda case: -len(case.images))[:2]
        )
        raise InputError(
            f"{folder}: each folder was taken for a case, but no name of a file is that of a channel, or is found in two of them: {held}; "
            f"give one such folder by itself, or call a channel's file alike in every case. Layouts that are understood: {layouts.UNDERSTOOD}"
        )


def _check_unique(folder: Path, cases: list[Case]) -> None:
    seen: set[str] = set()
    twice = sorted({case.id for case in cases if case.id in seen or seen.add(case.id)})
    if twice:
        raise InputError(
            f"{folder}: {len(twice)} case ids appear twice (in training and test?): {', '.join(twice[:8])}; rename one of each"
        )


def unpacked(case: Case, channels: Sequence[str]) -> Case:
    """The case with its only file under each of `channels`, where that file is 4-D with just as many volumes and is called after none of them."""
    names = {name.lower() for name in channels}
    if len(case.images) != 1 or names & {name.lower() for name in case.images}:
        return case
    [path] = case.images.values()
    return (
        dataclasses.replace(case, images=dict.fromkeys(channels, path), packed=tuple(channels)) if holds_channels(path, channels) else case
    )


def _case_set(folder: Path, cases: list[Case], declared: Declared, kind: str, channels: Sequence[str] | None) -> CaseSet:
    spelling: dict[str, str] = {name.lower(): name for name in declared.channels}
    for name in sorted({name for case in cases for name in case.images}):
        spelling.setdefault(name.lower(), name)
    if channels is not None:
        cases = [unpacked(case, channels) for case in cases]
        spelling |= {name.lower(): name for case in cases for name in case.packed}
        absent = [name for name in channels if name.lower() not in spelling]
        if absent:
            counted = next(filter(None, (miscounted(case.images.values(), channels) for case in cases)), "")
            raise InputError(f"{folder}: no case has the channel {', '.join(absent)}; there is: {', '.join(spelling.values())}{counted}")
        spelling = {name.lower(): name for name in channels}
    chosen = []
    for case in cases:
        images = {name.lower(): path for name, path in case.images.items()}
        kept = {name: images[key] for key, name in spelling.items() if key in images}
        if not kept:
            raise InputError(
                f"{folder}: case {case.id} has none of the channels {', '.join(spelling.values())}; it has {', '.join(case.images)}"
                + miscounted(case.images.values(), list(spelling))
            )
        chosen.append(dataclasses.replace(case, images=kept))
    return CaseSet(tuple(chosen), tuple(spelling.values()), declared.labels, kind, declared.regions)
