"""UNETR equals MONAI's (stored logits everywhere, the module itself and its float64 gradients where torch is), for any token and stride."""

import dataclasses
import importlib.util
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError, ShapeError
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.vit import ViTConfig
from jaxseg.zoo.convert.monai_unetr import convert_unetr
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params
from tests.peers import without_kinks

SMALL = ViTConfig(in_channels=2, crop=(16, 16, 16), token=(8, 8, 8), width=24, depth=2, heads=2)


@pytest.fixture(scope="module")
def golden():
    """The module that made the golden file: its cases, and weights and images by seed."""
    path = Path(__file__).parents[1] / "golden" / "make_unetr.py"
    spec = importlib.util.spec_from_file_location("make_unetr", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def abstract(config):
    """The network's graph and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: UNETR(config, rngs=nnx.Rngs(0))))


def converted(state, **how):
    config, arrays = convert_unetr(state, **how)
    graph, params = abstract(config)
    return graph, unflatten_params(params, arrays)


def random_network(config):
    """Graph and parameters from numpy: nothing to compile."""
    graph, params = abstract(config)
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    return graph, unflatten_params(params, draw)


@partial(jax.jit, static_argnums=0)
def apply(graph, params, image, spacing=None, key=None):
    return nnx.merge(graph, params)(image, spacing=spacing, key=key)


def run(graph, params, image, **others):
    return np.asarray(apply(graph, params, image, **others))


@pytest.mark.parametrize("name", ["conv", "perceptron"])
def test_logits_are_the_peers_stored_ones(golden, name):
    case = golden.CASES[name]
    wanted = np.load(golden.FILE)[name]
    graph, params = converted(golden.make_state(case), heads=case.heads, crop=case.size)
    logits = run(graph, params, golden.make_image(case))
    assert logits.dtype == np.float32 and logits.shape == (2, *case.size, case.classes)
    assert np.abs(logits[:, ::2, ::2, ::2] - wanted).max() <= 1e-5 * np.ptp(wanted)


def peer(embedding, channels, classes, size, width, feature=16):
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(width + channels)
    return torch, nets.UNETR(channels, classes, size, feature, width, 2 * width, width // 24, proj_type=embedding).eval()


def numpy_state(net):
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("embedding", "channels", "classes", "size", "width"),
    [("conv", 1, 1, (32, 32, 32), 96), ("perceptron", 1, 14, (16, 48, 32), 96), ("conv", 4, 3, (64, 64, 64), 192)],
)
def test_logits_are_those_of_the_peers_module(embedding, channels, classes, size, width):
    torch, net = peer(embedding, channels, classes, size, width)
    image = np.random.default_rng(0).normal(size=(1, *size, channels)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    logits = run(*converted(numpy_state(net), heads=width // 24, crop=size), image)
    assert np.abs(logits - wanted).max() <= 1e-5 * np.ptp(wanted)


@pytest.mark.parity
@pytest.mark.slow
def test_gradients_are_those_of_the_peer_in_float64(monkeypatch):
    monkeypatch.setattr("jaxseg.models.unetr.leaky_relu", jax.nn.softplus)
    torch, net = peer("conv", 2, 3, (32, 32, 32), 48, feature=4)
    graph, params = converted(numpy_state(net), heads=2)
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(1, 32, 32, 32, 2)).astype(np.float32), rng.normal(size=(1, 32, 32, 32, 3)).astype(np.float32)

    out = without_kinks(net, torch).double()(torch.from_numpy(image).double().permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    (out * torch.from_numpy(weight)).sum().backward()
    theirs = {key: p.grad.numpy() for key, p in net.named_parameters() if p.grad is not None}
    wanted = convert_unetr(theirs, heads=2)[1]

    ours = flatten_params(jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image) * weight)))(params))
    assert ours.keys() == wanted.keys()
    worst = {name: np.abs(ours[name] - wanted[name]).max() / np.abs(wanted[name]).max() for name in ours}
    assert max(worst.values()) <= 1e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


def test_conversion_refuses_what_it_does_not_know(golden):
    case = golden.CASES["perceptron"]
    state = golden.make_state(case)
    with pytest.raises(CheckpointError, match=r"1 arrays have no place here, among them \['vit.cls_token'\]"):
        convert_unetr(state | {"vit.cls_token": np.zeros(3)}, heads=4)
    with pytest.raises(CheckpointError, match=r"decoder3\.conv_block\.conv2\.conv\.weight is missing"):
        convert_unetr({key: value for key, value in state.items() if key != "decoder3.conv_block.conv2.conv.weight"}, heads=4)
    with pytest.raises(CheckpointError, match="position table has 8 places"):
        convert_unetr(state, heads=4, crop=(32, 32, 48))


@pytest.mark.parametrize(
    ("token", "stride", "fold", "factors"),
    [
        ((16, 16, 16), 1, (1, 1, 1), [(2, 2, 2)] * 4),
        ((8, 8, 8), 2, (2, 2, 2), [(2, 2, 2)] * 2),
        ((16, 16, 4), 1, (1, 1, 1), [(2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1)]),
        ((8, 8, 2), 2, (2, 2, 2), [(2, 2, 1), (2, 2, 1)]),
        ((8, 8, 1), (2, 1, 4), (2, 1, 1), [(2, 2, 1), (2, 2, 1), (1, 2, 1)]),
        ((4, 4, 4), 2, (2, 2, 2), [(2, 2, 2)]),
        ((4, 4, 2), 4, (4, 4, 2), [(1, 1, 1)]),
    ],
)
def test_every_axis_doubles_until_it_is_at_full_resolution(token, stride, fold, factors):
    encoder = dataclasses.replace(SMALL, token=token, crop=tuple(2 * t for t in token), depth=5)
    config = UNETRConfig(encoder, num_classes=3, feature=2, stride=stride)
    assert config.fold == fold and list(config.factors) == factors
    assert tuple(np.prod(config.factors, 0) * fold) == token
    logits = jax.eval_shape(lambda x, s: UNETR(config, rngs=nnx.Rngs(0))(x, spacing=s), jnp.zeros((1, *encoder.crop, 2)), jnp.ones((1, 3)))
    assert logits.shape == (1, *encoder.crop, 3) and logits.dtype == jnp.float32


def test_taps_lie_at_equal_depths():
    def taps(depth, token):
        return UNETRConfig(ViTConfig(depth=depth, token=token)).taps

    assert taps(12, (16, 16, 16)) == (4, 7, 10)  # MONAI's hidden states 3, 6, 9, which it counts from 0
    assert taps(24, (16, 16, 8)) == (7, 13, 19)
    assert taps(6, (8, 8, 8)) == (3, 5)
    assert taps(4, (2, 2, 2)) == ()


def test_at_stride_two_neighbouring_voxels_keep_logits_and_voxels_of_their_own():
    graph, params = random_network(UNETRConfig(SMALL, num_classes=2, feature=4, stride=2))
    x = np.random.default_rng(0).normal(size=(1, 16, 8, 8, 2)).astype(np.float32)

    @jax.jit
    def logits_and_gradient(x):
        logits, pull = jax.vjp(lambda x: nnx.merge(graph, params)(x, spacing=jnp.ones((1, 3))), x)
        return logits, pull(jnp.zeros_like(logits).at[0, 3, 3, 3, 1].set(1.0))[0]

    logits, gradient = map(np.asarray, logits_and_gradient(x))
    assert len(np.unique(logits[0, 2:4, 4:6, 6:8, 0])) == 8
    assert np.all(np.abs(gradient[0, 2:4, 2:4, 2:4]) > 0)


def test_spacing_moves_the_logits_of_a_model_in_millimetres_alone():
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 16, 2)).astype(np.float32)
    x[1] = x[0]
    spacing = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 3.0]], np.float32)
    in_mm = run(*random_network(UNETRConfig(SMALL, feature=2, stride=4)), x, spacing=spacing)
    assert np.abs(in_mm[0] - in_mm[1]).max() > 1e-4
    by_index = dataclasses.replace(SMALL, positions="rope_index")
    in_tokens = run(*random_network(UNETRConfig(by_index, feature=2, stride=4)), x, spacing=spacing)
    np.testing.assert_allclose(in_tokens[0], in_tokens[1], atol=1e-5)
    with pytest.raises(ShapeError, match="spacing"):
        run(*random_network(UNETRConfig(SMALL, feature=2, stride=4)), x)


def test_a_sample_does_not_see_the_others_of_its_batch():
    graph, params = random_network(UNETRConfig(dataclasses.replace(SMALL, drop_path=0.5), feature=2, stride=4))
    x = np.random.default_rng(0).normal(size=(3, 16, 8, 8, 2)).astype(np.float32)
    spacing, keys = np.ones((3, 3), np.float32), jax.random.split(jax.random.key(1), 3)
    together = run(graph, params, x, spacing=spacing, key=keys)
    turned = run(graph, params, x[::-1].copy(), spacing=spacing, key=keys[::-1])
    np.testing.assert_allclose(together, turned[::-1], atol=2e-5)
    assert np.abs(together - run(graph, params, x, spacing=spacing)).max() > 1e-3


def test_half_precision_is_close_and_its_logits_are_float32():
    x = np.random.default_rng(0).normal(size=(1, 16, 8, 8, 2)).astype(np.float32)
    config = UNETRConfig(SMALL, feature=4, stride=2)
    half = dataclasses.replace(config, encoder=dataclasses.replace(SMALL, dtype="bfloat16"))
    full, rough = (run(*random_network(c), x, spacing=np.ones((1, 3), np.float32)) for c in (config, half))
    assert rough.dtype == np.float32
    assert 0 < np.abs(full - rough).max() < 0.1 * np.ptp(full)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gradients_lower_for_accelerators_with_plain_convolutions(platform):
    graph, params = abstract(UNETRConfig(dataclasses.replace(SMALL, dtype="bfloat16"), feature=16, stride=2))
    x, spacing = jax.ShapeDtypeStruct((1, 16, 16, 16, 2), jnp.float32), jax.ShapeDtypeStruct((1, 3), jnp.float32)
    gradient = jax.jit(jax.grad(lambda params, x, spacing: jnp.sum(nnx.merge(graph, params)(x, spacing=spacing))))
    text = gradient.trace(params, x, spacing).lower(lowering_platforms=(platform,)).as_text()
    # Stem and two decoder levels hold two convolutions of 3x3x3 each, all with two gradients (the stem's first is asked for one).
    assert text.count("stablehlo.convolution") >= 3 * 2 * 3 - 1
    assert "[b, 0, 1, f]" not in text, "a 2-D convolution: the CPU form"


def test_what_does_not_fit_is_said_with_numbers():
    graph, params = random_network(UNETRConfig(SMALL, feature=2, stride=4))
    with pytest.raises(ShapeError, match=r"\(12, 16, 16\) voxels does not divide into tokens of \(8, 8, 8\)"):
        run(graph, params, np.zeros((1, 12, 16, 16, 2)), spacing=np.ones((1, 3)))
    with pytest.raises(ShapeError, match=r"\(1, 16, 16, 16, 3\); expected \(b, x, y, z, 2\)"):
        run(graph, params, np.zeros((1, 16, 16, 16, 3)), spacing=np.ones((1, 3)))
    with pytest.raises(ConfigError, match=r"encoder.token is \(6, 8, 8\).*powers of two"):
        UNETRConfig(dataclasses.replace(SMALL, token=(6, 8, 8), crop=(12, 16, 16)))
    with pytest.raises(ConfigError, match=r"stride is \(3, 3, 3\)"):
        UNETRConfig(SMALL, stride=3)
    with pytest.raises(ConfigError, match=r"doubled 3 times.*which has 2"):
        UNETRConfig(SMALL, stride=1)
