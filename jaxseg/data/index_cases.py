"""The cases of an archive that `jaxseg index` has read: what may be trained on, and what must not with its reason. Called by `prepare`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseg.data.archive import Index, read_index
from jaxseg.data.cases import Case, CaseSet, NoSuchLabel, find_cases, unpacked
from jaxseg.data.contoured import draw_contours
from jaxseg.data.io.scans import printable
from jaxseg.errors import InputError

_COLUMNS = ("path", "ok", "reason", "format", "series", "modality", "study", "root")

UNLISTED = {"ok": False, "reason": "it is not in the index; index the folder again (--resume keeps what is known)"}


@dataclass(frozen=True)
class IndexedCases:
    """`cases` hold images that are `ok` alone; `left_out` says by case id why a case or one of its images is missing."""

    cases: CaseSet
    left_out: dict[str, str]


def cases_of_index(
    folder: str | Path,
    drawn: Path,
    *,
    channels: Sequence[str] | None = None,
    label: str | None = None,
    labels: Mapping[str, int | list[int]] | None = None,
) -> IndexedCases:
    """The cases below the roots of an index.

    Files are sorted into cases root by root as `find_cases` does; images that the index says must not be trained on are taken out.
    DICOM series become a case a study, called by the study's key, with a channel for each modality; where no file of the index is a label, theirs are
    drawn into `drawn` of SEG and RTSTRUCT objects (`draw_contours`, as `label` and `labels`). What the index was told of the channels of 4-D files, and
    of files without an orientation, or with two, holds for the cases; text burned into pixels is refused all the same: what is made of them leaves the
    archive.

    Raises:
        InputError: no index, an empty one, or roots whose channels or labels cannot be one store's.
    """
    index = read_index(folder)
    rows = {Path(row["path"]).absolute(): row for row in index.stream(_COLUMNS) if row["format"] not in ("DICOM", "DICOM SEG")}
    sets, reasons = [], []
    unlabelled: list[NoSuchLabel] = []
    for number, root in enumerate(index.roots):
        try:
            found = find_cases(root, channels=channels, label=label, dicom=False)
        except NoSuchLabel as error:  # another root may have it
            unlabelled.append(error)
            found = find_cases(root, channels=channels, labels=False, dicom=False)
        except InputError as error:
            reasons.append(str(error))
            continue
        prefix = f"{number}-" if len(index.roots) > 1 else ""
        named = (unpacked(case, index.declared[number]) for case in found)
        sets.append(dataclasses.replace(found, cases=tuple(dataclasses.replace(case, id=prefix + case.id) for case in named)))
    left_out: dict[str, str] = {}
    cases = [kept for found in sets for case in found if (kept := _sound(case, rows, left_out))]
    series = list(_dicom_cases(index, left_out, channels))
    cases += series
    if not cases:
        raise InputError(f"{folder}: no case of this index can be prepared. " + " ".join([*reasons, *left_out.values()][:3]))
    merged = _merged(folder, cases, sets, channels)
    if series and not (merged.labelled or merged.labels):
        contoured = draw_contours(merged, index.roots, drawn, label=label, labels=labels)
        merged, left_out = contoured.cases, left_out | contoured.left_out
    if unlabelled and not merged.labelled:
        raise unlabelled[0]
    return IndexedCases(merged.read_by(dataclasses.replace(index.rules, burned_in=False)), left_out)


def _sound(case: Case, rows: dict[Path, dict[str, Any]], left_out: dict[str, str]) -> Case | None:
    """The case without images that are not ok; None, and a line in `left_out`, where nothing is left of it."""
    found = {name: rows.get(Path(printable(path.absolute())), UNLISTED) for name, path in case.images.items()}
    bad = {name: row["reason"] for name, row in found.items() if not row["ok"]}
    if not bad:
        return case
    reason = "; ".join(f"{name}: {text}" for name, text in bad.items())
    for name, path in case.images.items():
        reason = reason.replace(str(path.absolute()), name).replace(str(path), name).replace(path.name, name)
    images = {name: path for name, path in case.images.items() if name not in bad}
    left_out[case.id if not images else f"{case.id}/{'+'.join(bad)}"] = reason
    return dataclasses.replace(case, images=images) if images else None


def _dicom_cases(index: Index, left_out: dict[str, str], channels: Sequence[str] | None) -> Iterator[Case]:
    wanted = None if channels is None else {name.lower(): name for name in channels}
    series: dict[Path, list[dict[str, Any]]] = {}
    for row in index.stream(_COLUMNS):
        if row["format"] == "DICOM":
            series.setdefault(Path(row["path"]), []).append(row)
    studies: dict[str, dict[str, Path]] = {}
    for folder, rows in series.items():
        sound = [row for row in rows if row["ok"]]
        for row in rows:
            if not row["ok"]:
                left_out[f"{row['study']}/{row['modality']}"] = row["reason"].replace(str(folder), row["modality"])
        if len(sound) > 1:
            left_out[f"{sound[0]['study']}/DICOM"] = f"one folder holds {len(sound)} of its DICOM series; give each a folder of its own"
        elif sound and (wanted is None or sound[0]["modality"].lower() in wanted):
            name = sound[0]["modality"] if wanted is None else wanted[sound[0]["modality"].lower()]
            images = studies.setdefault(sound[0]["study"], {})
            if name in images:
                left_out[f"{sound[0]['study']}/{name}"] = (
                    f"a second {name} series of the same study; the first in the order of folders is used"
                )
            else:
                images[name] = folder
    for study, images in sorted(studies.items()):
        yield Case(study, images)


def _merged(folder: str | Path, cases: list[Case], sets: Sequence[CaseSet], channels: Sequence[str] | None) -> CaseSet:
    names = (
        tuple(channels)
        if channels
        else tuple(dict.fromkeys([*(n for s in sets for n in s.channels), *(n for c in cases for n in c.images)]))
    )
    declared = [found for found in sets if found.labels]
    if any((found.labels, found.regions) != (declared[0].labels, declared[0].regions) for found in declared[1:]):
        raise InputError(f"{folder}: the roots of this index declare different labels; prepare each root into a store of its own")
    used = {name for case in cases for name in case.images}
    return CaseSet(
        tuple(sorted(cases, key=lambda case: case.id)),
        tuple(name for name in names if name in used),
        declared[0].labels if declared else None,
        "index",
        bool(declared) and declared[0].regions,
    )
