"""VNet equals MONAI's in evaluation (stored logits everywhere, the module itself where torch is); its dropout falls where MONAI's does."""

import jax
import numpy as np
import pytest

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.vnet import VNetConfig
from tests.convnets import apply, check_golden, check_peer, random_network, shapes
from tests.peers import import_peer


def test_logits_are_the_peers_stored_ones():
    check_golden("vnet")


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "size"),
    [({"in_channels": 1, "act": "prelu", "bias": True}, (16, 32, 16)), ({"in_channels": 4, "out_channels": 2}, (32,) * 3)],
)
def test_logits_are_those_of_the_peers_module(arguments, size):
    torch, nets = import_peer("torch"), import_peer("monai.networks.nets")
    check_peer(torch, nets.VNet(**arguments), size, {})


@pytest.mark.slow
def test_dropout_takes_whole_channels_of_each_sample_or_single_numbers():
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 2)
    for dim in (1, 3):
        graph, params = random_network(VNetConfig(feature=2, dropout_dim=dim, act="relu"))
        drawn = np.asarray(apply(graph, params, x, keys))
        turned = np.asarray(apply(graph, params, x[::-1].copy(), keys[::-1]))
        np.testing.assert_allclose(drawn, turned[::-1], atol=2e-5)
        assert np.abs(drawn - apply(graph, params, x)).max() > 1e-2


def test_features_and_refusals():
    config = VNetConfig(in_channels=2, feature=4, num_classes=3)
    logits, maps = shapes(config, (1, 16, 32, 16, 2))
    assert logits.shape == (1, 16, 32, 16, 3)
    assert maps == [(16 >> i, 32 >> i, 16 >> i, 4 << i) for i in range(5)]
    with pytest.raises(ShapeError, match=r"\(24, 16, 16\) voxels is no multiple of \(16, 16, 16\)"):
        shapes(config, (1, 24, 16, 16, 2))
    with pytest.raises(ConfigError, match="in_channels 3 must divide feature 16"):
        VNetConfig(in_channels=3)
    with pytest.raises(ConfigError, match="dropout_prob_up is 1.5"):
        VNetConfig(dropout_prob_up=(1.5, 0.5))
