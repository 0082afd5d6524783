"""EvaMAE trains as MAE does: the loss falls on hidden tokens alone, and its encoder fits Primus. Equality is in `zoo/test_convert_primus.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.conv_stem import ConvStemConfig
from jaxseg.models.eva import EvaConfig, stack_eva_blocks
from jaxseg.models.eva_mae import EvaMAE, EvaMAEConfig
from jaxseg.models.primus import Primus, PrimusConfig
from jaxseg.zoo.names import param_shapes, unflatten_params

CONFIG = EvaMAEConfig(EvaConfig(crop=(16, 16, 16), token=(4, 4, 4), width=24, depth=2, heads=2), decoder_depth=1, decoder_heads=4)


def random_network(config):
    """Graph and parameters from numpy: nothing to compile."""
    graph, params = nnx.split(nnx.eval_shape(lambda: EvaMAE(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    return graph, unflatten_params(params, draw)


def test_the_loss_asks_for_hidden_tokens_and_sees_the_visible_alone():
    graph, params = random_network(CONFIG)
    image = np.random.default_rng(1).normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 2)

    @jax.jit
    def loss(image):
        return nnx.merge(graph, params).loss(image, jnp.ones((2, 16, 16, 16)), jnp.ones((2, 1)), None, keys)

    terms, where = loss(image)
    assert terms["mae"][1] == 2 * 48 * 64  # three quarters of 64 tokens of 64 voxels

    @jax.jit
    def sensitivity(image):
        network = nnx.merge(graph, params)
        patches = network.encoder.patchify(image)
        square = lambda p: jnp.sum(network.predict(p, (4, 4, 4), None, where["visible"], where["hidden"]) ** 2)
        return jnp.abs(jax.grad(square)(patches)).max(-1)

    seen = np.asarray(sensitivity(image))
    assert np.all(np.take_along_axis(seen, np.asarray(where["hidden"]), 1) == 0)
    assert np.all(np.take_along_axis(seen, np.asarray(where["visible"]), 1) > 0)


def test_its_encoder_is_that_of_primus():
    shapes = [
        {name: shape for name, shape in param_shapes(nnx.eval_shape(make)).items() if name.startswith("encoder.")}
        for make in (lambda: EvaMAE(CONFIG, rngs=nnx.Rngs(0)), lambda: Primus(PrimusConfig(CONFIG.encoder), rngs=nnx.Rngs(0)))
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 20


def test_first_weights_shrink_with_depth_as_evas_do():
    blocks = jax.jit(lambda: nnx.state(stack_eva_blocks(dataclasses.replace(CONFIG.encoder, width=96, depth=4), nnx.Rngs(0))))()
    for out in (blocks["attention"]["out"], blocks["mlp"]["out"]):
        np.testing.assert_allclose(np.asarray(out["kernel"][...]).std((1, 2)), 0.02 / np.sqrt(2 * np.arange(1, 5)), rtol=0.05)
    np.testing.assert_allclose(np.asarray(blocks["attention"]["query"]["kernel"][...]).std((1, 2)), 0.02, rtol=0.05)


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(ConfigError, match="must not see hidden voxels, and a convolutional stem would"):
        EvaMAEConfig(EvaConfig(stem=ConvStemConfig()))
    with pytest.raises(ConfigError, match="mask_ratio is 1"):
        dataclasses.replace(CONFIG, mask_ratio=1)
    with pytest.raises(ConfigError, match=r"decoder_heads is 5.*width of 24"):
        dataclasses.replace(CONFIG, decoder_heads=5)
