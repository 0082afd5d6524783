"""Both programs draw from further stores where their config names them: the card says so, and what cannot be resumed or monitored is refused."""

import dataclasses
import json

import pytest

from finetune.config import FinetuneConfig, stored
from finetune.train import finetune
from jaxseg.config import as_json
from jaxseg.data.augment import Augment
from jaxseg.data.catalog import open_store
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig, UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress
from jaxseg.zoo import load_model
from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from tests.tiny_store import write_scans

ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=12, depth=1, heads=1)
COMMON = {"augment": Augment.none(), "optim": OptimConfig(warmup=0), "batch": 8}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed_training")
    for name, seed in (("own", 0), ("other", 1)):
        prepare_folder(write_scans(root / f"{name}_scans", 2, seed=seed), root / name, processes=1)
    return root


def hashes(*folders) -> set[str]:
    return {digest for folder in folders for digest in open_store(folder).hashes(open_store(folder).names).values()}


@pytest.mark.slow
def test_a_pretraining_draws_from_both_and_resumes_only_with_both(stores, tmp_path):
    model = MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1)
    base = PretrainConfig(
        store=str(stores / "own"), out=str(tmp_path / "run"), model=model, loop=LoopConfig(steps=1, save_every=0), **COMMON
    )
    config = dataclasses.replace(base, also={str(stores / "other"): 0.5})
    folder = pretrain(config, progress=QuietProgress())
    training = load_model(folder).card["training"]
    assert training["cases"] == 4 and set(training["data"].values()) == hashes(stores / "own", stores / "other")
    with pytest.raises(ConfigError, match="holds a run with another config"):
        pretrain(base, progress=QuietProgress())


@pytest.mark.slow
def test_a_fine_tuning_is_balanced_over_both_and_monitors_no_case_that_it_sees(stores, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["case_0"], "watch": ["case_1"]}))
    config = FinetuneConfig(
        store=str(stores / "own"),
        out=str(tmp_path / "run"),
        split=f"{split}:train",
        also={str(stores / "other"): 3.0},
        also_split={str(stores / "other"): f"{split}:train"},
        balanced=True,
        model=UNETRConfig(encoder=ENCODER, feature=4, stride=2),
        loop=LoopConfig(steps=1, save_every=0),
        **COMMON,
    )
    training = load_model(finetune(config, progress=QuietProgress())).card["training"]
    assert training["cases"] == 2 and len(training["data"]) == 2
    seen = dataclasses.replace(config, out=str(tmp_path / "seen"), monitor=f"{split}:watch", also={str(stores / "own"): 1.0}, also_split={})
    with pytest.raises(ConfigError, match=r"--also .* has seen 1 of the 1 monitored cases"):
        finetune(seen, progress=QuietProgress())


def test_stored_configs_of_before_mean_what_they_meant():
    assert not {"balanced", "also", "also_split"} & stored(FinetuneConfig()).keys()
    assert stored(FinetuneConfig(balanced=True))["balanced"] is True
    assert as_json(PretrainConfig())["also"] == {} == as_json(PretrainConfig())["also_split"]
