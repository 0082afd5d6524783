"""ResUNet equals MONAI's UNet (stored logits everywhere, the module itself where torch is); its dropout and its refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError, ShapeError
from jaxseg.models.conv_unit import Noise
from jaxseg.models.resunet import ResUNetConfig
from jaxseg.zoo.convert.monai_convnets import convert_unet
from jaxseg.zoo.convert.source import Settings, Source
from tests.convnets import apply, check_golden, check_peer, convert, golden, random_network, shapes
from tests.peers import import_peer

TINY = ResUNetConfig(in_channels=2, num_classes=3, channels=(4, 6), strides=(2,), num_res_units=1)


@pytest.mark.parametrize("name", ["unet", "unet_plain"])
def test_logits_are_the_peers_stored_ones(name):
    check_golden(name)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("arguments", "size", "settings"),
    [
        ((3, 4, (4, 8, 8, 12), (2, (1, 2, 2), 1)), (8, 12, 16), {"strides": (2, (1, 2, 2), 1)}),
        ((1, 2, (16, 32, 64), (2, 2)), (32, 16, 24), {}),
    ],
)
def test_logits_are_those_of_the_peers_module(arguments, size, settings):
    torch, nets = import_peer("torch"), import_peer("monai.networks.nets")
    others = {"kernel_size": (3, 5, 1), "up_kernel_size": (5, 3, 3), "num_res_units": 3, "bias": False, "norm": "batch"} if settings else {}
    check_peer(torch, nets.UNet(3, *arguments, **{"num_res_units": 2, **others}), size, settings)


def test_strides_are_told_from_the_shortcuts():
    module = golden()
    case = module.CASES["unet"]
    state = module.make_state(case, module.stored_shapes("unet"))
    found = convert(state, {})
    assert found.config == ResUNetConfig(
        channels=(4, 8, 16), strides=(2, 2), kernel_size=(3, 3, 3), up_kernel_size=(3, 3, 3), num_res_units=2
    )
    # A level without a stride changes channels by a 1x1x1 shortcut.
    name = "model.1.submodule.0.residual.weight"
    flat = convert(state | {name: np.ascontiguousarray(state[name][:, :, :1, :1, :1])}, {})
    assert flat.config.strides == (2, 1)
    with pytest.raises(CheckpointError, match=r"1 arrays have no place here, among them \['model.3.weight'\]"):
        convert(state | {"model.3.weight": np.zeros(3, np.float32)}, {})


def test_norms_that_arrays_cannot_tell_are_said_and_others_refused():
    module = golden()
    scaled = module.make_state(module.CASES["unet_plain"], module.stored_shapes("unet_plain"))
    bare = {key: value for key, value in scaled.items() if ".adn.N." not in key}
    for state, kind in ((bare, "instance"), (scaled, "instance_affine")):
        settings = Settings()
        assert convert_unet(Source(state, "MONAI UNet"), settings).config.norm == kind
        assert any(line.startswith(f"norm = {kind} (") for line in settings.said)
        assert convert(state, {"norm": kind}).config.norm == kind
        with pytest.raises(ConfigError, match=f"norm is 'group'.* {kind} alone.*adn_ordering=DA"):
            convert(state, {"norm": "group"})
    settings = Settings({"adn_ordering": "DA"})
    convert_unet(Source(bare, "MONAI UNet"), settings)
    assert not any(line.startswith("norm") for line in settings.said)


def test_dropout_is_drawn_per_sample_and_keeps_the_mean():
    config = dataclasses.replace(TINY, dropout=0.5)
    graph, params = random_network(config)
    x = np.random.default_rng(0).normal(size=(3, 4, 8, 4, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    drawn = np.asarray(apply(graph, params, x, keys))
    np.testing.assert_allclose(drawn, np.asarray(apply(graph, params, x[::-1].copy(), keys[::-1]))[::-1], atol=1e-4)
    assert np.abs(drawn - apply(graph, params, x)).max() > 0.05
    # Not the same places in every layer: else two draws of one key would drop equally.
    noise, ones = Noise(keys), jnp.ones((3, 16, 16, 16, 4))
    first, second = noise.drop(ones, 0.25), noise.drop(ones, 0.25)
    assert set(np.unique(first)) == {0, np.float32(4 / 3)} and abs(float(first.mean()) - 1) < 0.02
    assert abs(float(((first > 0) == (second > 0)).mean()) - (0.75**2 + 0.25**2)) < 0.02


def test_stored_statistics_get_no_gradient_and_the_rest_does():
    graph, params = random_network(dataclasses.replace(TINY, norm="frozen_batch"))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4, 2)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: (nnx.merge(graph, p)(x) ** 2).sum()))(params)
    for path, leaf in nnx.to_flat_state(gradient):
        assert (np.abs(leaf[...]).max() == 0) == (path[-1] in ("mean", "var")), path


def test_features_are_fine_to_coarse_and_logits_have_the_size_of_the_image():
    config = ResUNetConfig(in_channels=1, channels=(4, 6, 8), strides=(2, (2, 1, 3)), num_res_units=0, dtype="bfloat16")
    logits, maps = shapes(config, (1, 8, 6, 12, 1))
    assert logits.shape == (1, 8, 6, 12, 2) and logits.dtype == np.float32
    assert maps == [(4, 3, 6, 4), (2, 3, 2, 6), (2, 3, 2, 8)]


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(ShapeError, match=r"\(7, 8, 8\) voxels is no multiple of \(2, 2, 2\)"):
        shapes(TINY, (1, 7, 8, 8, 2))
    with pytest.raises(ShapeError, match=r"\(1, 8, 8, 8, 1\); expected \(b, x, y, z, 2\)"):
        shapes(TINY, (1, 8, 8, 8, 1))
    for field, value, message in (
        ("strides", (2, 2), "a stride between each two"),
        ("kernel_size", 2, "positive odd numbers"),
        ("act", "tanh", "one of prelu, relu"),
        ("norm", "batch", "frozen_batch"),
        ("adn_ordering", "NN", "at most once"),
        ("dropout", 1.0, "below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(TINY, **{field: value})
