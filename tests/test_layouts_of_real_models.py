"""Loss, gradients and metrics of the MAE and the UNETR are the same on one device, under pmap and on a mesh; both steps lower for cuda and tpu."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.objective import make_loss
from jaxseg.data.augment import Augment
from jaxseg.models import MAE, UNETR, MAEConfig, UNETRConfig, ViTConfig
from jaxseg.train import Layout, TrainState, make_step
from pretrain.objectives import mae

SIDE, BATCH, CHANNELS = 16, 8, 2
ENCODER = ViTConfig(in_channels=CHANNELS, crop=(SIDE,) * 3, token=(4, 4, 4), width=24, depth=2, heads=2, drop_path=0.2)
LIGHT = Augment(affine=0.5, noise=0.5, blur=0.0, brightness=0.0, contrast=0.0, coarse=0.0, gamma=0.0)
KEY = 3


@cache
def batch():
    """Eight crops, the foreground in three of them alone: a device may hold none."""
    rng = np.random.default_rng(0)
    label = np.zeros((BATCH, *(SIDE,) * 3), np.uint8)
    label[:3, 4:9, 5:11, 3:12] = 1
    mask = np.ones_like(label)
    mask[:, :3] = 0
    return {
        "image": rng.normal(size=(BATCH, *(SIDE,) * 3, CHANNELS)).astype(np.float16),
        "mask": mask,
        "label": label,
        "present": np.array([[1.0, 1.0]] * 6 + [[1.0, 0.0]] * 2, np.float32),
        "spacing": np.tile(np.float32([2, 2, 3]), (BATCH, 1)),
        "air": np.zeros((BATCH, CHANNELS), np.float32),
        "id": np.arange(100, 100 + BATCH, dtype=np.int32),
    }


@cache
def problem(kind):
    if kind == "mae":
        network = MAE(MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1), rngs=nnx.Rngs(0))
        graph, params = nnx.split(network)
        return mae.make_loss(graph, LIGHT), params
    graph, params = nnx.split(UNETR(UNETRConfig(encoder=ENCODER, feature=4, stride=2), rngs=nnx.Rngs(0)))
    return make_loss(graph, Classes(("ball",), None), FinetuneConfig(augment=LIGHT)), params


def one_step(kind, layout):
    """Parameters after one step of plain gradient descent show the gradients; AdamW would hide a wrong factor."""
    loss, params = problem(kind)
    optimizer = optax.sgd(1.0)
    params = jax.tree.map(np.array, params)  # the step uses its state up
    state = layout.place(TrainState.create(params, optimizer))
    after, metrics = layout.compile(make_step(loss, optimizer))(state, layout.put(batch()), jax.random.key(KEY))
    return layout.host(after.params), {name: float(value) for name, value in jax.device_get(metrics).items()}


@cache
def reference(kind):
    return one_step(kind, Layout("pmap", devices=jax.devices()[:1]))


LAYOUTS = {
    "pmap 8": lambda: Layout("pmap"),
    "mesh fsdp 1": lambda: Layout("mesh"),
    "mesh fsdp 2": lambda: Layout("mesh", fsdp=2, shard_min_bytes=256),
    "mesh fsdp 4": lambda: Layout("mesh", fsdp=4, shard_min_bytes=256),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["mae", "unetr"])
def test_every_layout_gives_the_numbers_of_one_device(kind, name):
    layout = LAYOUTS[name]()
    params, metrics = one_step(kind, layout)
    expected_params, expected_metrics = reference(kind)
    for term, value in expected_metrics.items():
        assert metrics[term] == pytest.approx(value, rel=1e-5, abs=1e-6), term
    assert expected_metrics["grad_norm"] > 0.01
    for got, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params)):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("kind", ["mae", "unetr"])
def test_the_step_lowers_for_accelerators_from_a_cpu(kind, platform):
    loss, params = problem(kind)
    optimizer = optax.adamw(1e-3)
    state = TrainState.create(params, optimizer)
    lowered = jax.jit(make_step(loss, optimizer)).trace(state, batch(), jax.random.key(0)).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert ("stablehlo.convolution" in text) == (kind == "unetr")
    assert "[b, 0, 1, f]" not in text, "a 2-D convolution: the CPU form"
