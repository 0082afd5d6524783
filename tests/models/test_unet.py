"""The U-Nets equal nnU-Net's (stored logits everywhere, the modules and float64 gradients where torch is), and are built from its plans."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.unet import UNet, UNetConfig
from jaxseg.models.unet_blocks import ResidualBlock
from jaxseg.zoo.convert.nnunet_unet import convert_unet
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import flatten_params, unflatten_params
from tests.peers import import_peer

SMALL = UNetConfig(in_channels=2, features=(4, 6, 8), kernels=3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), blocks=1, decoder_convs=1)
RESIDUAL = UNetConfig(kind="residual", features=(4, 4), kernels=3, strides=((1, 1, 1), (2, 2, 2)), blocks=(1, 3), decoder_convs=1)


@pytest.fixture(scope="module")
def golden():
    """The module that made the golden file: its cases, and weights and images by seed."""
    path = Path(__file__).parents[1] / "golden" / "make_unet.py"
    spec = importlib.util.spec_from_file_location("make_unet", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def abstract(config):
    """The network's graph and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))))


def converted(state):
    found = convert_unet(Source(state, "test"), Settings())
    graph, params = abstract(found.config)
    return found.config, graph, unflatten_params(params, found.arrays)


def supervised(graph, params, image):
    """All logits of deep supervision."""
    return jax.jit(lambda params, image: nnx.merge(graph, params)(image, deep_supervision=True))(params, image)


def close(found, wanted, tolerance=1e-5):
    assert np.asarray(found).dtype == np.float32 and found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.ptp(wanted)


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_logits_are_the_peers_stored_ones(golden, name):
    case, wanted = golden.CASES[name], np.load(golden.FILE)
    config, graph, params = converted(golden.make_state(case))
    logits = supervised(graph, params, golden.make_image(case))
    assert len(logits) == len(case.features) - 1 and logits[0].shape == (2, *case.size, case.classes)
    close(logits[0][:, ::2, ::2, ::2], wanted[f"{name}.0"])
    for level in range(1, len(logits)):
        close(logits[level], wanted[f"{name}.{level}"])
    # A plan that went through a file gives the network that the arrays' shapes give.
    plan = json.loads(json.dumps(case.plan))
    assert config == UNetConfig.from_plan(
        plan, in_channels=case.channels, num_classes=case.classes, deep_supervision=True, crop=config.crop
    )


def peer(kind, channels, classes, **arguments):
    torch, unet = import_peer("torch"), import_peer("dynamic_network_architectures.architectures.unet")
    torch.manual_seed(channels + classes)
    names = {"plain": ("PlainConvUNet", "n_conv_per_stage"), "residual": ("ResidualEncoderUNet", "n_blocks_per_stage")}
    arguments[names[kind][1]] = arguments.pop("blocks")
    norm = {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": torch.nn.LeakyReLU}
    net = getattr(unet, names[kind][0])(channels, conv_op=torch.nn.Conv3d, num_classes=classes, deep_supervision=True, **norm, **arguments)
    with torch.no_grad():
        for value in net.parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
    return torch, net.eval()


def numpy_state(net):
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


DEEP = {"n_stages": 4, "features_per_stage": [8, 16, 24, 24], "kernel_sizes": 3, "strides": [1, 2, 2, 2], "conv_bias": True}
FLAT = {
    "n_stages": 5,
    "features_per_stage": [5, 8, 8, 11, 12],
    "kernel_sizes": [[1, 3, 3], [1, 5, 3], 3, [3, 1, 3], 3],
    "strides": [1, [1, 2, 2], [1, 3, 2], [2, 1, 4], [1, 2, 1]],
}


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "channels", "classes", "size", "arguments"),
    [
        ("plain", 1, 2, (32, 16, 24), DEEP | {"blocks": 2, "n_conv_per_stage_decoder": 2}),
        ("plain", 4, 3, (6, 24, 16), FLAT | {"blocks": [1, 2, 3, 1, 2], "n_conv_per_stage_decoder": [1, 3, 1, 2]}),
        ("residual", 1, 14, (32, 16, 32), DEEP | {"blocks": [1, 3, 4, 2], "n_conv_per_stage_decoder": 1}),
        ("residual", 3, 1, (4, 12, 32), FLAT | {"blocks": [2, 1, 3, 2, 1], "n_conv_per_stage_decoder": [2, 1, 1, 2], "stem_channels": 7}),
    ],
)
def test_logits_are_those_of_the_peers_modules(kind, channels, classes, size, arguments):
    torch, net = peer(kind, channels, classes, **arguments)
    image = np.random.default_rng(channels).normal(size=(2, *size, channels)).astype(np.float32)
    with torch.no_grad():
        wanted = [net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)), net.encoder(torch.from_numpy(image).permute(0, 4, 1, 2, 3))]
    _, graph, params = converted(numpy_state(net))
    network = nnx.merge(graph, params)
    found = jax.jit(lambda image: [network(image, deep_supervision=True), network.features(image)])(image)
    # Features near the bottleneck are norms of a handful of voxels, which enlarge rounding: the logits are held to 1e-5 alone.
    for ours, theirs, tolerance in zip(found, wanted, (1e-5, 1e-4)):
        assert len(ours) == len(theirs)
        for mine, their in zip(ours, theirs):
            close(mine, their.permute(0, 2, 3, 4, 1).numpy(), tolerance)


