"""Arms that are given another's wall time: steps that follow from measured seconds, once, whatever is measured later."""

import dataclasses
import json

import pytest

from finetune.few_label.arms import arms_of, pairs_of
from finetune.few_label.cells import grid_of
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.equal_time import seconds_per_step, steps_of_cell
from jaxseg.errors import ConfigError


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
    assert (found["steps"], found["seconds"], found["of_pretraining"], found["seconds_before_first"]) == (390, 800.0, 600.0, 20.0)


def test_what_was_worked_out_stays_when_seconds_are_measured_again(grid):
    config, cells, folder = grid
    put(folder, cells["pretrained"], seconds=200.0, steps=50, seconds_per_step=3.0)
    put(folder, cells["scratch"], seconds=120.0, steps=50, seconds_per_step=2.0)
    first = steps_of_cell(folder, cells["equal_time"], config)
    put(folder, cells["scratch"], seconds=12.0, steps=50, seconds_per_step=0.2)
    assert steps_of_cell(folder, cells["equal_time"], config) == first
    with pytest.raises(ConfigError, match=r"pretraining_share 1.0, now it is 0.5"):
        steps_of_cell(folder, cells["equal_time"], dataclasses.replace(config, pretraining_share=0.5))


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
