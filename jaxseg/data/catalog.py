"""A store opened for reading: what its manifest `store.json` says, and the memory maps of its cases.

`store.build_store` makes one; training, evaluation and the report open it with `open_store`.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cache import AGAIN, CaseArrays, damaged_files, open_cache
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.recipe import Recipe
from jaxseg.data.records import damaged
from jaxseg.errors import InputError
from jaxseg.files import read_json

VERSION = 1
# Each open case holds three file descriptors, and a process may often have no more than 1024.
OPEN_CASES = 128


@dataclass(frozen=True, eq=False)
class Entry:
    """What `store.json` says about one case. `shape` in voxels, `spacing` in mm, `affine` (4, 4) voxel → RAS+ mm.

    `present` says which channels the case has; `air` is each channel's value outside the body, which padding repeats;
    `label_counts` counts voxels by label value, None for an unlabelled case; `record` is its place in the dataset.
    """

    name: str
    file: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray
    present: tuple[bool, ...]
    air: tuple[float, ...]
    patient: str
    label_counts: dict[int, int] | None
    inputs: str
    record: int
    info: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return self.label_counts is not None

    def to_json(self) -> dict[str, Any]:
        counts = None if self.label_counts is None else {str(value): n for value, n in self.label_counts.items()}
        return {**self.__dict__, "affine": self.affine.tolist(), "label_counts": counts}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Entry":
        counts = data["label_counts"]
        tuples = {key: tuple(data[key]) for key in ("shape", "spacing", "present", "air")}
        label_counts = None if counts is None else {int(value): n for value, n in counts.items()}
        return cls(**{**data, **tuples, "affine": np.asarray(data["affine"], np.float64), "label_counts": label_counts})


class Store:
    """A store that is open for reading. Files are opened when a case is first asked for."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.recipe = _recipe(manifest["recipe"])
        self.dataset: dict[str, Any] = manifest["dataset"]
        self.left_out: list[dict[str, str]] = manifest["left_out"]
        self.rules = Rules(**manifest.get("rules", {}))  # by which its scans were read
        self._entries = {data["name"]: Entry.from_json(data) for data in manifest["cases"]}
        self._open = functools.lru_cache(OPEN_CASES)(self._open_case)

    @property
    def names(self) -> tuple[str, ...]:
        """Case ids in alphabetical order."""
        return tuple(self._entries)

    @property
    def labelled(self) -> tuple[str, ...]:
        """Ids of the cases that have a label."""
        return tuple(name for name, entry in self._entries.items() if entry.labelled)

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """For a model's card: the hash of each case's files and recipe, under its own beginning: a key made of a name could be guessed."""
        return {self.entry(name).inputs[:16]: self.entry(name).inputs for name in names}

    def contents(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """For a model's card: hashes and fingerprints of the cases' images, by which copies are found whatever the recipe; no names."""
        contents = [self.entry(name).info.get("content") for name in names]
        return sorted((content for content in contents if content), key=lambda content: content["sha256"])

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def tfds(self) -> Path:
        return self.path / "tfds"

    def entry(self, name: str) -> Entry:
        """Facts about a case; InputError for a name that is not in the store."""
        if name not in self._entries:
            known = ", ".join(self.names[:5]) + (", …" if len(self.names) > 5 else "")
            raise InputError(f"{self.path}: there is no case {name!r} in this store of {len(self.names)} ({known})")
        return self._entries[name]

    def arrays(self, name: str) -> CaseArrays:
        """Memory maps of a case's image, label and mask, and its foreground voxels; InputError when a file is missing or damaged."""
        return self._open(name)

    def _open_case(self, name: str) -> CaseArrays:
        entry = self.entry(name)
        arrays = open_cache(self.cache, name, entry.files)
        if arrays.image.shape[:3] != entry.shape:
            raise InputError(f"{self.cache}: case {name} has shape {arrays.image.shape[:3]} there, {entry.shape} in store.json; {AGAIN}")
        return arrays

    def verify(self) -> None:
        """Compare every file of cache and dataset with its SHA-256; InputError lists those that differ."""
        wrong = [path for name in self.names for path in damaged_files(self.cache, self.entry(name).files)]
        wrong += damaged(self.tfds, self.dataset["version"], self.dataset["files"])
        if wrong:
            shown = "; ".join(wrong[:10]) + ("; …" if len(wrong) > 10 else "")
            raise InputError(f"{self.path}: {len(wrong)} files are missing or not what was written: {shown}. {AGAIN}")


def open_store(path: str | Path) -> Store:
    """Open the store in a folder; InputError if there is none, or one of another version."""
    path = Path(path)
    file = path / "store.json"
    if not file.is_file():
        raise InputError(f"{path}: there is no store here (no store.json); make one with `jaxseg prepare`")
    manifest = read_json(file)
    found = manifest.get("version") if isinstance(manifest, dict) else None
    if found != VERSION:
        raise InputError(f"{file}: store version {found!r} where this jaxseg reads {VERSION}; prepare it again in a new folder")
    try:
        return Store(path, manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a store's manifest ({type(error).__name__}: {error}); prepare it again in a new folder") from error


def manifest(
    recipe: dict[str, Any], dataset: dict[str, Any], cases: Sequence[Entry], left_out: Sequence[dict[str, str]], rules: Rules = PLAIN
) -> dict[str, Any]:
    """The content of `store.json`."""
    return {
        "version": VERSION,
        "recipe": recipe,
        "dataset": dataset,
        "left_out": list(left_out),
        "cases": [case.to_json() for case in cases],
        **({} if rules == PLAIN else {"rules": asdict(rules)}),
    }


def _recipe(data: dict[str, Any]) -> Recipe:
    tuples = {key: tuple(data[key]) for key in ("channels", "spacing", "intensity")}
    return Recipe(**{**data, **tuples})
