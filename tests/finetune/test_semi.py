"""Semi-supervised companions: views that lie voxel on voxel, a teacher that follows, labels of the sure alone, runs that go on as if never stopped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.semi.companion import UNLABELLED, advance_with, first_extra, make_views, ramped, with_unlabelled
from finetune.semi.config import SemiConfig
from finetune.semi.mean_teacher import mean_teacher
from finetune.semi.pseudo_labels import confident, pseudo_labels
from finetune.train import finetune
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError, Preempted
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress, read_arrays
from jaxseg.zoo import load_model
from tests.tiny_store import write_scans

METHODS = {"mean_teacher": mean_teacher, "pseudo_labels": pseudo_labels}
SIDE = 4
NOTHING = Augment.none()
MUCH = dataclasses.replace(NOTHING, flip=(0.5, 0.5, 0.5), affine=1.0, noise=1.0)
CLASSES = Classes(("ball", "box"), None)


class Linear(nnx.Module):
    """Logits of every voxel from that voxel alone."""

    def __init__(self, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (1, 3)))

    def __call__(self, x, *, spacing=None, key=None):
        return x @ self.kernel[...]


def crops(seed, count=2, labelled=True):
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.normal(size=(count, SIDE, SIDE, SIDE, 1)).astype(np.float32),
        "mask": (rng.random((count, SIDE, SIDE, SIDE)) < 0.8).astype(np.uint8),
        "present": np.ones((count, 1), np.float32),
        "spacing": np.ones((count, 3), np.float32),
        "id": np.arange(count, dtype=np.int32),
    }
    return batch | ({"label": rng.integers(0, 3, (count, SIDE, SIDE, SIDE)).astype(np.uint8)} if labelled else {})


def pair(count=2):
    return crops(0, count) | {UNLABELLED + name: array for name, array in crops(1, count, labelled=False).items()}


def loss_of(method, augmentation=NOTHING, **semi):
    """(loss, params, extra) with a teacher of other parameters than the student's."""
    graph, params = nnx.split(Linear(nnx.Rngs(0)))
    config = FinetuneConfig(semi=SemiConfig(method, "split.json:pool", **{"confidence": 0.6, **semi}), augment=augmentation)
    teacher = jax.tree.map(lambda leaf: -2.0 * leaf, params)
    companion = METHODS[method](graph, CLASSES, config)
    loss = with_unlabelled(lambda params, batch, keys, extra: {}, companion, augmentation, weight=1.0, ramp=0)
    return loss, params, first_extra(teacher), companion


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_gives_the_same_numbers_whoever_else_is_in_the_batch(method):
    """So that layouts agree: of every term sums and counts add up over samples, each with its own key."""
    loss, params, extra, _ = loss_of(method, MUCH)
    keys, batch = jax.random.split(jax.random.key(0), 2), pair()
    whole = jax.jit(loss)(params, batch, keys, extra)
    parts = [jax.jit(loss)(params, {name: array[i : i + 1] for name, array in batch.items()}, keys[i : i + 1], extra) for i in range(2)]
    for name, (total, count) in whole.items():
        np.testing.assert_allclose(total, sum(part[name][0] for part in parts), rtol=1e-5)
        np.testing.assert_allclose(count, sum(part[name][1] for part in parts), rtol=1e-6)


def test_the_mean_teacher_asks_for_its_own_probabilities_in_the_body():
    loss, params, extra, _ = loss_of("mean_teacher")
    batch, keys = pair(), jax.random.split(jax.random.key(0), 2)
    total, count = loss(params, batch, keys, extra)["consistency"]
    x, inside = batch[UNLABELLED + "image"], batch[UNLABELLED + "mask"] != 0
    student, teacher = (jax.nn.softmax(x @ tree["kernel"][...]) for tree in (params, extra["teacher"]))
    assert float(total) == pytest.approx(float((((student - teacher) ** 2).mean(-1) * inside).sum()), rel=1e-5)
    assert float(count) == inside.sum()
    agreed, _ = loss(params, batch, keys, {**extra, "teacher": params})["consistency"]
    assert float(agreed) == 0.0


def test_the_teacher_is_the_average_of_past_weights_and_learns_nothing_itself():
    _, params, extra, companion = loss_of("mean_teacher", decay=0.9)
    advance = advance_with(companion)
    after = advance({**extra, "updates": jnp.int32(100)}, params)
    value, first = params["kernel"][...], extra["teacher"]["kernel"][...]
    np.testing.assert_allclose(after["teacher"]["kernel"][...], 0.9 * first + 0.1 * value, rtol=1e-5)
    young = advance(extra, params)  # the first weights are soon forgotten: half of them after one update
    np.testing.assert_allclose(young["teacher"]["kernel"][...], 0.5 * first + 0.5 * value, rtol=1e-5)
    assert int(young["updates"]) == 1
    _, _, still, companion = loss_of("pseudo_labels")
    np.testing.assert_array_equal(advance_with(companion)(still, params)["teacher"]["kernel"][...], still["teacher"]["kernel"][...])