@pytest.mark.parity
@pytest.mark.slow
def test_gradients_are_those_of_the_peer_in_float64():
    # In float64, since the peer's own float32 gradients jump where an activation within rounding of 0 changes sides at LeakyReLU's kink.
    flat = {"n_stages": 3, "features_per_stage": [4, 4, 6], "kernel_sizes": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2]}
    torch, net = peer("residual", 2, 3, **flat, blocks=[1, 3, 2], n_conv_per_stage_decoder=1, conv_bias=False)
    _, graph, params = converted(numpy_state(net))
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(1, 8, 16, 16, 2)).astype(np.float32), rng.normal(size=(1, 8, 16, 16, 3)).astype(np.float32)

    out = net.double()(torch.from_numpy(image).double().permute(0, 4, 1, 2, 3))[0].permute(0, 2, 3, 4, 1)
    (out * torch.from_numpy(weight)).sum().backward()
    # state_dict with the gradients in the parameters' places keeps every copy's name; the coarse head has none.
    for value in net.parameters():
        value.data = torch.zeros_like(value) if value.grad is None else value.grad
    wanted = convert_unet(Source(numpy_state(net), "test"), Settings()).arrays

    ours = flatten_params(jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image) * weight)))(params))
    assert ours.keys() == wanted.keys()
    worst = {name: np.abs(ours[name] - wanted[name]).max() / (np.abs(wanted[name]).max() + 1e-30) for name in ours}
    assert max(worst.values()) <= 1e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize(("variant", "millions", "crop"), [("plain", 31.2, 128), ("resenc_m", 102.3, 128), ("resenc_l", 102.3, 160)])
def test_published_plans_have_the_published_parameters(variant, millions, crop):
    # 31.2 M and 102.4 M: what torch counts in the peer's modules of these plans, one channel and two classes.
    config = getattr(UNetConfig, variant)()
    _, params = abstract(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.06)
    assert config.crop == (crop,) * 3 and config.stride == (32, 32, 32)


def test_features_are_the_encoders_stages_and_a_plain_encoder_takes_odd_sizes():
    graph, params = abstract(SMALL)
    shapes = jax.eval_shape(lambda params, x: nnx.merge(graph, params).features(x), params, jnp.zeros((1, 5, 7, 9, 2)))
    assert [each.shape for each in shapes] == [(1, 5, 7, 9, 4), (1, 5, 4, 5, 6), (1, 3, 2, 3, 8)]
    residual = nnx.merge(*abstract(RESIDUAL))
    with pytest.raises(ShapeError, match=r"\(5, 8, 8\) voxels are not multiples.*\(2, 2, 2\): pad to \(6, 8, 8\)"):
        residual.features(jnp.zeros((1, 5, 8, 8, 1)))


