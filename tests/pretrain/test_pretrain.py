"""A pretraining run on a tiny store: it resumes to the bit, and what it leaves is an encoder that fine-tuning takes."""

import dataclasses
import shutil
import threading
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.data.loader import CropLoader
from jaxseg.errors import ConfigError, Preempted
from jaxseg.models import MAEConfig, ViTConfig, places, projected, simclr
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress
from jaxseg.zoo import load_model
from pretrain import train
from pretrain.config import PretrainConfig
from pretrain.objectives import OBJECTIVES, Contrast
from pretrain.pictures import PictureConfig
from pretrain.train import pretrain
from tests.stop_after import StopAfter
from tests.tiny_store import write_scans

MODEL = MAEConfig(
    encoder=ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2), decoder_width=12, decoder_depth=1, decoder_heads=1
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    prepare_folder(write_scans(folder / "scans", labelled=False), folder / "store")
    return folder / "store"


def config(store, out, steps=6, objective: Any = "mae"):
    return PretrainConfig(
        store=str(store),
        out=str(out),
        objective=objective,
        model=MODEL,
        batch=8,
        optim=OptimConfig(warmup=1),
        loop=LoopConfig(steps=steps, save_every=2, log_every=1),
        pictures=PictureConfig(keep=0),
    )


def arrays(folder):
    return jax.tree.leaves(nnx.state(load_model(folder).network))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "latent"])
def test_a_stopped_and_resumed_run_equals_one_that_was_not_stopped(store, tmp_path, objective):
    assert threading.current_thread() is threading.main_thread()
    whole = pretrain(config(store, tmp_path / "whole", objective=objective), progress=QuietProgress())
    with pytest.raises(Preempted, match="goes on from there"):
        pretrain(config(store, tmp_path / "parts", objective=objective), progress=StopAfter(3))
    parts = pretrain(config(store, tmp_path / "parts", objective=objective), progress=QuietProgress())
    for one, other in zip(arrays(whole), arrays(parts)):
        np.testing.assert_array_equal(one, other)
    card = load_model(whole).card
    assert card["objective"] == objective
    assert card["channels"] == ["T1", "T2"]
    assert card["training"]["cases"] == 4 and card["training"]["flops"] > 0
    assert len(card["training"]["data"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["contrastive", "simclr"])
def test_views_may_be_crops_of_a_scan_and_not_parts_of_one_crop(store, tmp_path, objective, monkeypatch):
    loaded, parts = [], []
    crops, cut = CropLoader, projected.cut_parts
    monkeypatch.setattr(train, "CropLoader", lambda *args, **options: loaded.append(options["crop"]) or crops(*args, **options))
    for module in (places, simclr):
        monkeypatch.setattr(module, "cut_parts", lambda x, origin, side: parts.append((x.shape[1:4], tuple(side))) or cut(x, origin, side))
    settings = dataclasses.replace(config(store, tmp_path, steps=1, objective=objective), contrast=Contrast(part=1.0, region=1.5))
    pretrain(settings, progress=QuietProgress())
    # One and a half times two tokens of four voxels is an even number of them: four.
    assert set(loaded) == {(16, 16, 16)} and set(parts) == {((16, 16, 16), (8, 8, 8))}
    with pytest.raises(ConfigError, match="contrast.region is 0.5"):
        Contrast(region=0.5)


def test_what_is_loaded_must_split_in_two_and_not_the_encoders_crop():
    odd = dataclasses.replace(MODEL, encoder=dataclasses.replace(MODEL.encoder, crop=(12, 8, 8)))
    with pytest.raises(ConfigError, match=r"\(3, 2, 2\) tokens, which do not split in two along every axis.*contrast.region"):
        OBJECTIVES["contrastive"].network(odd, Contrast())
    for region in (1.0, 2.0):
        assert OBJECTIVES["contrastive"].network(odd, Contrast(region=region)).encoder == odd.encoder


def test_the_seed_is_that_of_masks_and_augmentation_too(store, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def fit(step, state, loader, layout, run, loop, **options):
        seeds.append(loop.seed)
        raise Reached

    seeds: list[int] = []
    monkeypatch.setattr(train, "fit", fit)
    for seed, own in ((0, 0), (3, 0), (3, 7)):
        settings = config(store, tmp_path / f"{seed}{own}")
        with pytest.raises(Reached):
            pretrain(dataclasses.replace(settings, seed=seed, loop=dataclasses.replace(settings.loop, seed=own)), progress=QuietProgress())
    assert seeds == [0, 3, 7]


@pytest.mark.slow
def test_a_resumed_run_with_another_config_is_refused(store, tmp_path):
    pretrain(config(store, tmp_path / "run", steps=1), progress=QuietProgress())
    changed = dataclasses.replace(config(store, tmp_path / "run", steps=1), batch=16)
    with pytest.raises(ConfigError, match="batch: 8 then, 16 now"):
        pretrain(changed, progress=QuietProgress())


@pytest.mark.slow
def test_a_run_whose_scans_were_replaced_is_refused_instead_of_found_finished(tmp_path):
    scans = write_scans(tmp_path / "scans", count=2, labelled=False, shape=(12, 12, 12))
    prepare_folder(scans, tmp_path / "store", processes=1)
    pretrain(config(tmp_path / "store", tmp_path / "run", steps=1), progress=QuietProgress())
    shutil.copy2(scans / "case_0" / "T2.nii.gz", scans / "case_1" / "T2.nii.gz")
    prepare_folder(scans, tmp_path / "store", processes=1)
    with pytest.raises(ConfigError, match="scans or labels of case_1 have changed since"):
        pretrain(config(tmp_path / "store", tmp_path / "run", steps=1), progress=QuietProgress())


def test_a_store_and_a_run_folder_are_needed():
    with pytest.raises(ConfigError, match="--store STORE --out OUT"):
        pretrain(PretrainConfig())
