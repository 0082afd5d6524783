"""Runs side by side in one program end as they would have alone, in their own folders; a study trains its cells so where it is told to."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from finetune.few_label.arms import arms_of, settings_of
from finetune.few_label.study import run_study
from finetune.semi.config import SemiConfig
from finetune.side_by_side import Run, StackedLoader, finetune_side_by_side, program_of, stacked_step
from finetune.train import adapt, crop_loader, crop_of, finetune, graph_of, training_step
from jaxseg.data.augment import Augment
from jaxseg.data.catalog import open_store
from jaxseg.data.mixture import Source
from jaxseg.errors import CheckpointError, ConfigError, InputError, Preempted, StorageError, TrainingError
from jaxseg.files import read_json, write_json
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress, RunFolder, TrainState, make_optimizer, read_arrays, read_log
from jaxseg.zoo.registry import network_of
from tests.stop_after import StopAfter
from tests.tiny_store import write_scans

ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=1, heads=2, drop_path=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight cases of one channel, prepared."""
    folder = tmp_path_factory.mktemp("side_by_side")
    write_scans(folder / "scans", 8, channels=("T1",))
    prepare_folder(folder / "scans", folder / "store")
    return folder


def settings(data, out, *, seed=0, **changes):
    base = FinetuneConfig(
        store=str(data / "store"),
        out=str(out),
        seed=seed,
        model=UNETRConfig(encoder=ENCODER, feature=4, stride=2),
        batch=8,
        augment=Augment.light(),
        optim=OptimConfig(lr=1e-2, warmup=1, layer_decay=0.8),
        loop=LoopConfig(steps=4, save_every=2, log_every=1, seed=seed),
        ema=0.9,
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.slow
def test_each_run_ends_as_it_does_alone_also_when_they_were_stopped(data, tmp_path):
    """Augmentation, drop path, layer decay and an average of the weights are in it; seeds and cases differ."""
    runs = [Run(settings(data, tmp_path / str(seed), seed=seed), (f"case_{seed}", f"case_{seed + 1}")) for seed in (3, 5)]
    with pytest.raises(Preempted):
        finetune_side_by_side(runs, tmp_path / "together", progress=StopAfter(1))
    assert not (tmp_path / "3" / "checkpoints").exists()
    finetune_side_by_side(runs, tmp_path / "together", progress=QuietProgress())
    assert not (tmp_path / "together").exists()
    for run in runs:
        alone = dataclasses.replace(run.settings, out=f"{run.settings.out}_alone")
        model = finetune(run.settings, names=run.names, progress=QuietProgress())  # finds it finished
        assert read_json(model / "model.json")["training"]["seed"] == run.settings.seed
        other = read_json(finetune(alone, names=run.names, progress=QuietProgress()) / "model.json")
        card = read_json(model / "model.json")
        assert {key for key in other if other[key] != card[key]} <= {"weights", "created"}
        for prefix in ("params.", "ema."):
            found, wanted = (read_arrays(each.out, prefix) for each in (run.settings, alone))
            assert found.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_allclose(found[name], wanted[name], atol=5e-5, err_msg=name)
        found, wanted = (read_log(f"{each.out}/log.jsonl") for each in (run.settings, alone))
        assert [line["step"] for line in found] == [line["step"] for line in wanted] == [1, 2, 3, 4]
        for ours, theirs in zip(found, wanted):
            assert ours.keys() - {"side_by_side"} == theirs.keys()
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5) and ours["dice"] == pytest.approx(theirs["dice"], abs=1e-5)
            assert ours["lr"] == theirs["lr"] and ours["side_by_side"] == 2
    # They did learn, each something of its own.
    first, second = (read_arrays(run.settings.out, "params.")["head.kernel"] for run in runs)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.slow
def test_a_study_trains_its_cells_side_by_side_and_measures_what_it_would_one_by_one(data, tmp_path, capsys):
    base = FewLabelConfig(
        scans=str(data / "scans"),
        store=str(data / "store"),
        labels=(1, 2),
        draws=(0,),
        arms=("scratch", "untrained"),
        cells="N=1 arms=scratch,untrained",
        test_cases=3,
        allow_overlap=True,
        scratch_layer_decay=0.8,
        finetune=settings(data, ""),
    )
    together = run_study(dataclasses.replace(base, out=str(tmp_path / "together"), stack=3)).content
    said = capsys.readouterr().err
    assert said.count("side by side") == 1
    assert "few_label: 2 cells side by side: scratch/n001-draw0-seed0, untrained/n001-draw0-seed0\n" in said
    apart = run_study(dataclasses.replace(base, out=str(tmp_path / "apart"), cells="N=1 arms=scratch")).content
    (cell,) = (cell for cell in apart["cells"] if cell["status"] == "done")
    others = [cell for cell in together["cells"] if cell["status"] == "done"]
    assert [other["budget"].get("side_by_side") for other in others] == [2, 2] and "side_by_side" not in cell["budget"]
    # The arms are one and the same here: what is untrained takes nothing, and both have the same layer decay.
    kept = read_json(tmp_path / "apart" / "cells" / "scratch" / "n001-draw0-seed0" / "cell.json")["settings"]
    for other in others:
        assert other["per_case"] == pytest.approx(cell["per_case"], abs=2e-3)
        assert read_json(tmp_path / "together" / "cells" / other["arm"] / "n001-draw0-seed0" / "cell.json")["settings"] == kept
    assert list((tmp_path / "together" / "side_by_side").iterdir()) == []
    assert run_study(dataclasses.replace(base, out=str(tmp_path / "together"), stack=3)).content == together  # nothing is trained again


