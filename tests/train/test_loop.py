import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxseg.errors import ConfigError, Preempted, StorageError, TrainingError
from jaxseg.files import write_json
from jaxseg.train import (
    Layout,
    LoopConfig,
    OptimConfig,
    QuietProgress,
    RunFolder,
    TrainingProgress,
    array_names,
    fit,
    learning_rate,
    make_optimizer,
    make_step,
    read_log,
)

OPTIM = OptimConfig(lr=1e-2, steps=20, warmup=3)


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it and save."""


class Said(QuietProgress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def trainer(toy, optim):
    """`train(folder, loader=None, **LoopConfig)` → host state; one compiled step for all calls."""
    layout = Layout("pmap")
    optimizer = make_optimizer(optim, toy.params())
    step = make_step(toy.loss, optimizer, ema_decay=0.9)
    compiled = layout.compile(step)
    layout.compile = lambda given: compiled

    def call(folder, loader=None, progress=None, evaluate=None, config=None, **settings):
        loop = LoopConfig(**({"steps": 20, "log_every": 4, "save_every": 6} | settings))
        state = layout.init(lambda: toy.make_state(optimizer, ema=True))
        with RunFolder.open(folder, config or {"name": "toy"}) as run:
            options = {"evaluate": evaluate, "schedule": learning_rate(optim), "progress": progress or QuietProgress()}
            return layout.host(fit(step, state, loader or toy.ToyLoader(), layout, run, loop, **options))

    return call


@pytest.fixture(scope="module")
def train(toy):
    return trainer(toy, OPTIM)


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(folder), folder


def equal(left, right):
    for name, one, other in zip(array_names(left), jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def killing(toy, at):
    class Killing(toy.ToyLoader):
        def __next__(self):
            if self.next == at:
                raise Killed
            return super().__next__()

    return Killing()


def test_killed_anywhere_and_resumed_is_equal_to_the_bit(toy, train, uninterrupted, tmp_path):
    """Killed five times at random, between saves too; the loader prefetches, so it is always ahead of what was trained on."""
    for at in sorted(np.random.default_rng(0).choice(np.arange(1, 20), 5, replace=False)):
        with pytest.raises(Killed):
            train(tmp_path, killing(toy, at))
    equal(train(tmp_path), uninterrupted[0])
    theirs, ours = ([line["step"] for line in read_log(folder / "log.jsonl")] for folder in (uninterrupted[1], tmp_path))
    assert len(ours) == len(set(ours)) and set(theirs) <= set(ours)
    losses = [{line["step"]: line["loss"] for line in read_log(folder / "log.jsonl")} for folder in (uninterrupted[1], tmp_path)]
    assert losses[0][20] == losses[1][20]


def test_what_muon_remembers_is_restored_to_the_bit(toy, tmp_path):
    train = trainer(toy, dataclasses.replace(OPTIM, muon=True))
    with pytest.raises(Killed):
        train(tmp_path / "killed", killing(toy, 14))
    equal(train(tmp_path / "killed"), train(tmp_path / "whole"))


def test_training_learns_and_the_log_says_so(uninterrupted):
    lines = read_log(uninterrupted[1] / "log.jsonl")
    assert {"step", "loss", "error", "size", "lr", "grad_norm", "skipped", "seconds", "steps_per_second"} <= set(lines[0])
    assert lines[-1]["step"] == 20 and lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert next(line["lr"] for line in lines if line["step"] == 4) == pytest.approx(float(learning_rate(OPTIM)(3)))
    assert json.loads((uninterrupted[1] / "provenance.json").read_text())["sessions"][0]["versions"]["jax"] == jax.__version__


def test_a_finished_run_is_given_back_without_a_step(toy, train, uninterrupted):
    loader = killing(toy, 20)
    equal(train(uninterrupted[1], loader), uninterrupted[0])


def test_evaluation_marks_the_best_and_does_not_disturb(train, uninterrupted, tmp_path):
    scores = iter([0.2, 0.9, 0.5, 0.7])
    state = train(tmp_path, evaluate=lambda state: {"dice": next(scores)}, evaluate_every=5, best="dice")
    equal(state, uninterrupted[0])
    evaluations = {line["step"]: line["evaluation"]["dice"] for line in read_log(tmp_path / "log.jsonl") if "evaluation" in line}
    assert evaluations == {5: 0.2, 10: 0.9, 15: 0.5, 20: 0.7}
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {"step": 10, "name": "dice", "value": 0.9}
    assert (tmp_path / "checkpoints" / "000000010").is_dir()
    with pytest.raises(ConfigError, match="best='dcie', but the evaluation gives dice"):
        train(tmp_path / "typo", evaluate=lambda state: {"dice": 1.0}, best="dcie", steps=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(toy, train, uninterrupted, tmp_path, number):
    before = signal.getsignal(number)

    class Signalling(toy.ToyLoader):
        def __next__(self):
            if self.next == 9:
                os.kill(os.getpid(), number)
            return super().__next__()

    with pytest.raises(Preempted, match="saved after step 9 of 20") as stopped:
        train(tmp_path, Signalling(), save_every=0)
    assert stopped.value.exit_code == 75 and signal.getsignal(number) == before
    said = Said()
    equal(train(tmp_path, progress=said), uninterrupted[0])
    assert any("resuming after step 9 of 20" in line for line in said.lines)


def test_a_broken_batch_is_skipped(toy, train, tmp_path):
    state = train(tmp_path, toy.ToyLoader(broken=(7, 8)))
    assert np.isfinite(state.params["head"]["kernel"]).all() and state.step == 20
    assert {line["step"]: line["skipped"] for line in read_log(tmp_path / "log.jsonl") if line["skipped"]} == {8: 1, 12: 1}


def test_many_broken_batches_roll_back_once_and_training_goes_on(toy, train, tmp_path):
    said = Said()
    state = train(tmp_path, toy.ToyLoader(broken=(7, 8, 9)), said, max_skips=3)
    assert state.step == 20 and any("going back to the parameters of step 6" in line for line in said.lines)
    steps = [line["step"] for line in read_log(tmp_path / "log.jsonl")]
    assert steps == sorted(set(steps))


def test_broken_for_good_stops_with_the_samples_listed(toy, train, tmp_path):
    with pytest.raises(TrainingError, match=r"again after going back to a checkpoint; the samples are listed in nonfinite\.json"):
        train(tmp_path, toy.ToyLoader(broken=tuple(range(7, 99))), max_skips=3)
    records = json.loads((tmp_path / "nonfinite.json").read_text())
    assert len(records) >= 3 and records[0]["loss"] is None
    assert all(np.ravel(record["ids"]).tolist() == sorted(record["ids"]) and record["ids"][0] >= 7 * toy.BATCH for record in records)
    with pytest.raises(TrainingError, match="there is no checkpoint to go back to"):
        train(tmp_path / "other", toy.ToyLoader(broken=tuple(range(99))), max_skips=2)


def test_zero_steps_save_what_they_began_with(toy, train, tmp_path):
    state = train(tmp_path, steps=0)
    equal(state.params, jax.device_get(jax.jit(toy.params)()))
    assert (tmp_path / "checkpoints" / "000000000" / "manifest.json").exists()


def test_a_changed_config_is_refused_with_the_difference(tmp_path):
    config = {"optim": {"lr": 0.1, "betas": (0.9, 0.95)}, "loop": {"log_every": 5}}
    with RunFolder.open(tmp_path, config) as run:
        assert run.config["optim"]["betas"] == [0.9, 0.95]
        write_json(run.checkpoints / "000000001" / "manifest.json", {})
    with RunFolder.open(tmp_path, config | {"loop": {"log_every": 9}, "model": {"encoder": {"remat": True, "remat_keep": "products"}}}):
        pass
    with RunFolder.open(tmp_path, config):
        pass
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 then, 0\.2 now\n  model: 'not set' then, 'vit' now"):
        with RunFolder.open(tmp_path, {"optim": {"lr": 0.2, "betas": (0.9, 0.95)}, "loop": {"log_every": 5}, "model": "vit"}):
            pass
    with RunFolder.open(tmp_path, {"optim": {"lr": 0.2, "betas": (0.9, 0.95)}, "loop": {"log_every": 5}}, may_change=("optim.lr",)):
        pass


def test_a_run_from_before_a_setting_existed_goes_on_where_that_is_off(tmp_path):
    with RunFolder.open(tmp_path, {"lr": 0.1}) as run:
        write_json(run.checkpoints / "000000001" / "manifest.json", {})
    off = {"lr": 0.1, "optim": {"decoder_first": 0}, "augment": {"spacing_jitter": None}, "also": {}}
    with pytest.raises(ConfigError, match=r"\n  optim.decoder_first: 'not set' then, 5 now$"):
        with RunFolder.open(tmp_path, off | {"optim": {"decoder_first": 5}}):
            pass
    with RunFolder.open(tmp_path, off):
        pass
    with pytest.raises(ConfigError, match=r"decoder_first: 0 then, 5 now"):
        with RunFolder.open(tmp_path, off | {"optim": {"decoder_first": 5}}):
            pass


def test_a_folder_in_which_nothing_was_trained_may_be_taken_with_another_config(train, tmp_path):
    """As after a mistyped value, or a run that was stopped before its first checkpoint."""
    for lr in (0.1, 0.2):
        with RunFolder.open(tmp_path, {"lr": lr}) as run:
            assert run.config == {"lr": lr}
    (tmp_path / "checkpoints" / "000000006").mkdir(parents=True)  # a save that was never finished
    train(tmp_path, config={"lr": 0.3}, steps=1)
    with pytest.raises(ConfigError, match="lr: 0.3 then, 0.4 now"):
        train(tmp_path, config={"lr": 0.4}, steps=1)
    for path in (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(path)
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="lr: 0.3 then, 0.4 now"):
        train(tmp_path, config={"lr": 0.4}, steps=1)


def test_a_run_is_not_gone_on_with_when_what_its_cases_hold_has_changed(train, tmp_path):
    def config(last, **further):
        return {"lr": 0.1, "content": [["case_0", "aa"], ["case_1", last]], **further}

    train(tmp_path / "run", config=config("bb"), steps=1)
    train(tmp_path / "run", config=config("bb"), steps=1)
    with pytest.raises(
        ConfigError, match=r"run: this folder holds a run on other content of its cases: .*labels of case_1 have changed"
    ) as refused:
        train(tmp_path / "run", config=config("cc"), steps=1)
    assert "choose another folder or remove this one" in str(refused.value)
    with pytest.raises(ConfigError, match=r"another config.*\n  lr: 0\.1 then, 0\.2 now$"):
        train(tmp_path / "run", config=config("cc") | {"lr": 0.2}, steps=1)
    # Several runs in one folder, as those side by side: each counts.
    train(tmp_path / "runs", config={"runs": [config("bb"), config("bb")]}, steps=1)
    with pytest.raises(ConfigError, match="labels of case_1 have changed"):
        train(tmp_path / "runs", config={"runs": [config("bb"), config("cc")]}, steps=1)


def test_a_run_from_before_its_content_was_kept_is_gone_on_with_and_held_to_it_from_then_on(train, tmp_path):
    train(tmp_path, config={"lr": 0.1}, steps=1)
    train(tmp_path, config={"lr": 0.1, "content": [["case_0", "aa"]]}, steps=1)
    with pytest.raises(ConfigError, match="labels of case_0 have changed"):
        train(tmp_path, config={"lr": 0.1, "content": [["case_0", "bb"]]}, steps=1)


def test_a_run_is_not_gone_on_with_when_its_pretraining_has_been_made_anew(train, tmp_path):
    train(tmp_path / "old", config={"lr": 0.1}, steps=1)
    train(tmp_path / "old", config={"lr": 0.1, "started_from": "aa"}, steps=1)  # from before it was kept
    with pytest.raises(ConfigError, match=r"old: this folder holds a run that started from other weights than .*choose another folder"):
        train(tmp_path / "old", config={"lr": 0.1, "started_from": "bb"}, steps=1)
    with pytest.raises(ConfigError, match="started from other weights"):
        train(tmp_path / "old", config={"lr": 0.1}, steps=1)


def test_a_folder_in_use_is_refused(tmp_path):
    with RunFolder.open(tmp_path, {}):
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            with RunFolder.open(tmp_path, {}):
                pass


def test_the_first_line_names_devices_memory_and_parameters(toy, train, tmp_path):
    said = Said()
    train(tmp_path, progress=said, steps=1)
    count = sum(leaf.size for leaf in jax.tree.leaves(toy.params()))
    assert said.lines[0].startswith("8 x cpu (pmap") and "GiB" in said.lines[0] and f"{count / 1e6:.2f} M parameters" in said.lines[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_how_long(tmp_path, terminal):
    with open(tmp_path / "out", "w+") as stream:
        progress = TrainingProgress("pretrain", console=Console(file=stream, force_terminal=terminal, width=120), every=0.0)
        progress.begin(10, 4)
        for step in range(5, 11):
            progress.advance(step, {"loss": 0.25})
        progress.end()
        stream.seek(0)
        text = stream.read()
    assert "pretrain" in text and "10/10" in text and "loss 0.2500" in text
    assert terminal or "0:00 left" in text


def test_the_time_left_does_not_count_compiling(tmp_path, monkeypatch):
    clock = iter([0.0, 100.0, 102.0, 104.0])  # begin, the first step, two more
    monkeypatch.setattr("jaxseg.train.log.time.monotonic", lambda: next(clock))
    with open(tmp_path / "out", "w+") as stream:
        progress = TrainingProgress(console=Console(file=stream, width=120), every=0.0)
        progress.begin(10, 0)
        for step in range(1, 4):
            progress.advance(step, {"loss": 0.25})
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[0] == "training 1/10  loss 0.2500" and lines[2] == "training 3/10  loss 0.2500  0.50 steps/s  0:14 left"


@pytest.mark.slow
def test_sigterm_from_outside(uninterrupted, tmp_path):
    """A real process, really told to stop by the system; it ends in 75 and the next one finishes with the same bits."""
    script = Path(__file__).with_name("train_toy.py")
    command = [sys.executable, str(script), str(tmp_path / "run"), "pmap"]
    with subprocess.Popen([*command, "slowly"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("batch 7"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=240)
    saved = np.load(tmp_path / "run" / "final.npz")
    for name, leaf in zip(array_names(uninterrupted[0].params), jax.tree.leaves(uninterrupted[0].params)):
        np.testing.assert_array_equal(saved[name], leaf, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pmap", "mesh"])
def test_two_processes_train_the_numbers_of_one(toy, tmp_path, kind):
    """`jax.distributed` on the CPU, four devices each; they stop half-way and go on, so saving and restoring cross processes too.

    The second process is late by more than the 30 s for which a first collective would wait."""
    script = Path(__file__).with_name("train_toy.py")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    workers = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path / "run"), kind, "sgd", str(port), str(process), late], env=environment)
        for process, late in ((0, "0"), (1, "35"))
    ]
    try:
        assert [worker.wait(300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    optimizer, layout = optax.sgd(0.01), Layout("mesh", jax.devices()[:1])
    state = layout.init(lambda: toy.make_state(optimizer))
    compiled = layout.compile(make_step(toy.loss, optimizer, weights={"size": 0.01}))
    losses = []
    for number in range(6):
        state, metrics = compiled(state, layout.put(toy.make_batch(number)), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    saved = np.load(tmp_path / "run" / "final.npz")
    for name, leaf in zip(array_names(state.params), jax.tree.leaves(layout.host(state.params))):
        np.testing.assert_allclose(saved[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)
    logged = {line["step"]: line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl")}
    assert [logged[step] for step in range(1, 7)] == pytest.approx(losses, rel=1e-5)
