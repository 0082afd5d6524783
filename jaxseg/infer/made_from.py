"""The label files of a folder, and of what each was made: kept only where the same would be made again. Called by `folder`.

Beside the predictions `ID.nii.gz` a hidden folder `.made_from` holds one small JSON file for each: that it is unfinished while it is written, then hashes
and settings, no path. So several processes may fill in one folder, a kill costs one case at most, `evaluate` sees label files
alone, and predictions that lie below the scans are not taken for scans.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxseg.data.case_folders import MADE_FROM
from jaxseg.data.cases import Case
from jaxseg.data.io import save_volume
from jaxseg.data.recipe import Recipe
from jaxseg.data.staging import file_stem, inputs_hash
from jaxseg.data.volume import Volume
from jaxseg.errors import InputError
from jaxseg.files import read_json, storage_errors, write_json
from jaxseg.zoo import Model

# Raised when segmenting the same scan with the same model comes to mean something else.
FORMAT = 1

Origin = dict[str, Any]


def origin_of(case: Case, model: Model, recipe: Recipe, *, overlap: float, skip_air: bool = True) -> Origin:
    """Of what a prediction is made, in JSON values: the model's weights, the settings, and the scan's files with how they are prepared.

    Raises InputError where a file of the case is missing.
    """
    labels = hashlib.sha256(json.dumps([list(recipe.labels.items()), recipe.regions]).encode()).hexdigest()
    # Segmenting reads neither a label nor masks of anonymisation.
    scan = dataclasses.replace(case, label=None, anonymised=())
    return {
        "format": FORMAT,
        "weights": model.card.get("weights", {}).get("sha256"),
        "overlap": overlap,
        **({} if skip_air else {"skip_air": False}),
        "crop": list(model.card["crop"]),
        "labels": labels,
        "scan": inputs_hash(scan, recipe),
    }


class Predictions:
    """The label files below a folder, by case."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, case: Case) -> Path:
        """Where the labels of a case lie, or would."""
        return self.folder / f"{case.id}.nii.gz"

    def refuse_inputs(self, case: Case) -> None:
        """InputError where the labels of a case would be written over one of the files that it consists of."""
        files = [*case.images.values(), case.label, case.mask, *case.anonymised]
        if self.path(case).resolve() in {path.resolve() for path in files if path is not None}:
            raise InputError(
                f"{self.path(case)}: this file belongs to case {case.id}, and its labels would be written over it; choose another --out"
            )

    def refuse_strange(self, case: Case) -> None:
        """InputError where the labels of a case would replace a file that was not made here: perhaps somebody's contours."""
        if self.path(case).is_file() and not self._record(case).is_file():
            raise InputError(
                f"{self.path(case)}: this file was not written by this version of segment, and the labels of case {case.id} would be written over it; move "
                "it away, or choose another --out"
            )

    def holds(self, case: Case, origin: Origin, *, allow_missing: bool) -> bool:
        """Whether the labels of a case are there and were made of just this; never for a model in memory, whose weights nobody has hashed.

        Args:
            allow_missing: whether labels of a scan that lacked channels of the model will do.
        """
        if origin["weights"] is None or not self.path(case).is_file():
            return False
        try:
            found = read_json(self._record(case))
        except InputError:
            return False
        lacked = isinstance(found, dict) and bool(found.pop("lacked_channels", False))
        return found == origin and (allow_missing or not lacked)

    def write(self, case: Case, labels: Volume, origin: Origin, *, lacked_channels: bool) -> None:
        """Put the labels of a case in the place of any others, and note what they were made of.

        Raises StorageError where that cannot be written.
        """
        # Meanwhile the record must not say of the new labels what was true of the old, nor be missing, as that of a file of unknown origin is.
        write_json(self._record(case), {"unfinished": True})
        save_volume(labels, self.path(case), like=labels.source)
        write_json(self._record(case), {**origin, "lacked_channels": lacked_channels})

    def remove(self, case: Case) -> None:
        """Take away labels that this model would not make, so that nobody takes them for its own."""
        with storage_errors(self.folder):
            self.path(case).unlink(missing_ok=True)
            self._record(case).unlink(missing_ok=True)

    def _record(self, case: Case) -> Path:
        return self.folder / MADE_FROM / f"{file_stem(case.id)}.json"