def test_what_cannot_be_trained_side_by_side_is_trained_alone(data, tmp_path, monkeypatch, capsys):
    tried, measured = [], []

    def fail(runs, folder):
        tried.append([run.settings.out for run in runs])
        raise TrainingError("one of them blew up")

    def measure(settings, names, tests, recipe, *, overlap):
        measured.append(settings.out)
        budget = {"steps": 1, "crops": 8, "seconds": 1.0, "parameters": 1, "trained_parameters": 1, "flops": 1}
        return {"dice": 0.5, "per_case": {case.id: 0.5 for case in tests}, "budget": budget}

    monkeypatch.setattr("finetune.few_label.stacks.finetune_side_by_side", fail)
    config = FewLabelConfig(
        scans=str(data / "scans"),
        store=str(data / "store"),
        out=str(tmp_path),
        labels=(1, 2),
        draws=(0, 1),
        arms=("scratch", "resenc"),
        test_cases=3,
        allow_overlap=True,
        stack=8,
        finetune=settings(data, ""),
    )
    content = run_study(config, measure=measure).content
    assert all(cell["status"] == "done" for cell in content["cells"]) and len(measured) == 8
    # The U-Nets are another program than the ViTs; neither is tried twice.
    assert [len(outs) for outs in tried] == [4, 4] and {out for outs in tried for out in outs} == set(measured)
    assert "each is trained alone: TrainingError: one of them blew up" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="stack is 0"):
        run_study(dataclasses.replace(config, stack=0), measure=measure)
    paced = dataclasses.replace(config, arms=("pretrained", "scratch", "equal_time"), pretrained=("x",), pretraining_seconds=(1.0,))
    with pytest.raises(ConfigError, match="equal_time follow from the seconds of cells that trained alone"):
        run_study(paced, measure=measure)


def test_a_cell_that_cannot_be_trained_fails_alone_and_not_those_beside_it(data, tmp_path, monkeypatch):
    """As with a pretraining of another width, which the run finds out before its first step."""

    def refuse(runs, folder):
        folder.mkdir(parents=True)
        if any("untrained" in run.settings.out for run in runs):
            raise wrong("made for another width")

    def measure(settings, names, tests, recipe, *, overlap):
        if "untrained" in settings.out:
            raise CheckpointError("made for another width")
        budget = {"steps": 1, "crops": 8, "seconds": 1.0, "parameters": 1, "trained_parameters": 1, "flops": 1}
        return {"dice": 0.5, "per_case": {case.id: 0.5 for case in tests}, "budget": budget}

    monkeypatch.setattr("finetune.few_label.stacks.finetune_side_by_side", refuse)
    config = FewLabelConfig(
        scans=str(data / "scans"),
        store=str(data / "store"),
        labels=(1,),
        draws=(0,),
        arms=("scratch", "untrained"),
        test_cases=3,
        allow_overlap=True,
        stack=2,
        scratch_layer_decay=0.8,
        finetune=settings(data, ""),
    )
    for wrong in (CheckpointError, InputError, ConfigError):
        content = run_study(dataclasses.replace(config, out=str(tmp_path / wrong.__name__)), measure=measure).content
        assert [(cell["arm"], cell["status"]) for cell in content["cells"]] == [("scratch", "done"), ("untrained", "failed")]
        assert list((tmp_path / wrong.__name__ / "side_by_side").iterdir()) == []
    wrong = StorageError  # no cell's own
    with pytest.raises(StorageError):
        run_study(dataclasses.replace(config, out=str(tmp_path / "full")), measure=measure)


