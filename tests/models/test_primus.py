"""Primus equals dynamic-network-architectures' (stored logits everywhere, the module and its float64 gradients where torch is)."""

import dataclasses
import importlib.util
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.conv_stem import ConvStemConfig
from jaxseg.models.eva import EvaConfig
from jaxseg.models.primus import Primus, PrimusConfig, decode_factors, decode_widths
from jaxseg.zoo import create_model
from jaxseg.zoo.convert.nnssl_primus import convert_primus
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params
from tests.peers import import_peer, without_kinks

SMALL = EvaConfig(in_channels=2, crop=(16, 16, 16), token=(8, 8, 8), width=24, depth=3, heads=2, registers=2)


@pytest.fixture(scope="module")
def golden():
    """The module that made the golden file: its cases, and weights and images by seed."""
    path = Path(__file__).parents[1] / "golden" / "make_primus.py"
    spec = importlib.util.spec_from_file_location("make_primus", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def abstract(config):
    """The network's graph and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Primus(config, rngs=nnx.Rngs(0))))


def converted(state, **settings):
    found = convert_primus(Source(state, "Primus"), Settings(settings))
    graph, params = abstract(found.config)
    return graph, unflatten_params(params, found.arrays)


def random_network(config):
    """Graph and parameters from numpy: nothing to compile."""
    graph, params = abstract(config)
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    return graph, unflatten_params(params, draw)


@partial(jax.jit, static_argnums=0)
def apply(graph, params, image, key=None):
    return nnx.merge(graph, params)(image, key=key)


def run(graph, params, image, **others):
    return np.asarray(apply(graph, params, image, **others))


@pytest.mark.parametrize("name", ["registers", "bare", "v2", "v3"])
def test_logits_are_the_peers_stored_ones(golden, name):
    case = golden.CASES[name]
    wanted = np.load(golden.FILE)[name]
    settings = case.settings() | ({"activation": "relu" if name == "v2" else "leaky_relu"} if case.widths else {})
    logits = run(*converted(golden.make_state(case), **settings), golden.make_image(case))
    assert logits.dtype == np.float32 and logits.shape == (2, *case.size, case.classes)
    assert np.abs(logits[:, ::2, ::2, ::2] - wanted).max() <= 1e-5 * np.ptp(wanted)


def with_telling_weights(net, torch):
    """Biases, scales and positions that are not 0 or 1, and attention that looks at something: what a fresh network hides."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "pos_embed" in name or "register" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape)).add_(0.5 * (parameter.ndim == 0))
            elif "q_proj" in name or "k_proj" in name:
                parameter.mul_(2)
    return net.eval()


def against(net, channels, size, batch=1, **settings):
    """Largest difference of logits, relative to their range."""
    torch = import_peer("torch")
    with_telling_weights(net, torch)
    image = np.random.default_rng(0).normal(size=(batch, *size, channels)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    logits = run(*converted({key: value.numpy() for key, value in net.state_dict().items()}, crop=size, **settings), image)
    assert logits.shape == wanted.shape
    return np.abs(logits - wanted).max() / np.ptp(wanted)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "channels", "classes", "size", "token", "width", "heads", "others"),
    [
        ("Primus", 1, 2, (24, 16, 8), (8, 8, 8), 132, 2, {"init_values": 0.1, "scale_attn_inner": True}),
        ("Primus", 4, 14, (16, 16, 48), (16, 8, 4), 36, 1, {"num_register_tokens": 1, "rope_kwargs": {"temperature": 50.0}}),
        ("Primus", 2, 1, (4, 8, 6), (2, 2, 2), 60, 3, {"use_rot_pos_emb": False, "mlp_ratio": 3.3, "use_abs_pos_embed": False}),
        pytest.param("PrimusV2", 2, 5, (8, 24, 16), (8, 8, 8), 48, 4, {"init_values": 1.0}, marks=pytest.mark.slow),
        ("PrimusV3", 1, 3, (8, 16, 24), (4, 4, 4), 36, 2, {"depth_per_level": (2, 1), "ch_per_level": (8, 12, 20)}),
        pytest.param(
            *("PrimusV3", 2, 2, (24, 8, 16), (8, 8, 8), 36, 2, {"add_skips": False, "ch_per_level": (8, 8, 16, 32)}), marks=pytest.mark.slow
        ),
    ],
)
def test_logits_are_those_of_the_peers_module(kind, channels, classes, size, token, width, heads, others):
    primus = import_peer("dynamic_network_architectures.architectures.primus")
    net = getattr(primus, kind)(channels, width, token, classes, 2, heads, size, **others)
    settings = {"rope_base": 50.0} if "rope_kwargs" in others else {"rotary": others.get("use_rot_pos_emb", True)}
    assert against(net, channels, size, batch=2, heads=heads, **settings) <= 1e-5


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("PrimusS", (16, 24, 32)), ("PrimusV2S", (24, 16, 16))])
def test_published_networks_need_no_setting_but_the_crop(kind, size):
    primus = import_peer("dynamic_network_architectures.architectures.primus")
    assert against(getattr(primus, kind)(1, 3, (8, 8, 8), size), 1, size) <= 1e-5


