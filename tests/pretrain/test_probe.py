"""Probes read out what is planted in features and nothing else; collapse is seen; a run logs them."""

import numpy as np
import pytest

from jaxseg.data.duplicates import probed_of_card
from jaxseg.data.store import open_store
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress
from jaxseg.train.log import read_log
from jaxseg.zoo import load_model
from pretrain.config import PretrainConfig
from pretrain.probe import ProbeConfig, effective_rank, mean_cosine, read_crops, ridge_classes, score, token_classes
from pretrain.train import pretrain
from tests.tiny_store import write_scans

ENCODER = ViTConfig(in_channels=2, crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=1, heads=2)


def tokens(rng, count, plant):
    """Features of deviation 1 with the class along one direction, `plant` deviations apart, a quarter of the tokens in class 2."""
    classes = np.where(rng.random(count) < 0.25, 2, 0)
    features = rng.normal(size=(count, 12))
    features[:, 3] += plant * (classes == 2)
    return features.astype(np.float32), classes


def test_a_planted_feature_is_read_out_and_random_labels_give_chance():
    rng = np.random.default_rng(0)
    planted = score(tokens(rng, 800, 12.0), tokens(rng, 400, 12.0))
    assert planted["probe_linear"] > 0.99 and planted["probe_knn"] > 0.9
    nothing = score(tokens(rng, 800, 0.0), tokens(rng, 400, 0.0))
    # Guessing class 2 with chance q, where a quarter is, gives the Dice 2 q / (1 + 4 q): at most 0.4, for q = 1.
    assert nothing["probe_linear"] < 0.45 and nothing["probe_knn"] < 0.3


def test_the_linear_probe_is_the_weighted_least_squares_solution():
    rng = np.random.default_rng(1)
    features, classes = tokens(rng, 200, 1.0)
    weight = np.where(classes == 2, 1 / (classes == 2).sum(), 1 / (classes == 0).sum())
    design = np.c_[features, np.ones(200)] * np.sqrt(weight)[:, None]
    target = np.where(classes == 2, 1.0, -1.0) * np.sqrt(weight)
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    asked = rng.normal(size=(100, 12))
    expected = np.where(asked @ solution[:-1] + solution[-1] > 0, 2, 0)
    np.testing.assert_array_equal(ridge_classes(features, classes, asked, 1e-12), expected)


def test_collapse_is_seen():
    rng = np.random.default_rng(2)
    ball = rng.normal(size=(4000, 8))
    assert effective_rank(ball) == pytest.approx(8, abs=0.05)
    assert effective_rank(ball[:, :1] * np.ones(8)) == pytest.approx(1, abs=1e-6)
    collapsed = score(tokens(rng, 50, 1.0), (np.ones((50, 12), np.float32), np.zeros(50, int)))
    assert collapsed["feature_std"] == 0 and collapsed["feature_cosine"] == pytest.approx(1)
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(ball[:40]) for b in ball[:i]]
    assert mean_cosine(ball[:40]) == pytest.approx(np.mean(pairs), abs=1e-9)


def test_a_token_has_the_class_of_most_of_its_labelled_voxels():
    label = np.full((8, 8, 8), 255, np.uint8)
    label[:4, :4, :4] = 1
    label[:4, :4, 4:] = 0
    label[:3, :4, 4:] = 3
    np.testing.assert_array_equal(token_classes(label, ENCODER), [1, 3, -1, -1, -1, -1, -1, -1])
    assert (token_classes(np.full_like(label, 255), ENCODER) == -1).all()


def test_crops_of_a_store_hold_labels_and_are_the_same_again(tmp_path):
    prepare_folder(write_scans(tmp_path / "scans", 2), tmp_path / "store")
    store = open_store(tmp_path / "store")
    crops, again = (read_crops(store, store.names, ENCODER, 3) for _ in range(2))
    assert crops.image.shape == (6, 8, 8, 8, 2) and crops.classes.shape == (6, 8)
    np.testing.assert_array_equal(crops.image, again.image)
    assert (crops.classes == 1).any()


def test_a_probe_must_not_be_scored_on_what_it_learns_from():
    with pytest.raises(ConfigError, match="--probe.test"):
        ProbeConfig(store="somewhere", train=("a", "b"), test=("b",))


@pytest.mark.slow
def test_a_run_logs_its_probe_and_the_card_says_the_objective(tmp_path):
    prepare_folder(write_scans(tmp_path / "scans", 3), tmp_path / "store")
    names = open_store(tmp_path / "store").names
    config = PretrainConfig(
        store=str(tmp_path / "store"),
        out=str(tmp_path / "run"),
        objective="simmim",
        model=MAEConfig(encoder=ENCODER),
        optim=OptimConfig(warmup=1),
        loop=LoopConfig(steps=2, save_every=0),
        probe=ProbeConfig(store=str(tmp_path / "store"), train=names[:1], test=names[2:], every=1, crops=1),
    )
    model = load_model(pretrain(config, progress=QuietProgress()))
    assert all(scan.hashes for scan in probed_of_card(model.card)) and len(model.card["training"]["probed"]["scans"]) == 2
    assert model.card["objective"] == "simmim" and type(model.network).__name__ == "SimMIM"
    probes = [line["evaluation"] for line in read_log(tmp_path / "run" / "log.jsonl") if "evaluation" in line]
    assert len(probes) == 2
    assert set(probes[0]) == {"probe_linear", "probe_knn", "feature_std", "effective_rank", "feature_cosine", "picture_error"}
    assert [path.name for path in sorted((tmp_path / "run" / "pictures").iterdir())] == ["step_000001.png", "step_000002.png"]
    assert probes[0]["effective_rank"] > 1 and probes[0] != probes[1]
