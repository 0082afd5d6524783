"""What two collections of scans have in common: equal files, equal voxels, scans that look alike, and patients. Called by `audit` and training.

A collection is an index, a store, or what a model card says of its training data.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.archive.patients import owner_of, patient_key
from jaxseg.data.archive.scan_row import Row
from jaxseg.data.archive.table import Index, metadata
from jaxseg.data.archive.walk import folder_of
from jaxseg.data.bids import patient_of_bids
from jaxseg.data.cases import Case
from jaxseg.data.catalog import Store
from jaxseg.data.fingerprint import split, unpack
from jaxseg.data.io.scans import stem
from jaxseg.data.scan_names import numbers_are_channels
from jaxseg.data.staging import content_of
from jaxseg.errors import InputError

LIKENESS = 0.93  # of two fingerprints; see docs/robustness.md for what was measured
EXTENT = 0.06  # relative difference of the anatomy's extents, in each direction
_BLOCK = 2048


@dataclass(frozen=True)
class Scan:
    """One scan (or case) of a collection.

    Attributes:
        name: how messages call it: a key or a row, never a path.
        patients: keys and names by which its patient may be known; compared, never shown.
        hashes: SHA-256 of its images' files and of their voxels.
        looks: fingerprints of its images.
    """

    name: str
    patients: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    looks: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Overlap:
    """Two scans that two collections share; `kind` is "same content", "near copy" or "same patient", `likeness` 1 but for near copies."""

    kind: str
    first: str
    second: str
    likeness: float = 1.0


@dataclass(frozen=True)
class Overlaps:
    """All overlaps of two collections; false where there are none."""

    found: tuple[Overlap, ...]
    sizes: tuple[int, int] = field(default=(0, 0))

    def __bool__(self) -> bool:
        return bool(self.found)

    @property
    def contents(self) -> tuple[Overlap, ...]:
        """Those that share voxels or nearly do, whoever the patient is."""
        return tuple(overlap for overlap in self.found if overlap.kind != "same patient")

    def counts(self) -> dict[str, int]:
        """How many of each kind, and how many scans were compared."""
        kinds = {kind: sum(overlap.kind == kind for overlap in self.found) for kind in ("same content", "near copy", "same patient")}
        return {"pretrain": self.sizes[0], "test": self.sizes[1], **kinds}

    def lines(self) -> list[str]:
        """One sentence an overlap, without a path or a name."""
        return [
            f"{overlap.kind}: {overlap.first} and {overlap.second}"
            + (f" (likeness {overlap.likeness:.3f})" if overlap.likeness < 1 else "")
            for overlap in self.found
        ]

    def to_json(self) -> dict[str, Any]:
        """Counts and every overlap."""
        return {**self.counts(), "overlaps": [overlap.__dict__ for overlap in self.found]}


def scans_of_index(index: Index) -> list[Scan]:
    """The images of an index that may be trained on. Patients are compared by name, since every index salts its keys differently."""
    about = metadata(index.folder / "scans.parquet")
    columns = ("path", "ok", "root", "format", "modality", "patient", "sha256", "voxel_hash", "perceptual")
    scans, roots = [], index.roots
    for number, row, numbered in _with_siblings(index.stream(columns)):
        if not row["ok"] or row["modality"] in ("label", "mask"):
            continue
        owner = owner_of(Path(row["path"]), roots[row["root"]], numbered=numbered).patient
        names = {row["patient"]} | ({owner, patient_key(owner)} if patient_key(owner, about["salt"]) == row["patient"] else set())
        looks = split(row["perceptual"] or b"")
        scans.append(Scan(f"row {number} (patient {row['patient']})", frozenset(names), _set(row["sha256"], row["voxel_hash"]), looks))
    return scans


def _with_siblings(rows: Iterable[Row]) -> Iterator[tuple[int, Row, bool]]:
    """Row after row with its number, and whether numbers in the names of its folder are channels (`numbers_are_channels`)."""
    for _, group in groupby(enumerate(rows), key=lambda item: (item[1]["root"], folder_of(Path(item[1]["path"]), item[1]["format"]))):
        together = list(group)
        numbered = numbers_are_channels({stem(Path(row["path"])) for _, row in together if row["format"] != "archive"})
        yield from ((number, row, numbered) for number, row in together)


def scans_of_store(store: Store, names: Sequence[str] | None = None) -> list[Scan]:
    """The cases of a store (all, or those named)."""
    entries = [store.entry(name) for name in (store.names if names is None else names)]
    return [_from_content(entry.name, _known_by(entry.patient), entry.info.get("content", {}), [entry.inputs]) for entry in entries]


def scans_of_cases(cases: Iterable[Case]) -> list[Scan]:
    """Cases of a folder, read for this; one that cannot be read is known by its patient alone."""
    scans = []
    for case in cases:
        try:
            content = content_of(case)
        except InputError:
            content = {}
        scans.append(_from_content(case.id, _known_by(case.id), content, []))
    return scans


def scans_of_card(card: dict[str, Any]) -> list[Scan]:
    """The scans that a model card says it was trained on; cards of older versions know equal cases of equal recipes alone.

    A card does not say which hash and which content are of one case, so that a case may stand here as two scans (`cases_of_card` counts it once). Nor
    does it know patients: the keys of its hashes are none, but for cards of older versions.
    """
    training = card.get("training") or {}
    data = (training.get("data") or {}).items()
    scans = [_from_content(f"training scan {key}", set() if inputs.startswith(key) else {key}, {}, [inputs]) for key, inputs in data]
    return scans + [
        _from_content(f"training scan {number}", set(), content, []) for number, content in enumerate(training.get("scans") or ())
    ]


def probed_of_card(card: dict[str, Any]) -> list[Scan]:
    """The labelled scans that a pretraining's card says its probe looked at, as `scans_of_card` has those that were learnt from."""
    return scans_of_card({"training": (card.get("training") or {}).get("probed")})


