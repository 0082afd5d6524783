"""Programs are forgotten before a process has as many memory maps as Linux allows, and a training sees to it."""

import sys

import jax
import jax.numpy as jnp
import pytest

from jaxseg import loaded_programs
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress
from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from tests.tiny_store import write_scans

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")


def load_programs(count):
    for size in range(1, count + 1):
        jax.jit(lambda x: jnp.sort(x) * x.size + 1)(jnp.ones(size))


def limit(monkeypatch, path, maps):
    path.write_text(f"{maps}\n")
    monkeypatch.setattr(loaded_programs, "_LIMIT", path)


def test_programs_are_forgotten_at_a_share_of_the_limit_and_not_before(monkeypatch, tmp_path):
    kept = jax.jit(lambda x: x * 3)
    assert kept(jnp.ones(2)).sum() == 6
    load_programs(20)
    before = loaded_programs.memory_maps()
    limit(monkeypatch, tmp_path / "limit", 5 * before)
    assert not loaded_programs.forget_programs()
    limit(monkeypatch, tmp_path / "limit", 3 * before)
    assert loaded_programs.forget_programs()
    assert loaded_programs.memory_maps() < before - 20
    assert kept(jnp.ones(2)).sum() == 6


def test_a_training_begins_by_forgetting_those_of_the_ones_before(monkeypatch, tmp_path):
    prepare_folder(write_scans(tmp_path / "scans", 2), tmp_path / "store")
    encoder = ViTConfig(in_channels=2, crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=1, heads=2)
    counts = []
    for run in ("a", "b", "c"):
        load_programs(20)
        limit(monkeypatch, tmp_path / "limit", 4 * loaded_programs.memory_maps() - 4)  # a little more than the share is used
        config = PretrainConfig(
            store=str(tmp_path / "store"),
            out=str(tmp_path / run),
            model=MAEConfig(encoder=encoder),
            optim=OptimConfig(warmup=1),
            loop=LoopConfig(steps=1, save_every=0),
        )
        pretrain(config, progress=QuietProgress())
        counts.append(loaded_programs.memory_maps())
    assert counts[2] < 1.1 * counts[0], "each training adds its programs to those of the ones before"