@pytest.mark.parity
@pytest.mark.slow
def test_gradients_are_those_of_the_peer_in_float64(monkeypatch):
    monkeypatch.setattr("jax.nn.relu", jax.nn.softplus)
    torch, primus = import_peer("torch"), import_peer("dynamic_network_architectures.architectures.primus")
    size = (16, 8, 24)
    net = with_telling_weights(primus.PrimusV2(2, 36, (8, 8, 8), 3, 2, 2, size, init_values=0.1, scale_attn_inner=True), torch)
    state = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    graph, params = converted(state, heads=2, crop=size)
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(1, *size, 2)).astype(np.float32), rng.normal(size=(1, *size, 3)).astype(np.float32)

    out = without_kinks(net, torch).double()(torch.from_numpy(image).double().permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    (out * torch.from_numpy(weight)).sum().backward()
    theirs = {key: parameter.grad.numpy() for key, parameter in net.named_parameters()}
    found = convert_primus(Source(theirs, "Primus"), Settings({"heads": 2, "crop": size}))

    ours = flatten_params(jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image) * weight)))(params))
    assert ours.keys() == found.arrays.keys()
    # A convolution's bias before a norm has no effect: its gradient is 0, and rounding is all that there is to compare.
    compared = {name: wanted for name, wanted in found.arrays.items() if not name.endswith("conv.bias")}
    largest = max(np.abs(wanted).max() for wanted in compared.values())
    worst = {n: np.abs(ours[n] - w).max() / max(np.abs(w).max(), 1e-3 * largest) for n, w in compared.items()}
    assert max(worst.values()) <= 5e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize(
    ("name", "millions"), [("primus_s", 23.386526), ("primus_v2_s", 24.159518), ("primus_v3_s", 70.596165), ("primus_m", 145.551770)]
)
def test_sizes_have_the_peers_parameters(name, millions):
    # Counted in dynamic-network-architectures' PrimusS, PrimusV2S, PrimusV3S and PrimusM: one channel, two classes, 64 voxels a side.
    network = nnx.eval_shape(lambda: create_model(name, crop=64))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == round(millions * 1e6)


def test_every_axis_doubles_until_it_is_a_voxel():
    assert decode_factors((8, 8, 8)) == ((2, 2, 2),) * 3
    assert decode_factors((16, 8, 1)) == ((2, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 1))
    assert decode_widths((8, 8, 8), 864, 2) == (864, 144, 24, 2)  # dim_red is exactly 6
    assert decode_widths((2, 2, 2), 60, 1) == (60, 1)
    assert decode_widths((16, 16, 16), 36, 100) == (36, 56, 88, 128, 100)


def test_other_sizes_than_the_crop_stretch_the_position_table():
    graph, params = random_network(PrimusConfig(dataclasses.replace(SMALL, depth=1), num_classes=2))
    flat = flatten_params(params)
    name = "encoder.positions.table"
    constant = unflatten_params(params, {key: np.ones_like(value) if key == name else value for key, value in flat.items()})
    stretched = PrimusConfig(dataclasses.replace(SMALL, depth=1, crop=(32, 16, 8)), num_classes=2)
    graph_of_it, shapes = abstract(stretched)
    table = np.ones(param_shapes(shapes)[name], np.float32)
    same = unflatten_params(shapes, flatten_params(constant) | {name: table})
    image = np.random.default_rng(0).normal(size=(1, 32, 16, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(run(graph, constant, image), run(graph_of_it, same, image), atol=1e-5)


def test_features_are_the_tokens_on_their_grid_and_the_last_is_all_that_the_decoder_sees():
    graph, params = random_network(PrimusConfig(SMALL))
    image = np.random.default_rng(0).normal(size=(1, 16, 8, 24, 2)).astype(np.float32)

    @jax.jit
    def both(params):
        network = nnx.merge(graph, params)
        return network.features(image), network.decoder(network.features(image)[-1])

    features, decoded = both(params)
    assert [f.shape for f in features] == [(1, 2, 1, 3, 24)] * 3  # after the first, second and third of three blocks
    np.testing.assert_allclose(decoded, run(graph, params, image), atol=1e-5)


def test_drop_path_is_drawn_per_sample_and_in_training_alone():
    graph, params = random_network(PrimusConfig(dataclasses.replace(SMALL, drop_path=0.5)))
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 16, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    together = run(graph, params, image, key=keys)
    np.testing.assert_allclose(together, run(graph, params, image[::-1].copy(), key=keys[::-1])[::-1], atol=2e-5)
    assert np.abs(together - run(graph, params, image)).max() > 1e-3


def test_switches_for_memory_keep_the_answer():
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 16, 2)).astype(np.float32)
    exact = run(*random_network(PrimusConfig(SMALL)), image)
    np.testing.assert_allclose(run(*random_network(PrimusConfig(dataclasses.replace(SMALL, remat=True))), image), exact, atol=1e-5)
    stem = dataclasses.replace(SMALL, stem=ConvStemConfig((4, 8, 8, 8), activation="leaky_relu", skips=True))
    full, half = (run(*random_network(PrimusConfig(dataclasses.replace(stem, dtype=d))), image) for d in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.1 * np.ptp(full)


def test_what_does_not_fit_is_said_with_numbers():
    graph, params = abstract(PrimusConfig(SMALL))
    for shape, said in [
        ((1, 12, 16, 16, 2), r"\(12, 16, 16\) voxels does not divide"),
        ((1, 16, 16, 16, 3), r"expected \(b, x, y, z, 2\)"),
    ]:
        with pytest.raises(ShapeError, match=said):
            jax.eval_shape(partial(apply.__wrapped__, graph), params, jnp.zeros(shape))
    with pytest.raises(ConfigError, match="width 24 / 3 heads is 8"):
        dataclasses.replace(SMALL, heads=3)
    with pytest.raises(ConfigError, match=r"stem of 3 levels makes tokens of 8 voxels.*token is \(4, 4, 4\)"):
        dataclasses.replace(SMALL, token=(4, 4, 4), stem=ConvStemConfig())
    with pytest.raises(ConfigError, match=r"token is \(6, 8, 8\).*powers of two"):
        PrimusConfig(dataclasses.replace(SMALL, token=(6, 8, 8), crop=(12, 16, 16)))
    with pytest.raises(ConfigError, match="one width more than depths"):
        ConvStemConfig((8, 8))
