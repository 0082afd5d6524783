"""A UNETR or UNETR+ with an encoder of depth 0: the convolutional network around the transformer, and nothing of the transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models import UNETRConfig, UNETRPlusConfig, ViTConfig
from jaxseg.zoo.names import param_shapes
from jaxseg.zoo.registry import architecture, build, network_of

ENCODER = ViTConfig(crop=(16, 16, 16), token=(8, 8, 8), width=24, depth=4, heads=2)


@pytest.mark.parametrize("kind", [UNETRConfig, UNETRPlusConfig])
def test_only_the_transformer_and_the_paths_of_its_hidden_states_are_gone(kind):
    whole = kind(encoder=ENCODER, feature=4, stride=2)
    bare = dataclasses.replace(whole, encoder=dataclasses.replace(ENCODER, depth=0))
    with_it, without = (param_shapes(nnx.eval_shape(lambda c=c: network_of(c))) for c in (whole, bare))
    gone = set(with_it) - set(without)
    assert set(without) < set(with_it)
    assert all(".blocks." in name or name.startswith("skips.") or ".state." in name or ".block." in name for name in gone)
    assert not any("blocks" in name for name in without)


@pytest.mark.parametrize("kind", [UNETRConfig, UNETRPlusConfig])
def test_it_is_a_network_of_the_image_like_any_other(kind):
    network = network_of(kind(encoder=dataclasses.replace(ENCODER, depth=0), feature=4, stride=2))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 16, 1))
    one, other = (np.asarray(network(image, spacing=jnp.full((1, 3), 2.0))) for image in (x, jnp.flip(x, 1)))
    assert one.shape == (1, 16, 16, 16, 2) and np.isfinite(one).all()
    assert np.abs(one - other).max() > 1e-3
    rebuilt = build(architecture(network))
    assert rebuilt.config == network.config


def test_a_depth_between_none_and_enough_is_refused():
    with pytest.raises(ConfigError, match="deeper encoder"):
        UNETRConfig(encoder=dataclasses.replace(ENCODER, depth=1), stride=1)
    with pytest.raises(ConfigError, match="depth is -1"):
        dataclasses.replace(ENCODER, depth=-1)
