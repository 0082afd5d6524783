"""Layers of encoders by name: stacked blocks, listed stages, a CNN with a transformer behind it; what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.errors import ConfigError
from jaxseg.train import OptimConfig, frozen, layer_depths, make_optimizer
from jaxseg.train.optim import multipliers


def tree(*names, stacked=()):
    """Parameters of one number, or of one for each of three stacked blocks."""
    nested = {}
    for name in (*names, *stacked):
        *path, leaf = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[leaf] = jnp.ones((3, 2) if name in stacked else (2,))
    return nested


def depths(params):
    return {name: depth.tolist() for name, depth in layer_depths(params).items()}


def test_stacked_blocks_have_a_vector():
    found = depths(tree("encoder.patch.kernel", "encoder.norm.scale", "head.kernel", stacked=("encoder.blocks.mlp.kernel",)))
    assert found == {"encoder.blocks.mlp.kernel": [1, 2, 3], "encoder.norm.scale": 4, "encoder.patch.kernel": 0, "head.kernel": 4}


def test_listed_stages_count_whatever_is_inside_them():
    names = ("encoder.patch_norm.scale", "encoder.stages.0.blocks.1.kernel", "encoder.stages.1.merge.kernel", "decoder.0.kernel")
    assert list(depths(tree(*names)).values()) == [3, 0, 1, 2]  # leaves of a dictionary come in the order of their names


def test_a_transformer_behind_a_cnn_goes_on_counting():
    found = depths(tree("encoder.stages.0.kernel", "encoder.stages.1.kernel", "transformer.norm.scale", stacked=("transformer.blocks.k",)))
    assert found["encoder.stages.1.kernel"] == 2 and found["transformer.blocks.k"] == [3, 4, 5] and found["transformer.norm.scale"] == 6


def test_an_encoder_alone_needs_no_name():
    assert depths(tree("patch.kernel", "norm.scale", stacked=("blocks.k",))) == {"blocks.k": [1, 2, 3], "norm.scale": 4, "patch.kernel": 0}


def test_stages_of_a_cnn_learn_at_decaying_rates():
    params = tree("encoder.stages.0.kernel", "encoder.stages.1.kernel", "encoder.stem.kernel", "head.kernel")
    factors = jax.tree.leaves(multipliers(OptimConfig(layer_decay=0.5, freeze=("encoder.stages.1",)), params))
    assert [float(factor) for factor in factors] == [0.25, 0.0, 0.125, 1.0]
    optimizer = make_optimizer(OptimConfig(lr=0.1, steps=10, warmup=0, weight_decay=0.0, clip=None, layer_decay=0.5), params)
    moved, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose([float(each[0]) for each in jax.tree.leaves(moved)], [-0.025, -0.05, -0.0125, -0.1], rtol=1e-5)


def test_what_is_frozen_is_a_mask_for_optax():
    params = tree("encoder.patch.kernel", "encoder.patchwork.kernel", "head.kernel")
    mask = frozen(params, ("encoder.patch",))
    assert jax.tree.leaves(mask) == [True, False, False]
    optimizer = optax.chain(optax.sgd(1.0), optax.transforms.freeze(mask))
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert [float(each[0]) for each in jax.tree.leaves(updates)] == [0.0, -1.0, -1.0]
    with pytest.raises(ConfigError, match=r"no parameter begins with encoder.pat; there are encoder.patch, encoder.patchwork, head.kernel"):
        frozen(params, ("encoder.pat",))
