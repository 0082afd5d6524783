"""Cases of a folder whose contours may be DICOM objects (SEG, RTSTRUCT), which are drawn as label files. Called by `prepare`, the pipeline and studies."""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from jaxseg.data.cases import CaseSet, find_cases
from jaxseg.data.io import read_grid, save_volume
from jaxseg.data.io.dicom.drawn_on import series_drawn_on
from jaxseg.data.io.dicom_seg import load_segmentation, read_segmentation
from jaxseg.data.io.rtstruct import draw, read_contours
from jaxseg.data.io.scans import ScanRef, find_scans, joined
from jaxseg.data.staging import without_paths
from jaxseg.data.volume import Grid, Volume
from jaxseg.errors import InputError

DRAWN = "drawn"  # in a store or job: label files drawn from DICOM contours, or a dataset's table of findings
CONTOURS = "contours"  # what of a case is left out, behind its id
_NAMED = 12  # structures that a message lists
_MOST = 254  # values that a label can have besides 0 and 255


@dataclass(frozen=True)
class Contoured:
    """Cases, and those (as "ID/contours") whose contours cannot be used, with the reason; they stay as scans without a label."""

    cases: CaseSet
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Object:
    """A SEG or RTSTRUCT: its structures by name (in lower case, as they are spelt), and where its series lies."""

    ref: ScanRef
    names: dict[str, str]
    series: Path


def find_contoured(
    folder: str | Path,
    out: Path,
    *,
    channels: Sequence[str] | None = None,
    label: str | None = None,
    labels: Mapping[str, int | list[int]] | None = None,
) -> Contoured:
    """`find_cases`, and for cases of DICOM series the label files that are drawn of their SEG and RTSTRUCT objects into `out` (`draw_contours`).

    Args:
        channels, label: as of `find_cases`, and `label` of DICOM objects as of `draw_contours`.
        labels: as of `draw_contours`.

    Raises:
        InputError: as of both.
    """
    folder = Path(folder)
    scans = functools.cache(lambda root: tuple(find_scans(root)))  # of a large archive, minutes
    cases = find_cases(folder, channels=channels, label=label, scans=scans)
    return draw_contours(cases, [folder], out, label=label, labels=labels, scans=scans) if cases.kind == "DICOM" else Contoured(cases)


def draw_contours(
    cases: CaseSet,
    roots: Sequence[Path],
    out: Path,
    *,
    label: str | None = None,
    labels: Mapping[str, int | list[int]] | None = None,
    scans: Callable[[Path], Iterable[ScanRef]] = find_scans,
) -> Contoured:
    """The cases, those of DICOM series with label files that are drawn into `out` of the SEG and RTSTRUCT objects below `roots`.

    A structure's mask is drawn on the grid of the series that the object refers to (or of the study's only one). Structures of one name, capitals
    aside, are one label; values count up in the order of names, over the folder. Drawn files are called by a hash of what they are drawn from, so
    that the second time nothing is drawn. In a case that has contours, a label that nobody drew there is background: choose with `label` what was
    drawn in all of them.

    Args:
        label: the structures that are the label, as patterns with "," between and "*" for anything, capitals aside ("gtv*,tumour"). What matches
            is one label, everything else is background.
        labels: name → value, where these are known (those of the training cases); structures of other names are background.
        scans: what reads the headers below a root.

    Raises:
        InputError: no structure below the roots matches `label`.
    """
    left_out: dict[str, str] = {}
    objects = _objects([(root, ref) for root in roots for ref in scans(root)], cases, left_out)
    try:
        values = _values([name for each in objects.values() for one in each for name in one.names.items()], label, labels)
    except InputError as error:
        if label is not None:
            raise InputError(f"{', '.join(map(str, roots))}: {error}") from None
        return Contoured(cases, {f"{case}/{CONTOURS}": str(error) for case in [*objects, *left_out]})
    contoured = []
    for case in cases:
        if case.id not in left_out:
            try:
                case = dataclasses.replace(case, label=_drawn(objects.get(case.id, []), values, out))
            except InputError as error:
                left_out[case.id] = without_paths(_unnamed(error, [each.ref for each in objects.get(case.id, [])]), case)
        contoured.append(case)
    declared = {name: value for name, (value, _) in values.items()}
    found = dataclasses.replace(cases, cases=tuple(contoured), labels=dict(labels) if labels else declared or None)
    return Contoured(found, {f"{case}/{CONTOURS}": reason for case, reason in left_out.items()})


