"""Steps of an arm that is given another's wall time: worked out once from measured seconds, kept in the cell's folder, read from there ever after.

Called by `study`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.few_label.arms import PACED, Arm
from finetune.few_label.cells import DONE, Cell
from finetune.few_label.config import FewLabelConfig
from jaxseg.errors import ConfigError
from jaxseg.files import read_json, write_json
from jaxseg.train.log import read_log

STEPS = "steps.json"  # in a cell's folder


def steps_of_cell(folder: Path, cell: Cell, config: FewLabelConfig) -> dict[str, Any] | None:
    """How many steps the cell is given and why, as kept in `FOLDER/CELL/steps.json`; None while the cells it follows from are not done.

    Of the pretrained arm's cell at the same (N, draw, seed) the seconds count, and of the pretraining's its share; of the cell whose network
    this is, the seconds a step and those before the first one (compiling), so that two runs of equal seconds did the same amount of work on
    the machines that measured them.
    """
    path = folder / cell.name / STEPS
    if path.is_file():
        record = read_json(path)
        if record["pretraining_share"] != config.pretraining_share:
            raise ConfigError(
                f"{path}: worked out with pretraining_share {record['pretraining_share']}, now it is {config.pretraining_share}; set it back, or "
                f"remove the folder {path.parent} to train this cell anew"
            )
        return record
    paid, pace = (_done(folder, Cell(Arm(name, ""), cell.labels, cell.draw, cell.seed)) for name in (cell.arm.given, PACED[cell.arm.kind]))
    if paid is None or pace is None:
        return None
    pretraining = config.pretraining_share * seconds_of_pretraining(cell.arm.pretraining, config)
    seconds = paid["seconds"] + pretraining
    # Cells of before kept no pace: compiling counts as steps there.
    step = pace.get("seconds_per_step", pace["seconds"] / max(1, pace["steps"]))
    start = max(0.0, pace["seconds"] - pace["steps"] * step)
    record = {
        "steps": max(1, int((seconds - start) / max(step, 1e-9))),
        "seconds": round(seconds, 1),
        "pretraining_share": config.pretraining_share,
        "of_pretraining": round(pretraining, 1),
        "of_finetuning": paid["seconds"],
        "seconds_per_step": step,
        "seconds_before_first": round(start, 1),
        "time_of": cell.arm.given,
        "pace_of": PACED[cell.arm.kind],
    }
    write_json(path, record)
    return record


def seconds_of_pretraining(init: str, config: FewLabelConfig) -> float:
    """Wall time of a pretraining: as `config.pretraining_seconds` says, or else its log. ConfigError where neither knows."""
    found = stated_seconds(config).get(init, logged_seconds(init))
    if found is None:
        raise ConfigError(f"{init}: no log of this pretraining says how long it took; say it with --pretraining-seconds SECONDS")
    return found


def stated_seconds(config: FewLabelConfig) -> dict[str, float]:
    """Pretraining folder → its wall time, as the settings say it; ConfigError unless there is one for each, or none at all."""
    folders = [given.partition("=")[2] or given for given in config.pretrained]
    if config.pretraining_seconds and len(config.pretraining_seconds) != len(folders):
        raise ConfigError(
            f"pretraining_seconds has {len(config.pretraining_seconds)} numbers for {len(folders)} pretrainings; give one each"
        )
    return dict(zip(folders, config.pretraining_seconds))


def logged_seconds(init: str) -> float | None:
    """Wall time in the log of a run folder, or of the one around a model folder; None where there is none."""
    for folder in (Path(init), Path(init).parent):
        if (folder / "log.jsonl").is_file():
            return seconds_in(read_log(folder / "log.jsonl"))
    return None


def seconds_in(log: Sequence[dict[str, Any]]) -> float:
    """Seconds of training that a run's log counts, over all its sessions."""
    return max((line.get("seconds", 0.0) for line in log), default=0.0)


def seconds_per_step(log: Sequence[dict[str, Any]]) -> float:
    """Seconds a step between the first line and the last, so that compiling does not count; the mean of all steps where there is one line only."""
    lines = [(line["step"], line["seconds"]) for line in log if "loss" in line]
    if not lines:
        return 0.0
    (first, begin), (last, end) = lines[0], lines[-1]
    return (end - begin) / (last - first) if last > first else end / max(1, last)


def _done(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / cell.name / "cell.json"
    found = read_json(path) if path.is_file() else {}
    return found["budget"] if found.get("status") == DONE else None
