"""Every objective's training step lowers for cuda and tpu from a CPU, without a CPU's forms; no token is scattered."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.zoo.registry import network_of
from pretrain.objectives import OBJECTIVES
from tests.pretrain.test_objectives import CHANNELS, MODEL, batch

GATHERED = {"mae", "latent", "mae_latent"}
"""What takes tokens out of an array and has to bring gradients back; the others' few scatters are of flags and likenesses."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_lowers_for_accelerators(name):
    model = dataclasses.replace(MODEL, encoder=dataclasses.replace(MODEL.encoder, positions="learned"), predict=0.5)
    objective, optimizer = OBJECTIVES[name], optax.adamw(1e-3)
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(objective.settings(model))))
    state = jax.eval_shape(lambda params: objective.start(params, optimizer), params)
    # Without augmentation, whose rotations are put together by tiny scatters.
    step = objective.make_step(graph, Augment.none(), optimizer, channels=tuple("ab"[:CHANNELS]))
    traced = jax.jit(step).trace(state, batch(), jax.random.key(0))
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "[b, 0, 1, f]" not in text, "a 2-D convolution: the CPU form"
        assert name not in GATHERED or "stablehlo.scatter" not in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_of_13824_tokens_holds_no_weights_of_all_pairs(platform):
    """24 tokens an axis: all pairs of one head would be 0.76 GB in float32, of those that are seen (a quarter) 0.05."""
    model = MAEConfig(
        encoder=ViTConfig(crop=(192, 192, 192), token=(8, 8, 8), width=64, depth=2, heads=1, dtype="bfloat16"),
        decoder_width=64,
        decoder_depth=1,
        decoder_heads=1,
    )
    objective, optimizer = OBJECTIVES["mae"], optax.adamw(1e-3)
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(objective.settings(model))))
    state = jax.eval_shape(lambda params: objective.start(params, optimizer), params)
    crop = {
        "image": jax.ShapeDtypeStruct((1, *model.encoder.crop, 1), jnp.float16),
        "mask": jax.ShapeDtypeStruct((1, *model.encoder.crop), jnp.uint8),
        "present": jax.ShapeDtypeStruct((1, 1), jnp.float32),
        "spacing": jax.ShapeDtypeStruct((1, 3), jnp.float32),
        "air": jax.ShapeDtypeStruct((1, 1), jnp.float32),
        "id": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    traced = jax.jit(objective.make_step(graph, Augment.none(), optimizer)).trace(state, crop, jax.random.key(0))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "x13824x" in text and "13824x13824" not in text and "3456x3456" not in text
