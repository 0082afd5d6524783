"""The cells of a few-label study: their folders, which of them are asked for, and what `cell.json` says of each. Called by `study`."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from finetune.few_label.arms import Arm
from finetune.few_label.config import Labels
from jaxseg.errors import ConfigError
from jaxseg.files import read_json, write_json

DONE, FAILED, NOT_MEASURED, NOT_POSSIBLE = "done", "failed", "not measured", "not possible"
SCORING = ("overlap", "tests")  # settings that training does not depend on
_AXES = {"N": "labels", "draws": "draw", "seeds": "seed", "arms": "arm"}


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    arm: Arm
    labels: Labels
    draw: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder below `OUT/cells`."""
        count = self.labels if self.labels == "all" else f"{self.labels:03d}"
        return f"{self.arm.name}/n{count}-draw{self.draw}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Its place in the grid."""
        return {"arm": self.arm.name, "labels": self.labels, "draw": self.draw, "seed": self.seed}


def grid_of(arms: Sequence[Arm], labels: Sequence[Labels], draws: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """Every cell, those that make the first comparison possible first: all arms of one (draw, seed) and N, then the next N, then the next draw.

    "all" labels are the same whatever the draw: they stand in the first one alone.
    """
    return [
        Cell(arm, count, draw, seed) for seed, draw, count, arm in product(seeds, draws, labels, arms) if count != "all" or draw == draws[0]
    ]


def choose_cells(cells: Sequence[Cell], text: str) -> list[Cell]:
    """The cells that `text` names, such as "N=1,5 draws=0,1 arms=scratch"; an axis that it leaves out is taken whole.

    Raises ConfigError for text of another form, or a value that the grid does not have.
    """
    wanted: dict[str, set[str]] = {}
    for part in text.split():
        found = re.fullmatch(r"(\w+)=([\w,]+)", part)
        if not found or found[1] not in _AXES:
            raise ConfigError(f'cells: cannot read {part!r}; expected something like "N=1,5 draws=0,1 seeds=0 arms=scratch,pretrained"')
        key, values = _AXES[found[1]], set(found[2].split(","))
        known = {str(cell.to_json()[key]) for cell in cells}
        if not values <= known:
            raise ConfigError(f"cells: the grid has no {found[1]}={', '.join(sorted(values - known))}; it has {', '.join(sorted(known))}")
        wanted[key] = values
    chosen = [cell for cell in cells if all(str(cell.to_json()[key]) in values for key, values in wanted.items())]
    if not chosen:
        raise ConfigError(f'cells: {text!r} names no cell; "all" labels are the same in every draw and stand in draw {cells[0].draw} alone')
    return chosen


def read_cell(folder: Path, cell: Cell, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is known of a cell: its place, `status` and, if done, its scores; "not measured" where there is no `cell.json`.

    Args:
        folder: `OUT/cells`.
        settings: what it would be measured with now, if that is to be compared.

    Raises ConfigError for a cell that was measured with other settings; one that failed has no score, and may be tried with others.
    """
    file = folder / cell.name / "cell.json"
    if not file.is_file():
        return {**cell.to_json(), "status": NOT_MEASURED}
    found = read_json(file)
    if settings is not None and found["status"] == DONE and found["settings"] != settings:
        changed = sorted(key for key in {*settings, *found["settings"]} if settings.get(key) != found["settings"].get(key))
        raise ConfigError(f"{file}: measured with other settings ({', '.join(changed)}); set these back, or choose another --out")
    return found


def clear_failed(folder: Path, cell: Cell, settings: dict[str, Any], *, keep: Sequence[str] = ()) -> None:
    """Empty the folder of a cell that failed with other settings than these, but for the files `keep`: its run could not go on with these.

    What only says how it is scored (`SCORING`) empties nothing: the training is gone on with.
    """
    before = read_json(folder / cell.name / "cell.json")["settings"]
    if all(before.get(key) == settings.get(key) for key in {*before, *settings} - {*SCORING}):
        return
    for path in (folder / cell.name).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def write_cell(folder: Path, cell: Cell, settings: dict[str, Any], status: str, **facts: Any) -> dict[str, Any]:
    """Keep the outcome of a cell, with what it was measured with; returns it."""
    outcome = {**cell.to_json(), "status": status, **facts, "settings": settings}
    write_json(folder / cell.name / "cell.json", outcome)
    return outcome
