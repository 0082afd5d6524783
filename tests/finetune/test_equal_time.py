"""Arms that are given another's wall time: steps that follow from measured seconds, once, whatever is measured later."""

import dataclasses
import json

import pytest

from finetune.few_label.arms import arms_of, pairs_of
from finetune.few_label.cells import grid_of
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.equal_time import seconds_per_step, stated_seconds, steps_of_cell
from jaxseg.errors import ConfigError, InputError


def put(folder, cell, **budget):
    (folder / cell.name).mkdir(parents=True, exist_ok=True)
    (folder / cell.name / "cell.json").write_text(json.dumps({"status": "done", "budget": budget}))


@pytest.fixture
def grid(tmp_path):
    """A pretraining of 600 s, a pretrained cell of 200 s, and scratch that compiles for 20 s and takes 2 s a step."""
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae" / "log.jsonl").write_text(
        '{"step": 10, "loss": 1.0, "seconds": 300.0}\n{"step": 20, "loss": 1.0, "seconds": 600.0}\n'
    )
    config = FewLabelConfig(pretrained=(str(tmp_path / "mae" / "model"),), arms=("scratch", "pretrained", "equal_time"))
    cells = grid_of(arms_of(config.arms, config.pretrained), (1,), (0,), (0,))
    return config, {cell.arm.name: cell for cell in cells}, tmp_path / "cells"


def test_the_steps_fill_the_wall_time_of_fine_tuning_and_pretraining(grid):
    config, cells, folder = grid
    assert steps_of_cell(folder, cells["equal_time"], config) is None  # nothing to work it out from
    put(folder, cells["pretrained"], seconds=200.0, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=120.0, steps=50, seconds_per_step=2.0)
    found = steps_of_cell(folder, cells["equal_time"], config)
    assert found is not None
    assert (found["steps"], found["seconds"], found["of_pretraining"], found["of_finetuning"]) == (375, 750.0, 600.0, 150.0)


@pytest.mark.parametrize("compiling", [0.0, 50.0])
def test_what_a_cell_took_to_compile_buys_no_steps_and_costs_none(grid, compiling):
    """A pretrained cell may find the program compiled where scratch compiled it, or the other way round."""
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=150.0 + compiling, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=150.0 - compiling, steps=50, seconds_per_step=2.0)
    found = steps_of_cell(folder, cells["equal_time"], config)
    assert found is not None and found["steps"] == (50 * 3 + 600) / 2


def test_seconds_that_are_stated_differently_later_are_refused(grid):
    """Also of a cell that has its steps already: the log's seconds may grow, what is said may not change unnoticed."""
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=200.0, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=120.0, steps=50, seconds_per_step=2.0)
    said = dataclasses.replace(config, pretraining_seconds=(100.0,))
    first = steps_of_cell(folder, cells["equal_time"], said)
    assert steps_of_cell(folder, cells["equal_time"], said) == first
    with pytest.raises(ConfigError, match=r"pretraining_seconds of 100, now it is 300; set it back"):
        steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_seconds=(300.0,)))
    with pytest.raises(ConfigError, match=r"pretraining_seconds of 100, now it is not stated"):
        steps_of_cell(folder, cells["equal_time"], config)


def test_seconds_are_those_of_the_folder_whatever_signs_its_name_has():
    given = ("runs/lr=0.1/mae", "jepa=runs/lr=0.2/jepa")
    assert [arm.init for arm in arms_of(("pretrained",), given)] == ["runs/lr=0.1/mae", "runs/lr=0.2/jepa"]
    stated = stated_seconds(FewLabelConfig(pretrained=given, pretraining_seconds=(3.0, 4.0)))
    assert stated == {"runs/lr=0.1/mae": 3.0, "runs/lr=0.2/jepa": 4.0}


@pytest.mark.parametrize("arm", ["pretrained", "scratch"])
def test_seconds_of_cells_that_trained_side_by_side_say_nothing(grid, arm):
    """They are a share of what several took together."""
    config, cells, folder = grid
    for each in ("pretrained", "scratch"):
        shared = {"side_by_side": 4} if each == arm else {}
        put(folder, cells[each], seconds=200.0, steps=50, seconds_per_step=3.0, **shared)
    with pytest.raises(InputError, match=f"{arm}/n001-draw0-seed0: 4 cells were trained side by side.*steps of equal_time"):
        steps_of_cell(folder, cells["equal_time"], config)
    assert not (folder / cells["equal_time"].name / "steps.json").exists()