def cases_of_card(card: dict[str, Any]) -> int:
    """How many cases a model card says it was trained on: hashes and contents are of the same ones, though each may lack some."""
    training = card.get("training") or {}
    return max(len(training.get("data") or ()), len(training.get("scans") or ()))


def find_overlaps(first: Sequence[Scan], second: Sequence[Scan], *, likeness: float = LIKENESS, extent: float = EXTENT) -> Overlaps:
    """Every pair of scans with equal content, else nearly equal content, else the same patient.

    Near copies survive re-compression, another number type, intensity scaling and a cropped margin of a voxel; two images of one head in
    one session may count as near copies too. Time grows with the product of the sizes (a million pairs of fingerprints a second).
    """
    pairs = {pair: Overlap("same content", *_names(first, second, pair)) for pair in _sharing(first, second, "hashes")}
    for pair, alike in _alike(first, second, likeness, extent).items():
        pairs.setdefault(pair, Overlap("near copy", *_names(first, second, pair), round(alike, 4)))
    for pair in _sharing(first, second, "patients"):
        pairs.setdefault(pair, Overlap("same patient", *_names(first, second, pair)))
    return Overlaps(tuple(pairs[pair] for pair in sorted(pairs)), (len(first), len(second)))


def _names(first: Sequence[Scan], second: Sequence[Scan], pair: tuple[int, int]) -> tuple[str, str]:
    return first[pair[0]].name, second[pair[1]].name


def _sharing(first: Sequence[Scan], second: Sequence[Scan], what: str) -> Iterable[tuple[int, int]]:
    places: dict[str, list[int]] = {}
    for place, scan in enumerate(first):
        for value in getattr(scan, what):
            places.setdefault(value, []).append(place)
    return sorted({(one, other) for other, scan in enumerate(second) for value in getattr(scan, what) for one in places.get(value, ())})


def _alike(first: Sequence[Scan], second: Sequence[Scan], likeness: float, extent: float) -> dict[tuple[int, int], float]:
    looks = [(place, look) for place, scan in enumerate(first) for look in scan.looks]
    other_looks = [(place, look) for place, scan in enumerate(second) for look in scan.looks]
    if not looks or not other_looks:
        return {}
    vectors, sizes = unpack([look for _, look in looks])
    rest, rest_sizes = unpack([look for _, look in other_looks])
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(vectors), _BLOCK):
        products = vectors[start : start + _BLOCK] @ rest.T
        for one, other in zip(*np.nonzero(products > likeness), strict=True):
            apart = np.abs(np.log(sizes[start + one] / rest_sizes[other])).max()
            if apart < extent:
                pair = looks[start + one][0], other_looks[other][0]
                found[pair] = max(found.get(pair, 0.0), min(1.0, float(products[one, other])))
    return found


def _known_by(patient: str) -> set[str]:
    """The names and keys of a patient; a case id of BIDS is one of several of its subject."""
    return {known for name in (patient, patient_of_bids(patient)) for known in (name, patient_key(name))}


def _from_content(name: str, patients: set[str], content: dict[str, Any], hashes: list[str]) -> Scan:
    looks = [look for joined in content.get("looks", ()) for look in split(base64.b64decode(joined))]
    known = _set(*content.get("sha256", ()), *content.get("voxels", ()), *hashes)
    return Scan(name, frozenset(patients), known, tuple(looks))


def _set(*values: str | None) -> frozenset[str]:
    return frozenset(value for value in values if value)
