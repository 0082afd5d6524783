"""`audit`: what a pretraining collection and a test collection have in common; and the refusal to test on what was pretrained on.

Called by `jaxseg audit`, the main job, fine-tuning and the few-label study.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.archive import read_index
from jaxseg.data.archive.patients import is_counted
from jaxseg.data.catalog import open_store
from jaxseg.data.duplicates import Overlaps, Scan, find_overlaps, scans_of_card, scans_of_index, scans_of_store
from jaxseg.errors import ConfigError, InputError
from jaxseg.zoo.folder import CARD, read_card


def audit(pretrain: str | Path, test: str | Path) -> Overlaps:
    """Scans and patients in common of two indexes, stores or (for what it was trained on) model folders.

    Raises:
        InputError: a folder is none of these, or holds nothing that could be compared.
    """
    return find_overlaps(_scans(Path(pretrain)), _scans(Path(test)))


def refuse_overlap(seen: Sequence[Scan], tests: Sequence[Scan], what: str, *, by: str = "pretraining", patients: bool = False) -> None:
    """ConfigError if a training has seen one of the scans to be tested on, or a near copy of one.

    Args:
        seen: what was pretrained on: `scans_of_card(card)` of the model, or `scans_of_store(store)`.
        tests: what is to be tested on: `scans_of_store(store, names)` or `scans_of_cases(cases)`.
        what: how the message calls them, such as "test cases".
        by: how it calls what has seen them.
        patients: refuse other scans of the same patient, too, where case names tell patients apart. Names that only count (case_3) are those of
            different people in any two folders: equal ones are mentioned on standard error.
    """
    overlaps = find_overlaps(seen, tests)
    names = sorted({overlap.second for overlap in overlaps.contents})
    if names:
        raise ConfigError(
            f"{by} has seen {len(names)} of the {len(tests)} {what} ({_shown(names)}), so that scores on them would flatter: leave them out "
            "there (`jaxseg audit` lists them), or say with allow_overlap (--allow-overlap) that this is meant"
        )
    alike = sorted({overlap.second for overlap in overlaps.found}) if patients else []
    names = [name for name in alike if not is_counted(name)]
    if alike and not names:
        print(
            f"jaxseg: {len(alike)} of the {len(tests)} {what} are called like cases of {by} ({_shown(alike)}): taken for other people, as such names "
            "only count",
            file=sys.stderr,
        )
    if names:
        raise ConfigError(
            f"{by} has seen other scans of the patients of {len(names)} of the {len(tests)} {what} ({_shown(names)}), so that scores on them "
            "would flatter: leave these patients out there, rename the cases if they are other people who are called alike, or say with "
            "allow_overlap (--allow-overlap) that this is meant"
        )


def card_of(model: str | Path) -> dict[str, Any]:
    """The card of a model folder, or of the one in a run folder."""
    folder = Path(model)
    return read_card(folder / "model" if (folder / "model" / CARD).is_file() else folder)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _scans(folder: Path) -> list[Scan]:
    if (folder / "store.json").is_file():
        scans = scans_of_store(open_store(folder))
    elif (folder / "scans.parquet").is_file():
        scans = scans_of_index(read_index(folder))
    elif (folder / CARD).is_file() or (folder / "model" / CARD).is_file():
        scans = scans_of_card(card_of(folder))
    else:
        raise InputError(
            f"{folder}: neither an index (scans.parquet), nor a store (store.json), nor a model folder ({CARD})"
            + ("; if it is a folder of scans: `jaxseg index FOLDER --out INDEX`, then the audit of INDEX" if folder.is_dir() else "")
        )
    if not scans:
        raise InputError(f"{folder}: holds no scan that could be compared")
    return scans