def test_what_was_worked_out_stays_when_seconds_are_measured_again(grid):
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=200.0, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=120.0, steps=50, seconds_per_step=2.0)
    first = steps_of_cell(folder, cells["equal_time"], config)
    put(folder, cells["scratch"], seconds=12.0, steps=50, seconds_per_step=0.2)
    assert steps_of_cell(folder, cells["equal_time"], config) == first
    with pytest.raises(ConfigError, match=r"pretraining_share 1.0, now it is 0.5"):
        steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_share=0.5))


def test_steps_of_another_pretraining_are_refused(grid):
    """Under the same path, perhaps longer: its time is another, and the steps are those of the one before."""
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=200.0, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=120.0, steps=50, seconds_per_step=2.0)
    card = folder.parent / "mae" / "model" / "model.json"
    card.parent.mkdir()
    card.write_text("{}")
    first = steps_of_cell(folder, cells["equal_time"], config)
    assert steps_of_cell(folder, cells["equal_time"], config) == first
    card.write_text('{"another": 1}')
    with pytest.raises(ConfigError, match="worked out from the time of another pretraining"):
        steps_of_cell(folder, cells["equal_time"], config)


def test_a_share_of_the_pretraining_and_cells_without_a_pace(grid):
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=200.0, steps=50)
    put(folder, cells["scratch"], seconds=100.0, steps=50)
    found = steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_share=0.1))
    assert found is not None and (found["steps"], found["seconds"]) == (130, 260.0)


def test_a_pretraining_whose_time_nobody_knows_is_said_by_the_user(grid, tmp_path):
    config, cells, folder = grid
    (tmp_path / "mae" / "log.jsonl").unlink()
    put(folder, cells["pretrained"], seconds=200.0, steps=50)
    put(folder, cells["scratch"], seconds=100.0, steps=50)
    with pytest.raises(ConfigError, match="--pretraining-seconds"):
        steps_of_cell(folder, cells["equal_time"], config)
    with pytest.raises(ConfigError, match="2 numbers for 1 pretrainings"):
        steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_seconds=(1.0, 2.0)))
    found = steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_seconds=(100.0,)))
    assert found is not None and found["steps"] == 150


def test_compiling_does_not_count_as_steps():
    log = [{"step": 10, "loss": 1.0, "seconds": 40.0}, {"step": 20, "loss": 1.0, "seconds": 60.0}, {"step": 20, "evaluation": {}}]
    assert seconds_per_step(log) == 2.0
    assert seconds_per_step(log[:1]) == 4.0
    again = [{"step": 21, "loss": 1.0, "seconds": 92.0}, {"step": 30, "loss": 1.0, "seconds": 110.0}]
    assert seconds_per_step([*log, *again]) == 2.0  # gone on with after step 20: 30 s of compiling before the next one
    assert seconds_per_step([*log, {"step": 30, "loss": 1.0, "seconds": 110.0}]) == 2.0


def test_an_arm_of_equal_time_needs_the_arms_that_say_the_time():
    with pytest.raises(ConfigError, match="ask for those"):
        arms_of(("pretrained", "scratch", "resenc_time"), ("a",))
    arms = arms_of(("scratch", "pretrained", "resenc", "resenc_time", "mean_teacher"), ("mae=a", "jepa=b"))
    assert {arm.name: (arm.given, arm.init) for arm in arms if arm.kind == "resenc_time"} == {
        "resenc_time_mae": ("pretrained_mae", ""),
        "resenc_time_jepa": ("pretrained_jepa", ""),
    }
    pairs = pairs_of(arms)
    assert len(set(pairs)) == len(pairs)
    assert {("pretrained_mae", "resenc_time_mae"), ("pretrained_mae", "resenc"), ("mean_teacher_mae", "pretrained_mae")} <= set(pairs)
    assert not {("pretrained_mae", "resenc_time_jepa"), ("mean_teacher_mae", "pretrained_jepa"), ("scratch", "scratch")} & set(pairs)
