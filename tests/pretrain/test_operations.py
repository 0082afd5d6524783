"""What a pretraining costs: the masked autoencoder's operations in closed form, and a number for every objective."""

import jax
import optax
import pytest
from flax import nnx

from jaxseg.data.augment import Augment
from jaxseg.zoo.registry import network_of
from pretrain.objectives import OBJECTIVES
from pretrain.operations import operations_of
from tests.pretrain.test_objectives import CHANNELS, MODEL


def operations(name: str) -> int:
    objective = OBJECTIVES[name]
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(objective.settings(MODEL))))
    extra = jax.eval_shape(lambda params: objective.start(params, optax.sgd(1.0)), params).extra
    return operations_of(objective.loss_of(graph, Augment.none(), channels=("a", "b")), params, extra, MODEL.encoder.crop, CHANNELS)


def blocks(tokens: int, width: int, hidden: int, depth: int) -> int:
    """Projections, scores and mixing of the attention, and three matrices of a SwiGLU."""
    return depth * (2 * tokens * (4 * width**2 + 3 * width * hidden) + 4 * tokens**2 * width)


def test_a_masked_autoencoder_costs_what_its_layers_cost():
    encoder, decoder = MODEL.encoder, MODEL.decoder
    tokens, patch = 4**3, 2**3 * encoder.in_channels
    seen = hidden = tokens // 2
    wanted = (
        2 * seen * patch * encoder.width
        + blocks(seen, encoder.width, encoder.block.hidden, encoder.depth)
        + 2 * seen * encoder.width * decoder.width
        + blocks(tokens, decoder.width, decoder.block.hidden, decoder.depth)
        + 2 * hidden * decoder.width * patch
    )
    assert operations("mae") == 3 * wanted


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"mae"}))
def test_every_objective_has_a_cost(name):
    assert operations(name) > 0.5 * operations("contrastive")