def _objects(scans: Sequence[tuple[Path, ScanRef]], cases: CaseSet, left_out: dict[str, str]) -> dict[str, list[_Object]]:
    """The objects that belong to each case, of the scans below each root; what is wrong with one goes to `left_out`."""
    parts: dict[str, list[ScanRef]] = {}
    found: list[ScanRef] = []
    first: dict[str, Path] = {}
    for root, ref in scans:
        if ref.format == "DICOM" and not ref.reason:
            if first.setdefault(ref.key, root) == root:  # a copy below another root is no part of the series
                parts.setdefault(ref.key, []).append(ref)
        elif ref.format in ("DICOM SEG", "DICOM RTSTRUCT"):
            found.append(ref)
    series = {key: joined(refs) for key, refs in parts.items()}
    owners = {path.absolute(): case.id for case in cases for path in case.images.values()}
    objects: dict[str, list[_Object]] = {}
    elsewhere: dict[str, str] = {}
    for ref in found:
        of_study = [each for each in series.values() if each.study == ref.study]
        ours = [owners[each.path.absolute()] for each in of_study if each.path.absolute() in owners]
        case = ours[0] if ours else ref.key
        try:
            scan = _scan_of(ref, series, of_study)
            case = owners.get(scan.path.absolute(), case)
            if scan.path.absolute() not in owners:
                elsewhere[case] = f"its {ref.format} object was drawn on a series that is no channel of a case"
                continue
            objects.setdefault(case, []).append(_Object(ref, _names(ref), scan.path))
        except InputError as error:
            left_out[case] = _unnamed(error, [ref])
    for case, reason in elsewhere.items():
        if case not in objects:  # else it needs none of these: a study may have a structure set for each of its series
            left_out.setdefault(case, reason)
    return objects


def _unnamed(error: InputError, refs: Sequence[ScanRef]) -> str:
    """What is wrong, with objects called by their format: a file's name may name people."""
    message = str(error)
    for ref in refs:
        message = message.replace(str(ref.files[0]), ref.format).replace(ref.files[0].name, ref.format)
    return message


def _scan_of(ref: ScanRef, series: Mapping[str, ScanRef], of_study: Sequence[ScanRef]) -> ScanRef:
    named = [series[key] for key in series_drawn_on(ref.files[0]) if key in series]
    candidates = named or list(of_study)
    if len(candidates) == 1:
        return candidates[0]
    raise InputError(
        f"its {ref.format} object refers to {len(named)} series of this folder, and its study has {len(of_study)}; expected one that it was "
        "drawn on: put that series beside it, or draw it with load_segmentation or load_contours"
    )


def _names(ref: ScanRef) -> dict[str, str]:
    """The object's structures, name in lower case → as it is spelt."""
    if ref.format == "DICOM SEG":
        spelt = [segment.label or f"segment {segment.number}" for segment in read_segmentation(ref.files[0]).segments]
    else:
        spelt = [structure.name for structure in read_contours(ref.files[0]) if structure.contours]
    return {_plain(name): " ".join(name.split()) for name in spelt}


def _plain(name: str) -> str:
    return " ".join(name.split()).lower()


def _values(
    names: Sequence[tuple[str, str]], label: str | None, labels: Mapping[str, int | list[int]] | None
) -> dict[str, tuple[int, frozenset[str]]]:
    """Label → its value and the structures (in lower case) that it consists of. InputError where there are structures, and none or too many are labels."""
    spelling: dict[str, str] = {}
    for plain, spelt in names:
        spelling.setdefault(plain, spelt)
    if label is not None:
        patterns = [_plain(pattern) for pattern in label.split(",") if pattern.strip()]
        matching = frozenset(name for name in spelling if any(fnmatchcase(name, pattern) for pattern in patterns))
        called = next(
            (name for name, value in (labels or {}).items() if value == 1), label.replace("*", "").replace("?", "").strip() or "label"
        )
        chosen = {called: (1, matching)} if matching else {}
    elif labels is not None:
        chosen = {
            name: (value, frozenset({_plain(name)}))
            for name, value in labels.items()
            if _plain(name) in spelling and isinstance(value, int)
        }
    else:
        chosen = {spelling[name]: (place, frozenset({name})) for place, name in enumerate(sorted(spelling), 1)}
    if spelling and not chosen:
        wanted = label if label is not None else ", ".join(labels or {})
        listed = ", ".join(sorted(spelling.values())[:_NAMED]) + (", …" if len(spelling) > _NAMED else "")
        raise InputError(f"none of its DICOM contours is called {wanted}; there are {listed}")
    if len(chosen) > _MOST:
        raise InputError(
            f"its DICOM contours have {len(chosen)} names, more than labels can have; say with label_name (--label-name) which structures are the label"
        )
    return chosen


