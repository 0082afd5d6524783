"""Steps of an arm that is given another's wall time: worked out once from measured seconds, kept in the cell's folder, read from there ever after.

Called by `study`.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from finetune.few_label.arms import PACED, Arm, named_folder
from finetune.few_label.cells import DONE, Cell
from finetune.few_label.config import FewLabelConfig
from finetune.side_by_side import SIDE_BY_SIDE
from jaxseg.errors import ConfigError, InputError
from jaxseg.files import read_json, sha256_of, write_json
from jaxseg.train.log import read_log

STEPS = "steps.json"  # in a cell's folder


def steps_of_cell(folder: Path, cell: Cell, config: FewLabelConfig) -> dict[str, Any] | None:
    """How many steps the cell is given and why, as kept in `FOLDER/CELL/steps.json`; None while the cells it follows from are not done.

    Of the pretrained arm's cell at the same (N, draw, seed) the seconds of its steps count, and of the pretraining's its share; of the cell whose
    network this is, the seconds a step. What either took before its first step is left out: whether a program was compiled or found compiled says
    nothing of the work done. Where one of the two keeps no seconds a step (cells of before), all the seconds of both count as steps.

    Raises ConfigError where the steps were worked out with another `pretraining_share` or `pretraining_seconds` than those of now, InputError
    where they would follow from cells that were trained side by side: the seconds of these are a share, and no time that a cell takes alone.
    """
    path = folder / cell.name / STEPS
    if path.is_file():
        record = read_json(path)
        _refuse_changed(path, record, cell.arm.pretraining, config)
        return record
    places = [Cell(Arm(name, ""), cell.labels, cell.draw, cell.seed) for name in (cell.arm.given, PACED[cell.arm.kind])]
    paid, pace = (_done(folder, place) for place in places)
    if paid is None or pace is None:
        return None
    for place, budget in zip(places, (paid, pace)):
        if SIDE_BY_SIDE in budget:
            raise InputError(
                f"{folder / place.name}: {budget[SIDE_BY_SIDE]} cells were trained side by side, so that none has seconds of its own, and the steps of "
                f"{cell.arm.name} follow from such; remove this folder, train the cell again with stack at 1, and then this one (--retry-failed)"
            )
    pretraining = config.pretraining_share * seconds_of_pretraining(cell.arm.pretraining, config)
    known = all("seconds_per_step" in budget for budget in (paid, pace))
    finetuning, step = (budget["seconds_per_step"] if known else budget["seconds"] / max(1, budget["steps"]) for budget in (paid, pace))
    finetuning *= paid["steps"]
    record = {
        "steps": max(1, int((finetuning + pretraining) / max(step, 1e-9))),
        "seconds": round(finetuning + pretraining, 1),
        "pretraining_share": config.pretraining_share,
        "pretraining_seconds": stated_seconds(config).get(cell.arm.pretraining),
        "pretraining": hash_of_pretraining(cell.arm.pretraining),
        "of_pretraining": round(pretraining, 1),
        "of_finetuning": round(finetuning, 1),
        "seconds_per_step": step,
        "time_of": cell.arm.given,
        "pace_of": PACED[cell.arm.kind],
    }
    write_json(path, record)
    return record


def _refuse_changed(path: Path, record: dict[str, Any], pretraining: str, config: FewLabelConfig) -> None:
    """ConfigError if what the settings say of the pretraining's time is not what the steps in `path` were worked out with."""
    share, stated = config.pretraining_share, stated_seconds(config).get(pretraining)
    back = f"set it back, or remove the folder {path.parent} to train this cell anew"
    if record["pretraining_share"] != share:
        raise ConfigError(f"{path}: worked out with pretraining_share {record['pretraining_share']}, now it is {share}; {back}")
    if "pretraining" in record and record["pretraining"] != hash_of_pretraining(pretraining):
        raise ConfigError(f"{path}: worked out from the time of another pretraining than that in {pretraining} now; {back}")
    # Records of before do not say whether their seconds were stated, or those of a log.
    same = record.get("pretraining_seconds") is None if stated is None else record["of_pretraining"] == round(share * stated, 1)
    if not same:
        then = record["of_pretraining"] / share if share else record.get("pretraining_seconds")
        now = "not stated" if stated is None else f"{stated:g}"
        raise ConfigError(f"{path}: worked out with pretraining_seconds of {then:g}, now it is {now}; {back}")


def hash_of_pretraining(init: str) -> str | None:
    """SHA-256 of the card of a pretraining, in its run folder or the model folder itself; None where there is none."""
    cards = (Path(init) / "model" / "model.json", Path(init) / "model.json")
    return next((sha256_of(card) for card in cards if card.is_file()), None) if init else None


def seconds_of_pretraining(init: str, config: FewLabelConfig) -> float:
    """Wall time of a pretraining: as `config.pretraining_seconds` says, or else its log. ConfigError where neither knows."""
    found = stated_seconds(config).get(init, logged_seconds(init))
    if found is None:
        raise ConfigError(f"{init}: no log of this pretraining says how long it took; say it with --pretraining-seconds SECONDS")
    return found


def stated_seconds(config: FewLabelConfig) -> dict[str, float]:
    """Pretraining folder → its wall time, as the settings say it; ConfigError unless there is one for each, or none at all."""
    folders = [named_folder(given)[1] for given in config.pretrained]
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
    """Seconds a step, as half of all steps took or less: of those between neighbouring lines, a median over steps.

    So compiling does not count, at the start or when a run was gone on with, nor what else comes now and then (an evaluation, a save). The mean of
    all steps where there is one line only.
    """
    lines = [(line["step"], line["seconds"]) for line in log if "loss" in line]
    paces = sorted(((end - begin) / (last - first), last - first) for (first, begin), (last, end) in pairwise(lines) if last > first)
    if not paces:
        return lines[-1][1] / max(1, lines[-1][0]) if lines else 0.0
    half, seen = sum(steps for _, steps in paces) / 2, accumulate(steps for _, steps in paces)
    return next(pace for (pace, _), steps in zip(paces, seen) if steps >= half)


def _done(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = folder / cell.name / "cell.json"
    found = read_json(path) if path.is_file() else {}
    return found["budget"] if found.get("status") == DONE else None
