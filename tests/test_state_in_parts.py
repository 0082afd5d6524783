"""Where the state lies in parts, no device holds more of it than the others while a program trains; and no batch is parted so that crops must move."""

import gc
from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from finetune import train as finetuning
from finetune.config import FinetuneConfig
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig, UNETRConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.train import Layout, LoopConfig, OptimConfig, QuietProgress
from pretrain import train as pretraining
from pretrain.config import PretrainConfig
from tests.tiny_store import write_scans

ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=64, depth=2, heads=2)
ONCE = LoopConfig(steps=1, save_every=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    prepare_folder(write_scans(folder / "scans"), folder / "store")
    return folder / "store"


def settings(kind, store, out, **changes):
    shared = dict(
        store=str(store), out=str(out), batch=8, augment=Augment.none(), optim=OptimConfig(warmup=0), loop=ONCE, layout="mesh", **changes
    )
    if kind == "pretrain":
        return PretrainConfig(model=MAEConfig(encoder=ENCODER, decoder_width=16, decoder_depth=1, decoder_heads=1), **shared)
    return FinetuneConfig(model=UNETRConfig(encoder=ENCODER, feature=8, stride=2), ema=0.9, labels=2, **shared)


def held():
    """Bytes of all buffers alive on each device.

    Each buffer once: an array that is asked for its shards keeps them, and they are arrays alive on the same buffer from then on.
    """
    gc.collect()
    shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards if shard.data.nbytes]
    buffers = {(shard.device.id, shard.data.unsafe_buffer_pointer()): shard.data.nbytes for shard in shards}
    found = Counter()
    for (device, _), size in buffers.items():
        found[device] += size
    return found


def test_a_buffer_counts_once_however_often_it_is_looked_at():
    array = jax.device_put(np.ones(1000, np.float32), jax.devices()[0])
    once = held()
    assert held() == once
    del array
    assert once - held() == Counter({0: 4000})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_no_device_keeps_a_whole_state_beside_its_part(kind, store, tmp_path, monkeypatch):
    program, run = (pretraining, pretraining.pretrain) if kind == "pretrain" else (finetuning, finetuning.finetune)
    monkeypatch.setattr(program, "Layout", partial(Layout, shard_min_bytes=0))
    before, seen = held(), []

    def fit(*args, **options):
        seen.append(held() - before)
        seen.append(sum(leaf.nbytes for leaf in jax.tree.leaves(args[1])))
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run(settings(kind, store, tmp_path / "out", fsdp=8), progress=QuietProgress())
    each, whole = seen
    assert max(each.values()) < 1.05 * min(each[device.id] for device in jax.devices())
    assert max(each.values()) < 0.2 * whole  # an eighth, and the arrays that eight does not divide


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_parts_of_a_batch_that_not_every_device_has_are_refused(kind, store, tmp_path):
    run = pretraining.pretrain if kind == "pretrain" else finetuning.finetune
    with pytest.raises(
        ConfigError, match="a batch of 8 on 8 devices cannot be accumulated in 2 equal parts; choose a batch that is a multiple of 16"
    ):
        run(settings(kind, store, tmp_path / "out", accumulate=2), progress=QuietProgress())