def _drawn(objects: Sequence[_Object], values: Mapping[str, tuple[int, frozenset[str]]], out: Path) -> Path | None:
    """The label file of a case's objects; None where none of their structures is a label."""
    wanted = {name: value for value, names in values.values() for name in names}
    # By their content: a copy of an object says nothing else.
    distinct = {hashlib.sha256(each.ref.files[0].read_bytes()).hexdigest(): each for each in objects if wanted.keys() & each.names.keys()}
    if not distinct:
        return None
    said: dict[str, _Object] = {}
    for each in distinct.values():
        for name in wanted.keys() & each.names.keys():
            if name in said:
                raise InputError(
                    f"two of its DICOM objects hold contours called {each.names[name]}; leave the one that counts in the folder"
                )
            said[name] = each
    if len({each.series for each in distinct.values()}) > 1:
        names = ", ".join(sorted(each.names[name] for name, each in said.items()))
        raise InputError(
            f"its contours ({names}) were drawn on different series; say with label_name (--label-name) which are the label, or leave those of one "
            "series in the folder"
        )
    grid = read_grid(next(iter(distinct.values())).series)
    facts = [
        grid.shape,
        grid.affine.tolist(),
        sorted(wanted.items()),
        *distinct,
    ]
    path = out / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}.nii.gz"
    if not path.is_file():
        save_volume(Volume(_label_map(said, wanted, grid)[..., None], grid.affine, ("label",), None), path)
    return path


def _label_map(said: Mapping[str, _Object], wanted: Mapping[str, int], grid: Grid) -> np.ndarray:
    values = np.zeros(grid.shape, np.uint8 if max(wanted.values()) < 256 else np.uint16)
    masks = {id(each): _masks(each, grid, wanted) for each in {id(each): each for each in said.values()}.values()}
    for name, each in said.items():
        mask = masks[id(each)][name]
        if overlap := int(np.count_nonzero((values != 0) & (values != wanted[name]) & mask)):
            raise InputError(
                f"{overlap:,} voxels of the structure {each.names[name]} belong to other structures, too; say with label_name (--label-name) which "
                'structures are the label, such as --label-name "gtv*"'
            )
        values[mask] = wanted[name]
    return values


def _masks(item: _Object, grid: Grid, wanted: Mapping[str, int]) -> dict[str, Bool[np.ndarray, "x y z"]]:
    """The object's masks on the grid, by the structures' names in lower case; several of one name are one mask."""
    masks: dict[str, np.ndarray] = {}
    if item.ref.format == "DICOM SEG":
        numbers = {
            segment.number: _plain(segment.label or f"segment {segment.number}")
            for segment in read_segmentation(item.ref.files[0]).segments
        }
        volume = load_segmentation(item.ref.files[0], like=grid)
        parts = [(name, volume.array[..., place] > 0) for place, name in enumerate(numbers.values())]
    else:
        parts = []
        for structure in read_contours(item.ref.files[0]):
            if structure.contours and _plain(structure.name) in wanted:
                drawn = draw(structure, grid)
                parts.append((_plain(structure.name), drawn.mask))
                lost = {why: count for why, count in drawn.left_out.items() if not why.startswith("of ")}
                if lost:
                    said = ", ".join(f"{count} {why}" for why, count in lost.items())
                    warnings.warn(f"{item.ref.files[0]}: contours of {structure.name} are not drawn: {said}", RuntimeWarning, stacklevel=2)
    for name, mask in parts:
        masks[name] = masks[name] | mask if name in masks else mask
    return masks