def test_a_new_residual_block_is_its_shortcut():
    image = np.random.default_rng(0).normal(size=(1, 4, 6, 4, 3)).astype(np.float32)
    out = jax.jit(lambda x: ResidualBlock(3, 3, (1, 3, 3), (2, 3, 1), bias=True, rngs=nnx.Rngs(0))(x))(image)
    mean = image.reshape(1, 2, 2, 2, 3, 4, 3).mean((2, 4))
    np.testing.assert_allclose(out, np.where(mean > 0, mean, 0.01 * mean), atol=1e-6)


def test_half_precision_is_close_and_its_logits_are_float32(golden):
    case, wanted = golden.CASES["residual"], np.load(golden.FILE)["residual.0"]
    config, _, params = converted(golden.make_state(case))
    half, _ = abstract(dataclasses.replace(config, dtype="bfloat16"))
    rough = jax.jit(lambda params, x: nnx.merge(half, params)(x))(params, golden.make_image(case))
    assert rough.dtype == jnp.float32
    assert 1e-4 * np.ptp(wanted) < np.abs(rough[:, ::2, ::2, ::2] - wanted).max() < 0.1 * np.ptp(wanted)


def test_what_does_not_fit_is_said_with_numbers():
    network = nnx.merge(*abstract(SMALL))
    with pytest.raises(ShapeError, match=r"\(1, 8, 8, 8, 3\); expected \(b, x, y, z, 2\)"):
        network(jnp.zeros((1, 8, 8, 8, 3)))
    with pytest.raises(ShapeError, match=r"\(8, 10, 8\) voxels are not multiples.*\(2, 4, 4\): pad to \(8, 12, 8\)"):
        network(jnp.zeros((1, 8, 10, 8, 2)))
    with pytest.raises(ShapeError, match=r"\(2, 4, 4\) voxels the coarsest stage keeps a single one"):
        network(jnp.zeros((1, 2, 4, 4, 2)))
    with pytest.raises(ConfigError, match="no heads for deep supervision"):
        network(jnp.zeros((1, 8, 8, 8, 2)), deep_supervision=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (8,)}, "channels of two stages or more"),
        ({"blocks": (1, 2)}, r"blocks is \(1, 2\); expected 3 integers"),
        ({"strides": ((1, 1, 1), (2, 2), (2, 2, 2, 2))}, "strides is .* expected 3 times 3 integers"),
        ({"strides": 2}, "at the first stage"),
        ({"kernels": ((2, 3, 3), 3, 3)}, "must be odd"),
        ({"kind": "dense"}, "'plain' or 'residual'"),
        ({"stem": 8}, "a plain encoder has no stem"),
    ],
)
def test_configs_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_op": "torch.nn.modules.conv.Conv2d"}, "conv_op = 'torch.nn.modules.conv.Conv2d'; this U-Net has Conv3d alone"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "InstanceNorm3d alone"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "eps = 0.001 in norm_op_kwargs"),
        ({"norm_op_kwargs": {}}, "no affine = True"),
        ({"nonlin": "torch.nn.ReLU"}, "nonlin = 'torch.nn.ReLU'"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "negative_slope = 0.2"),
        ({"dropout_op": "torch.nn.Dropout3d"}, "dropout_op"),
        ({"nonlin_first": True}, "nonlin_first"),
        ({"squeeze_excitation": True}, "squeeze_excitation = True, which this U-Net does not know"),
        ({"n_stages": 5}, "features_per_stage is .* expected 5 integers"),
    ],
)
def test_plans_that_this_network_cannot_follow_are_refused(golden, changes, message):
    plan = golden.CASES["plain"].plan
    with pytest.raises(ConfigError, match=message):
        UNetConfig.from_plan(plan | {"arch_kwargs": plan["arch_kwargs"] | changes})


def test_what_is_no_plan_is_refused(golden):
    plan = golden.CASES["plain"].plan
    with pytest.raises(ConfigError, match=r"give plans\['configurations'\]"):
        UNetConfig.from_plan({"configurations": {"3d_fullres": {"architecture": plan}}})
    with pytest.raises(ConfigError, match="builds a x.MedNeXt; known: PlainConvUNet"):
        UNetConfig.from_plan(plan | {"network_class_name": "x.MedNeXt"})
    short = {key: value for key, value in plan["arch_kwargs"].items() if key != "strides"}
    with pytest.raises(ConfigError, match="have no strides"):
        UNetConfig.from_plan(plan | {"arch_kwargs": short})