def test_only_where_a_run_starts_reads_and_ends_may_differ(data, tmp_path):
    study = FewLabelConfig(finetune=settings(data, ""))
    arms = {arm.name: arm for arm in arms_of(("scratch", "untrained", "pretrained", "frozen", "mean_teacher", "partial"), ("a",))}

    def program(arm, seed=0):
        return program_of(settings_of(arms[arm], study, labels=1, seed=seed, spacing=(1, 1, 1), pool="split.json:pretrain"))

    assert program("untrained") == program("pretrained", seed=3) is not None
    assert len({program(arm) for arm in ("scratch", "pretrained", "frozen", "partial")}) == 4
    assert program("mean_teacher") is None
    alone = (
        {"monitor": "split.json:test"},
        {"keep": "best"},
        {"layout": "mesh"},
        {"semi": SemiConfig(method="pseudo_labels", pool="split.json:pretrain")},
    )
    assert [program_of(settings(data, "x", **changes)) for changes in alone] == [None] * 4
    with pytest.raises(ConfigError, match="in nothing else"):
        finetune_side_by_side(
            [Run(settings(data, tmp_path / "a"), ("case_0",)), Run(settings(data, tmp_path / "b", batch=16), ("case_0",))], tmp_path / "c"
        )
    assert list(tmp_path.iterdir()) == []
    with RunFolder.open(tmp_path / "b", {"seed": 7}) as run:
        write_json(run.checkpoints / "000000001" / "manifest.json", {})
    with pytest.raises(ConfigError, match=r"b: this folder holds a run with another config"):
        finetune_side_by_side([Run(settings(data, tmp_path / name), ("case_0",)) for name in "ab"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


class Counting:
    """Batches of ids from a first number on."""

    def __init__(self, first):
        self.next = first

    def __next__(self):
        ids = np.arange(self.next, self.next + 4)
        self.next += 4
        return {"id": ids, "image": ids[:, None] * np.ones(3)}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def test_every_device_gets_its_part_of_every_run():
    loader = StackedLoader([Counting(0), Counting(100)], [1, 2], 2)
    batch = next(loader)
    assert batch["id"].tolist() == [0, 1, 100, 101, 2, 3, 102, 103]
    assert batch["image"][:, 2].tolist() == batch["id"].tolist()
    kept = json.loads(json.dumps(loader.get_state()))
    wanted = next(loader)["id"].tolist()
    other = StackedLoader([Counting(7), Counting(7)], [1, 2], 2)
    other.set_state(kept)
    assert next(other)["id"].tolist() == wanted
    with pytest.raises(ConfigError, match="4 samples cannot be split over 3 devices"):
        next(StackedLoader([Counting(0)], [1], 3))


def test_a_stacked_step_gives_each_run_its_own_samples_key_and_numbers():
    def step(state, batch, key, axis=None):
        assert set(batch) == {"id", "image"}
        return state + batch["id"].sum(), {"loss": state * 1.0, "draw": jax.random.uniform(key), "skipped": (state > 1) * 1.0}

    batch = next(StackedLoader([Counting(0), Counting(100)], [3, 2**40 + 4], 1))
    state, metrics = stacked_step(step, 2)(np.array([1, 2]), batch, jax.random.key(0))
    assert state.tolist() == [1 + 6, 2 + 406]
    assert (float(metrics["loss"]), float(metrics["loss/0"]), float(metrics["loss/1"])) == (1.5, 1.0, 2.0)
    draws = [float(jax.random.uniform(jax.random.key(seed))) for seed in (3, 2**40 + 4)]
    assert [float(metrics[f"draw/{place}"]) for place in range(2)] == draws
    assert float(metrics["skipped"]) == 1.0


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_program_of_a_stack_lowers_for_accelerators_without_a_form_for_cpus(data, platform):
    config, store = settings(data, ""), open_store(data / "store")
    encoder = dataclasses.replace(ENCODER, dtype="bfloat16")
    model, classes = adapt(dataclasses.replace(config.model, encoder=encoder), store), Classes.of(store.recipe)
    graph, params = graph_of(model), jax.eval_shape(lambda: nnx.state(network_of(model)))
    optimizer = make_optimizer(dataclasses.replace(config.optim, steps=4), params)
    states = jax.eval_shape(lambda p: jax.vmap(lambda own: TrainState.create(own, optimizer, ema=True))(p), stacked(params, 2))
    loaders = [crop_loader(config, (Source(store, (f"case_{place}",)),), (), crop_of(model)) for place in range(2)]
    batch = next(StackedLoader(loaders, [0, 1], 1))
    step = stacked_step(training_step(config, graph, classes, optimizer), 2)
    text = jax.jit(step).trace(states, batch, jax.random.key(0)).lower(lowering_platforms=(platform,)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions and not any("[b, 0, 1, f]" in line for line in convolutions), "a 2-D convolution: the CPU form"
    assert any("feature_group_count = 2" in line or "batch_group_count = 2" in line for line in convolutions)  # both runs in one


def stacked(tree, runs):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), tree)
