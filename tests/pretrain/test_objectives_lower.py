"""Every objective's training step lowers for cuda and tpu from a CPU, without a CPU's forms; no token is scattered."""

import dataclasses

import jax
import optax
import pytest
from flax import nnx

from jaxseg.data.augment import Augment
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
