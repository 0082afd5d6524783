"""Fine-tuning on a tiny store: pretrained encoder in, model folder out that segments; and arms that are equal where they must be."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig, LossConfig
from finetune.floor import position_floor
from finetune.monitor import watch
from finetune.train import adapt, finetune, first_params, graph_of, run_config, training_step
from jaxseg.data.augment import Augment
from jaxseg.data.mixture import Source
from jaxseg.data.recipe import Recipe
from jaxseg.data.store import open_store
from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.evaluate import evaluate_folders
from jaxseg.files import sha256_of
from jaxseg.infer.folder import segment_folder
from jaxseg.models import MAEConfig, UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress, TrainState, make_optimizer, read_log
from jaxseg.zoo import load_model
from pretrain.config import PretrainConfig
from pretrain.implants import Lesions
from pretrain.objectives import Anatomy
from pretrain.train import pretrain
from tests.tiny_store import write_scans

ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("finetune") / "scans")


@pytest.fixture(scope="module")
def store(scans):
    prepare_folder(scans, scans.parent / "store")
    return scans.parent / "store"


@pytest.fixture(scope="module")
def untrained(store):
    """A pretraining of no steps at all."""
    model = MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1)
    out = store.parent / "untrained"
    config = PretrainConfig(store=str(store), out=str(out), model=model, batch=8, optim=OptimConfig(warmup=0), loop=LoopConfig(steps=0))
    return pretrain(config, progress=QuietProgress())


def config(store, out, **changes):
    base = FinetuneConfig(
        store=str(store),
        out=str(out),
        model=UNETRConfig(encoder=ENCODER, feature=4, stride=2),
        batch=8,
        augment=Augment.none(),
        optim=OptimConfig(lr=1e-2, warmup=1, weight_decay=0.0),
        loop=LoopConfig(steps=2, save_every=0),
    )
    return dataclasses.replace(base, **changes)


def arrays(folder):
    return jax.tree.leaves(nnx.state(load_model(folder).network))


@pytest.mark.slow
def test_zero_pretraining_steps_give_the_scratch_arm_to_the_bit(store, untrained, tmp_path):
    scratch = finetune(config(store, tmp_path / "scratch"), progress=QuietProgress())
    taken = finetune(config(store, tmp_path / "taken", init=str(untrained)), progress=QuietProgress())
    for one, other in zip(arrays(scratch), arrays(taken)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "take"), [("lesions", "network"), ("anatomy", "network"), ("lesions", "encoder"), ("latent", "encoder")]
)
def test_whatever_is_taken_of_no_training_is_the_first_draw(store, tmp_path, objective, take):
    """Of artificial lesions the head is taken, too, but an untrained one outlines nothing."""
    model = MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1)
    drawn = PretrainConfig(
        store=str(store),
        out=str(tmp_path / "untrained"),
        objective=objective,
        model=model,
        batch=8,
        lesions=Lesions(feature=4),
        anatomy=Anatomy(feature=4),
        optim=OptimConfig(warmup=0),
        loop=LoopConfig(steps=0),
    )
    pretrain(drawn, progress=QuietProgress())
    wanted, found = (config(store, tmp_path / "out", init=init, take=take) for init in ("", str(tmp_path / "untrained")))
    opened = open_store(store)
    classes, network = Classes.of(opened.recipe), adapt(wanted.model, opened)
    one, other = (first_params(each, network, opened, classes) for each in (wanted, found))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_it_learns_to_find_the_balls_and_segments_a_folder(store, scans, tmp_path):
    long = config(store, tmp_path / "run", loop=LoopConfig(steps=120, save_every=0))
    model = finetune(long, names=("case_0", "case_1"), progress=QuietProgress())
    assert segment_folder(model, [scans], tmp_path / "labels") == []
    summary = evaluate_folders(tmp_path / "labels", scans, tmp_path / "scores")
    assert set(summary["per_case"]) == {f"case_{number}" for number in range(4)}
    assert summary["dice"] > 0.7


@pytest.mark.slow
def test_an_encoder_of_another_width_is_refused_before_anything_is_trained(store, untrained, tmp_path):
    wide = UNETRConfig(encoder=dataclasses.replace(ENCODER, width=48), feature=4, stride=2)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        finetune(config(store, tmp_path / "run", model=wide, init=str(untrained)), progress=QuietProgress())


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_when_asked_for(store, tmp_path):
    """The watched Dice of what is exported is the largest in the log, not the last."""
    (tmp_path / "split.json").write_text(json.dumps({"watch": ["case_3"]}))
    settings = config(
        store,
        tmp_path / "run",
        keep="best",
        monitor=f"{tmp_path / 'split.json'}:watch",
        loop=LoopConfig(steps=60, save_every=0, evaluate_every=10),
    )
    model = load_model(finetune(settings, names=("case_0",), progress=QuietProgress()))
    log = [line["evaluation"]["dice"] for line in read_log(tmp_path / "run" / "log.jsonl") if "evaluation" in line]
    assert len(log) == 6
    graph, params = nnx.split(model.network)
    watched = watch(
        graph, open_store(store), ("case_3",), Classes.of(open_store(store).recipe), settings_model(settings, store).encoder.crop
    )
    again = watched(TrainState.create(params, make_optimizer(settings.optim, params)))
    assert again["dice"] == pytest.approx(max(log), abs=1e-6)


def test_watched_cases_are_padded_as_training_pads_them(store, monkeypatch):
    """Else a case shorter than the crop is watched on other input than it is trained on and segmented, and the best checkpoint chosen by that."""
    opened, seen = open_store(store), []

    def watching(predict, image, *, fill, **options):
        seen.append(fill)
        return np.zeros((*image.shape[:3], options["num_classes"]), np.float32)

    monkeypatch.setattr("finetune.monitor.sliding_window", watching)
    graph = graph_of(adapt(config(store, "out").model, opened))
    watch(graph, opened, ("case_3",), Classes.of(opened.recipe), (16, 16, 16))(TrainState.create({}, optax.sgd(0.1)))
    assert seen == [list(opened.entry("case_3").air)]


def settings_model(settings, store):
    return adapt(settings.model, open_store(store))


def test_a_mistyped_setting_can_be_set_right_in_the_same_folder(store, tmp_path):
    with pytest.raises(ConfigError, match="0"):
        finetune(config(store, tmp_path / "run", batch=0), names=("case_0",), progress=QuietProgress())
    right = config(store, tmp_path / "run", loop=LoopConfig(steps=0))
    assert finetune(right, names=("case_0",), progress=QuietProgress()) == tmp_path / "run" / "model"


@pytest.mark.slow
def test_a_run_whose_contours_were_mended_is_refused_instead_of_found_finished(tmp_path):
    scans = write_scans(tmp_path / "scans", count=3, shape=(12, 12, 12))
    prepare_folder(scans, tmp_path / "store", processes=1)
    short = config(tmp_path / "store", tmp_path / "run", loop=LoopConfig(steps=1, save_every=0))
    finetune(short, names=("case_0", "case_1"), progress=QuietProgress())
    shutil.copy2(scans / "case_0" / "seg.nii.gz", scans / "case_2" / "seg.nii.gz")
    prepare_folder(scans, tmp_path / "store", processes=1)
    finetune(short, names=("case_0", "case_1"), progress=QuietProgress())  # case_2 is none of its cases
    shutil.copy2(scans / "case_0" / "seg.nii.gz", scans / "case_1" / "seg.nii.gz")
    prepare_folder(scans, tmp_path / "store", processes=1)
    with pytest.raises(ConfigError, match="scans or labels of case_1 have changed since"):
        finetune(short, names=("case_0", "case_1"), progress=QuietProgress())


def test_a_config_holds_the_content_of_every_case_that_is_drawn_from(store):
    opened = open_store(store)
    sources = (Source(opened, ("case_0",)), Source(opened, ("case_1", "case_0"), 0.5))
    kept = run_config(config(store, "out"), sources, pool=("case_0", "case_3"))["content"]
    assert kept == [[name, opened.entry(name).inputs[:16]] for name in ("case_0", "case_3", "case_1", "case_0")]


def test_a_config_holds_the_weights_that_the_run_starts_from(store, untrained, tmp_path):
    sources = (Source(open_store(store), ("case_0",)),)
    kept = run_config(config(store, "out", init=str(untrained)), sources)["started_from"]
    assert kept == sha256_of(untrained / "weights.safetensors")
    assert "started_from" not in run_config(config(store, "out"), sources)


def test_watching_a_training_case_is_refused(store, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"watch": ["case_0"]}))
    with pytest.raises(ConfigError, match="trained on: case_0"):
        finetune(config(store, tmp_path / "run", monitor=f"{tmp_path / 'split.json'}:watch"), names=("case_0",))


def test_more_labels_than_there_are_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="9 cases were asked for"):
        finetune(config(store, tmp_path / "run", labels=9))


def test_the_position_only_floor_knows_where_balls_are_on_average(store):
    """The balls lie within 3 voxels of the middle with a radius of 4, so a predictor of the middle scores well above nothing, below all."""
    floor = position_floor(open_store(store), ["case_0", "case_1"], ["case_2", "case_3"])
    assert 0.2 < floor["dice"] < 0.9


def test_the_floor_counts_nothing_where_nobody_contoured():
    """A block in the same place in every case, of which a test case has half contoured: what is known of it is all found."""
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 1
    half = np.where(np.arange(16)[:, None, None] < 8, label, 255)
    store = SimpleNamespace(
        recipe=Recipe(channels=("T1",), spacing=(1.0, 1.0, 1.0), intensity=("zscore",), labels={"tumour": 1}),
        arrays=lambda name: SimpleNamespace(label=half if name == "half" else label),
    )
    floor = position_floor(store, ["whole"], ["half", "other"])
    assert floor["per_case"]["half"] == floor["per_case"]["other"] > 0.95


def test_a_dice_of_the_whole_batch_is_not_parted_into_micro_batches(store):
    parted = config(store, "", accumulate=2, loss=LossConfig(batch_dice=True))
    with pytest.raises(ConfigError, match="loss.batch_dice.*accumulate=2"):
        training_step(parted, graph_of(parted.model), Classes.of(open_store(store).recipe), optax.sgd(1.0))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_an_average_that_would_be_none_is_refused(decay):
    with pytest.raises(ConfigError, match="ema is"):
        FinetuneConfig(ema=decay)
