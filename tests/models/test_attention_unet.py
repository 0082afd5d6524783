"""AttentionUNet equals MONAI's AttentionUnet in evaluation (stored logits everywhere, the module and float64 gradients where torch is)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.attention_unet import AttentionUNetConfig
from jaxseg.zoo.names import flatten_params
from tests.convnets import apply, check_golden, check_peer, convert, network, random_network, randomise, shapes
from tests.peers import import_peer


def test_logits_are_the_peers_stored_ones():
    check_golden("attention_unet")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("arguments", "others", "size", "settings"),
    [
        ((1, 2, (16, 32, 64), (2, 2)), {}, (24, 16, 32), {}),
        ((2, 3, (6, 8), (3,)), {"kernel_size": 5, "up_kernel_size": (1, 3, 5)}, (6, 9, 12), {"strides": (3,)}),
    ],
)
def test_logits_are_those_of_the_peers_module(arguments, others, size, settings):
    torch, nets = import_peer("torch"), import_peer("monai.networks.nets")
    check_peer(torch, nets.AttentionUnet(3, *arguments, **others), size, settings, seed=3)


@pytest.mark.parity
def test_gradients_are_those_of_the_peer_in_float64():
    torch, nets = import_peer("torch"), import_peer("monai.networks.nets")
    torch.set_num_threads(1)
    net = nets.AttentionUnet(3, 1, 2, (4, 6), (2,))
    found = convert(randomise(torch, net, 0), {})
    graph, params = network(found)
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(1, 8, 8, 8, 1)).astype(np.float32), rng.normal(size=(1, 8, 8, 8, 2)).astype(np.float32)

    out = net.double()(torch.from_numpy(image).double().permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    (out * torch.from_numpy(weight)).sum().backward()
    buffers = {key: np.zeros(value.shape) for key, value in net.named_buffers()}
    wanted = convert({key: p.grad.numpy() for key, p in net.named_parameters()} | buffers, {}).arrays

    ours = flatten_params(jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image) * weight)))(params))
    assert ours.keys() == wanted.keys()
    largest = max(np.abs(value).max() for value in wanted.values())
    # The second term: sums over voxels that cancel (for a bias before an instance norm altogether) leave rounding alone.
    for name in ours:
        assert np.abs(ours[name] - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max() + 1e-6 * largest, name


def test_a_new_network_normalises_each_sample_by_itself_and_learns():
    config = AttentionUNetConfig(channels=(4, 6), strides=(2,), num_classes=2, dropout=0.2)
    graph, params = random_network(config)
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 8, 1)).astype(np.float32)
    together = np.asarray(apply(graph, params, x))
    np.testing.assert_allclose(together[:1], apply(graph, params, x[:1]), atol=2e-5)
    gradient = jax.jit(jax.grad(lambda p, k: (nnx.merge(graph, p)(x, key=k) ** 2).sum()))(params, jax.random.split(jax.random.key(0), 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_features_and_refusals():
    config = AttentionUNetConfig(channels=(4, 6, 8), strides=(2, (2, 1, 3)))
    logits, maps = shapes(config, (1, 8, 6, 12, 1))
    assert logits.shape == (1, 8, 6, 12, 2)
    assert maps == [(8, 6, 12, 4), (4, 3, 6, 6), (2, 3, 2, 8)]
    with pytest.raises(ShapeError, match=r"no multiple of \(4, 2, 6\)"):
        shapes(config, (1, 8, 6, 10, 1))
    with pytest.raises(ConfigError, match="instance_affine, frozen_batch"):
        AttentionUNetConfig(norm="batch")  # pyright: ignore[reportArgumentType]