def test_only_what_the_teacher_is_sure_of_is_a_label():
    chances = jnp.array([[0.95, 0.03, 0.02], [0.1, 0.9, 0.0], [0.4, 0.3, 0.3]]).reshape(3, 1, 1, 1, 3)
    assert confident(chances, 0.9, regions=False).ravel().tolist() == [0, 1, 255]
    assert confident(chances, 0.9, regions=True).reshape(3, 3).tolist() == [[1, 0, 0], [0, 1, 0], [255, 255, 255]]
    loss, params, extra, _ = loss_of("pseudo_labels", confidence=0.999999)
    nothing = loss(params, pair(), jax.random.split(jax.random.key(0), 2), {**extra, "teacher": jax.tree.map(jnp.zeros_like, params)})
    assert {name: (float(total), float(count)) for name, (total, count) in nothing.items()} == {
        "pseudo_dice": (0.0, 0.0),
        "pseudo_cross_entropy": (0.0, 0.0),
    }


def test_both_views_are_moved_together_and_only_the_student_s_intensities_change():
    batch, keys = crops(2, labelled=False), jax.random.split(jax.random.key(3), 2)
    moved = make_views(batch, keys, dataclasses.replace(NOTHING, flip=(1.0, 0.0, 1.0), affine=1.0))
    np.testing.assert_array_equal(moved.teacher, moved.student)
    assert np.abs(moved.teacher - batch["image"]).max() > 0.1
    brighter = make_views(batch, keys, dataclasses.replace(NOTHING, brightness=1.0, brightness_factor=(2.0, 2.0)))
    np.testing.assert_array_equal(brighter.teacher, batch["image"])
    assert np.abs(brighter.student - batch["image"]).max() > 0.1


def test_the_weight_grows_to_its_whole():
    assert [float(ramped(jnp.int32(step), 10)) for step in (0, 10, 25)] == pytest.approx([np.exp(-5), 1, 1])
    assert float(ramped(jnp.int32(0), 0)) == 1.0
    with pytest.raises(ConfigError, match="needs unlabelled scans"):
        SemiConfig("mean_teacher")


class StopAfter(QuietProgress):
    """Stops a run the hard way."""

    def __init__(self, step):
        self.step = step

    def advance(self, step, values):
        if step == self.step:
            raise Preempted("told to stop")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semi")
    prepare_folder(write_scans(folder / "scans", 4, channels=("T1",)), folder / "store", processes=1)
    (folder / "split.json").write_text(json.dumps({"pool": ["case_1", "case_2"], "watch": ["case_1"]}))
    return folder


def settings(store, out, method, steps=3, **changes):
    return FinetuneConfig(
        store=str(store / "store"),
        out=str(out),
        model=UNETRConfig(encoder=ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2), feature=4, stride=2),
        batch=8,
        augment=Augment.none(),
        optim=OptimConfig(lr=1e-2, warmup=1, weight_decay=0.0),
        loop=LoopConfig(steps=steps, save_every=1),
        semi=SemiConfig(method, f"{store / 'split.json'}:pool", ramp=2, confidence=0.5),
        **changes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_ends_in_the_same_weights_and_teacher(store, tmp_path, method):
    """One run of three steps, and one that is stopped in its last stage and taken up again."""
    whole = finetune(settings(store, tmp_path / "whole", method), names=("case_0",), progress=QuietProgress())
    if method == "pseudo_labels":
        finetune(
            dataclasses.replace(settings(store, tmp_path / "stopped" / "teacher", method), semi=SemiConfig()),
            names=("case_0",),
            progress=QuietProgress(),
        )
    with pytest.raises(Preempted):
        finetune(settings(store, tmp_path / "stopped", method), names=("case_0",), progress=StopAfter(2))
    finetune(settings(store, tmp_path / "stopped", method), names=("case_0",), progress=QuietProgress())
    for part in ("params.", "extra."):
        one, other = (read_arrays(tmp_path / run, part) for run in ("whole", "stopped"))
        assert one and all(np.array_equal(one[name], other[name]) for name in one)
    card = load_model(whole).card["training"]
    assert (card["cases"], card["unlabelled"], len(card["scans"])) == (1, 2, 3)


def test_an_empty_pool_is_refused(store, tmp_path):
    (tmp_path / "split.json").write_text('{"none": []}')
    empty = dataclasses.replace(
        settings(store, tmp_path / "run", "mean_teacher"), semi=SemiConfig("mean_teacher", f"{tmp_path}/split.json:none")
    )
    with pytest.raises(ConfigError, match="no unlabelled case, and mean_teacher needs some"):
        finetune(empty, names=("case_0",))


def test_a_watched_case_in_the_pool_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="trained on: case_1"):
        finetune(settings(store, tmp_path / "run", "mean_teacher", monitor=f"{store / 'split.json'}:watch"), names=("case_0",))
