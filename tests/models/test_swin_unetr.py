"""SwinUNETR equals MONAI's (stored logits everywhere, the module itself and its float64 gradients where torch is); windows and their arguments."""

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

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.swin import Swin, SwinConfig, SwinStage
from jaxseg.models.swin_unetr import SwinUNETR, SwinUNETRConfig
from jaxseg.models.windows import MERGING_ORDERS, cut, fit_windows, join, merge_neighbours, regions, relative_index
from jaxseg.zoo.convert.monai_swin import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params
from tests.peers import import_peer, without_kinks

SMALL = SwinConfig(in_channels=2, feature=4, heads=(1, 2, 2, 4), depths=(2, 1, 1, 1), window=(3, 3, 3))


@pytest.fixture(scope="module")
def golden():
    """The module that made the golden file: its cases, and weights and images by seed."""
    path = Path(__file__).parents[1] / "golden" / "make_swin.py"
    spec = importlib.util.spec_from_file_location("make_swin", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(state, **given):
    (layout,) = [each for each in LAYOUTS if each.recognise({key: value.shape for key, value in state.items()})]
    source = Source(state, layout.name)
    converted = layout.convert(source, Settings(given))
    assert not source.unknown()
    return converted


def abstract(network, config):
    return nnx.split(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))))


def random_network(network, config):
    """Graph and parameters from numpy: nothing to compile."""
    graph, params = abstract(network, config)
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    return graph, unflatten_params(params, draw)


@partial(jax.jit, static_argnums=0)
def apply(graph, params, image, key=None):
    return nnx.merge(graph, params)(image, key=key)


def logits_of(converted, image):
    graph, params = abstract(SwinUNETR, converted.config)
    return np.asarray(apply(graph, unflatten_params(params, converted.arrays), image))


@pytest.mark.parametrize("name", ["default", "v2"])
def test_logits_are_the_peers_stored_ones(golden, name):
    case = golden.CASES[name]
    wanted = np.load(golden.FILE)[name]
    window = {} if len(set(case.window)) == 1 else {"window": case.window}
    logits = logits_of(
        convert(golden.make_state(case), normalize=case.normalize, downsample=case.downsample, **window), golden.make_image(case)
    )
    assert logits.dtype == np.float32 and logits.shape == (1, *case.size, case.classes)
    assert np.abs(logits[:, ::4, ::4, ::4] - wanted).max() <= 1e-5 * np.ptp(wanted)


