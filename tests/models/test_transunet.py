"""TransUNet: shapes at every level, gradients that reach every array, positions in millimetres. No packaged 3D peer exists."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.transunet import TransUNetConfig
from tests.convnets import random_network, shapes

TINY = TransUNetConfig(
    in_channels=2,
    num_classes=3,
    crop=(8, 8, 4),
    channels=(4, 6),
    blocks=(1, 1),
    strides=((2, 2, 1),),
    width=12,
    depth=2,
    heads=2,
    decoder_convs=1,
)


def test_logits_have_the_size_of_the_image_and_features_run_from_fine_to_coarse():
    logits, maps = shapes(dataclasses.replace(TINY, dtype="bfloat16"), (2, 12, 8, 4, 2))
    assert logits.shape == (2, 12, 8, 4, 3) and logits.dtype == np.float32
    assert maps == [(12, 8, 4, 4), (6, 4, 4, 12)]
    base = TransUNetConfig.base()
    assert base.transformer.grid == (6, 6, 6) and base.stride == (16, 16, 16)
    logits, maps = shapes(base, (1, 96, 96, 96, 1))
    assert maps == [(96, 96, 96, 32), (48, 48, 48, 64), (24, 24, 24, 128), (12, 12, 12, 256), (6, 6, 6, 768)]


def test_every_array_gets_a_gradient_and_skips_and_tokens_both_reach_the_logits():
    graph, params = random_network(dataclasses.replace(TINY, positions="rope_mm", width=24))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4, 2)).astype(np.float32)
    spacing = np.ones((1, 3), np.float32)

    @jax.jit
    def both(params, spacing):
        def loss(params):
            logits = nnx.merge(graph, params)(x, spacing=spacing)
            return (logits**2 * np.arange(3)).sum(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = both(params, spacing)
    for path, leaf in nnx.to_flat_state(gradient):
        assert np.isfinite(leaf[...]).all() and np.abs(leaf[...]).max() > 0, path
    # Spacing moves the tokens alone: an effect of it on the logits has passed the transformer.
    assert np.abs(both(params, spacing * np.array([[1, 1, 4]], np.float32))[1] - logits).max() > 1e-4


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(ShapeError, match=r"\(9, 8, 4\) voxels is no multiple of \(2, 2, 1\)"):
        shapes(TINY, (1, 9, 8, 4, 2))
    with pytest.raises(ConfigError, match=r"crop \(7, 8, 4\) is not a multiple of \(2, 2, 1\)"):
        dataclasses.replace(TINY, crop=(7, 8, 4))
    with pytest.raises(ConfigError, match="one number for each of channels"):
        dataclasses.replace(TINY, blocks=(1,))