def peer(torch, kind, seed, **arguments):
    """A module of MONAI in evaluation with weights that hide nothing: norms and biases that are not 1 and 0, offsets that matter."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = getattr(import_peer("monai.networks.nets.swin_unetr"), kind)(**arguments).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
            elif "bias_table" in name:
                value.mul_(30)
    return net, {key: value.detach().numpy() for key, value in net.state_dict().items()}


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "given", "arguments"),
    [
        ((32, 64, 96), {}, {"in_channels": 4, "out_channels": 1, "feature_size": 24, "use_v2": True}),
        ((64, 64, 32), {"downsample": "mergingv2"}, {"in_channels": 12, "out_channels": 5, "feature_size": 12, "window_size": (4, 2, 6)}),
    ],
)
def test_logits_are_those_of_the_peers_module(size, given, arguments):
    torch = import_peer("torch")
    net, state = peer(torch, "SwinUNETR", 3, **arguments, **given)
    image = np.random.default_rng(0).normal(size=(2, *size, arguments["in_channels"])).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    assert np.abs(logits_of(convert(state, **given), image) - wanted).max() <= 1e-5 * np.ptp(wanted)


@pytest.mark.parity
def test_the_encoder_alone_takes_sizes_that_divide_by_nothing_as_the_peer_does():
    torch = import_peer("torch")
    sizes = {"embed_dim": 8, "window_size": (3, 4, 2), "patch_size": (2, 1, 3), "depths": (2, 2, 1, 1), "num_heads": (2, 2, 4, 4)}
    net, state = peer(torch, "SwinTransformer", 5, in_chans=2, **sizes)
    image = np.random.default_rng(0).normal(size=(1, 19, 9, 22, 2)).astype(np.float32)
    with torch.no_grad():
        wanted = [each.permute(0, 2, 3, 4, 1).numpy() for each in net(torch.from_numpy(image).permute(0, 4, 1, 2, 3))]
    found = convert(state)
    graph, params = abstract(Swin, found.config.encoder)
    maps = apply(graph, unflatten_params(params, {name.removeprefix("encoder."): array for name, array in found.arrays.items()}), image)
    for ours, theirs in zip(maps, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-5 * np.ptp(theirs)


@pytest.mark.parity
@pytest.mark.slow
def test_gradients_are_those_of_the_peer_in_float64(monkeypatch):
    monkeypatch.setattr("jaxseg.models.unetr.leaky_relu", jax.nn.softplus)
    # Two channels: the norm after the stem's shortcut undoes the scale of a single one, whose gradient is therefore nothing but rounding.
    torch = import_peer("torch")
    net, state = peer(
        torch, "SwinUNETR", 1, in_channels=2, out_channels=2, feature_size=12, window_size=4, depths=(2, 1, 1, 1), use_v2=True
    )
    converted = convert(state)
    graph, params = abstract(SwinUNETR, converted.config)
    params = unflatten_params(params, converted.arrays)
    rng = np.random.default_rng(1)
    image, weight = (rng.normal(size=(1, 64, 64, 32, 2)).astype(np.float32) for _ in range(2))

    out = without_kinks(net, torch).double()(torch.from_numpy(image).double().permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    (out * torch.from_numpy(weight)).sum().backward()
    theirs = {key: p.grad.numpy() for key, p in net.named_parameters()}
    wanted = convert(theirs).arrays

    ours = flatten_params(jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(image) * weight)))(params))
    assert ours.keys() == wanted.keys()
    worst = {name: np.abs(ours[name] - wanted[name]).max() / np.abs(wanted[name]).max() for name in ours}
    assert max(worst.values()) <= 5e-5, sorted(worst.items(), key=lambda item: -item[1])[:5]


def test_a_window_shrinks_where_it_covers_an_axis_and_is_shifted_elsewhere():
    assert fit_windows((48, 7, 5), (7, 7, 7), shifted=True) == ((7, 7, 5), (3, 0, 0), (49, 7, 5))
    assert fit_windows((48, 7, 5), (7, 7, 7), shifted=False) == ((7, 7, 5), (0, 0, 0), (49, 7, 5))
    assert not fit_windows((4, 4, 4), (7, 4, 5), shifted=True).shifted


def test_cutting_pads_and_joining_takes_the_padding_off_again():
    grid = (7, 3, 10)
    windows = fit_windows(grid, (4, 4, 3), shifted=True)
    x = np.random.default_rng(0).normal(size=(2, *grid, 3))
    pieces = cut(jnp.asarray(x), windows)
    assert pieces.shape == (2, 2 * 1 * 4, 4 * 3 * 3, 3)
    np.testing.assert_allclose(np.sort(pieces, None)[[0, -1]], np.sort(x, None)[[0, -1]], rtol=1e-6)
    np.testing.assert_allclose(join(pieces, windows, grid), x, rtol=1e-6)


def test_tokens_attend_to_each_other_only_if_they_were_neighbours_before_the_roll():
    windows = fit_windows((8, 3, 6), (4, 3, 3), shifted=True)
    place = jnp.stack(jnp.meshgrid(*map(jnp.arange, windows.padded), indexing="ij"), -1)[None]
    places, region = np.asarray(cut(place, windows))[0], regions(windows)
    together = region[:, :, None] == region[:, None, :]
    near = np.all(np.abs(places[:, :, None] - places[:, None]) < windows.size, -1)
    np.testing.assert_array_equal(together, near)
    assert together.any() and not together.all()


def test_pairs_with_the_same_offset_share_a_row_of_the_table():
    index = relative_index((2, 3, 2))
    places = np.stack(np.meshgrid(range(2), range(3), range(2), indexing="ij"), -1).reshape(-1, 3)
    offsets = {tuple(a - b): index[i, j] for i, a in enumerate(places) for j, b in enumerate(places)}
    assert len(offsets) == len(set(offsets.values())) == 3 * 5 * 3
    assert sorted(offsets.values()) == list(range(45))
    assert all(index[i, j] == offsets[tuple(a - b)] for i, a in enumerate(places) for j, b in enumerate(places))


def test_merging_lays_eight_neighbours_side_by_side_or_two_of_them_twice():
    x = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
    assert sorted(np.asarray(merge_neighbours(x, "merging")).ravel()) == list(range(8))
    assert list(np.asarray(merge_neighbours(x, "mergingv2")).ravel()) == list(range(8))
    repeated = list(np.asarray(merge_neighbours(x, "merging_repeated")).ravel())
    assert sorted(repeated) == [0, 1, 1, 2, 2, 4, 5, 7] and repeated[2] == repeated[5] and repeated[3] == repeated[6]
    odd = merge_neighbours(jnp.ones((1, 3, 1, 2, 1)), "merging")
    assert odd.shape == (1, 2, 1, 1, 8) and float(odd.sum()) == 6
    assert all(len(order) == 8 for order in MERGING_ORDERS.values())


@pytest.mark.parametrize(("suffix", "millions"), [("12", 4.08), ("24", 15.70), ("48", 62.19), ("48_v2", 72.76), ("96", 248.09)])
def test_variants_have_the_parameters_of_the_published_networks(suffix, millions):
    config = getattr(SwinUNETRConfig, SwinUNETRConfig.VARIANTS[suffix])()
    shapes = param_shapes(abstract(SwinUNETR, config)[1])
    assert sum(np.prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_drop_path_follows_each_samples_own_key():
    graph, params = random_network(Swin, dataclasses.replace(SMALL, drop_path=0.6, depths=(2, 1, 1, 1)))
    x = np.random.default_rng(0).normal(size=(3, 10, 8, 8, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 3)
    maps = apply(graph, params, x, keys)
    turned = apply(graph, params, x[::-1].copy(), keys[::-1])
    for one, other in zip(maps, turned):
        np.testing.assert_allclose(one, other[::-1], atol=2e-5)
    assert np.abs(maps[-1] - apply(graph, params, x, keys[::-1])[-1]).max() > 1e-3


def test_recomputing_in_the_backward_pass_keeps_less_and_changes_no_number():
    x = np.random.default_rng(0).normal(size=(1, 7, 6, 6, 4)).astype(np.float32)
    found = []
    for again in ({}, {"remat": True}, {"remat": True, "remat_keep": "products"}):
        graph, params = random_network(partial(SwinStage, stage=0), dataclasses.replace(SMALL, **again))
        loss = lambda p, graph=graph: jnp.mean(jnp.square(nnx.merge(graph, p)(x)))
        kept = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)))
        found.append((kept, jax.tree.leaves(jax.jit(jax.grad(loss))(params))))
    assert found[1][0] < found[0][0] / 2 and found[1][0] < found[2][0] < found[0][0]
    for one, *others in zip(*(gradients for _, gradients in found), strict=True):
        for other in others:
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_half_precision_is_close_and_its_logits_are_float32():
    x = np.random.default_rng(0).normal(size=(1, 12, 6, 8, 2)).astype(np.float32)
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    full, rough = (apply(*random_network(Swin, config), x)[1] for config in (SMALL, half))
    assert rough.dtype == jnp.bfloat16 and 0 < np.abs(full - rough).max() < 0.1 * np.ptp(full)
    config = SwinUNETRConfig(dataclasses.replace(half, patch=(2, 1, 4), use_v2=True), num_classes=3)
    logits = jax.eval_shape(lambda x: SwinUNETR(config, rngs=nnx.Rngs(0))(x), jnp.zeros((1, 32, 16, 64, 2)))
    assert logits.dtype == jnp.float32 and logits.shape == (1, 32, 16, 64, 3)


def test_features_are_five_levels_fine_to_coarse():
    config = SwinUNETRConfig.feature12()
    maps = jax.eval_shape(lambda x: SwinUNETR(config, rngs=nnx.Rngs(0)).features(x), jnp.zeros((1, 64, 32, 96, 1)))
    assert [each.shape for each in maps] == [(1, 64 // 2**i, 32 // 2**i, 96 // 2**i, 6 * 2**i) for i in range(1, 6)]


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(ShapeError, match=r"\(48, 32, 32\) voxels is not a multiple of \(32, 32, 32\)"):
        jax.eval_shape(lambda x: SwinUNETR(SwinUNETRConfig.feature12(), rngs=nnx.Rngs(0))(x), jnp.zeros((1, 48, 32, 32, 1)))
    with pytest.raises(ShapeError, match=r"\(1, 64, 32, 32, 3\); expected \(b, x, y, z, 1\)"):
        jax.eval_shape(lambda x: SwinUNETR(SwinUNETRConfig.feature12(), rngs=nnx.Rngs(0))(x), jnp.zeros((1, 64, 32, 32, 3)))
    with pytest.raises(ConfigError, match="stage 2 has 16 channels, which do not split into its 6 heads"):
        SwinConfig(feature=8, heads=(2, 6, 12, 24))
    with pytest.raises(ConfigError, match=r"window is \(7, 7\); expected 3"):
        SwinConfig(window=(7, 7))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"downsample is 'merging3'; expected one of merging, mergingv2, merging_repeated"):
        SwinConfig(downsample="merging3")  # pyright: ignore[reportArgumentType]
