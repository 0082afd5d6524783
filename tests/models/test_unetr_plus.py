"""UNETR+: its levels for any token and stride, what reaches the logits, and its place in fine-tuning beside UNETR."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from finetune.config import FinetuneConfig
from finetune.transfer import take_encoder
from jaxseg.config import as_json, from_json, load_config
from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models import UNETRConfig, UNETRPlusConfig, ViT, ViTConfig
from jaxseg.zoo.names import flatten_params
from jaxseg.zoo.registry import architecture, build, network_of
from tests.convnets import random_network, shapes

SMALL = ViTConfig(in_channels=2, crop=(16, 16, 16), token=(8, 8, 8), width=24, depth=3, heads=2)


@pytest.mark.parametrize(
    ("token", "stride", "widths", "maps"),
    [
        ((8, 8, 8), 2, (12, 8, 4), [(8, 8, 8, 4), (4, 4, 4, 8), (2, 2, 2, 24)]),
        ((8, 8, 4), 4, (8, 4), [(4, 4, 4, 4), (2, 2, 4, 24)]),
        ((4, 4, 1), (2, 1, 2), (12, 8, 4), [(8, 16, 16, 4), (8, 8, 16, 8), (4, 4, 16, 24)]),
        ((2, 2, 2), 4, (8, 4), [(8, 8, 8, 4), (8, 8, 8, 24)]),
    ],
)
def test_a_pyramid_from_the_stride_to_the_grid_of_tokens(token, stride, widths, maps):
    config = UNETRPlusConfig(dataclasses.replace(SMALL, token=token), num_classes=3, feature=4, widest=12, stride=stride)
    assert config.widths == widths and len(config.taps) == len(widths) - 1
    logits, found = shapes(config, (2, 16, 16, 16, 2))
    assert logits.shape == (2, 16, 16, 16, 3) and logits.dtype == np.float32
    assert found == maps


def test_taps_lie_where_unetr_has_them():
    assert UNETRPlusConfig(ViTConfig(depth=12, token=(16, 16, 16))).taps == (4, 7, 10)
    assert UNETRPlusConfig(ViTConfig(depth=6, token=(4, 4, 4))).taps == (4,)


def test_every_array_reaches_every_voxel_and_neighbours_have_logits_of_their_own():
    graph, params = random_network(UNETRPlusConfig(dataclasses.replace(SMALL, depth=2, token=(4, 4, 4)), feature=4, widest=8))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)

    @jax.jit
    def both(params):
        def loss(params):
            logits = nnx.merge(graph, params)(x, spacing=np.ones((1, 3), np.float32))
            return (logits**2 * np.arange(1, 3)).sum(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = both(params)
    for path, leaf in nnx.to_flat_state(gradient):
        assert np.isfinite(leaf[...]).all() and np.abs(leaf[...]).max() > 0, path
    assert len(np.unique(np.asarray(logits)[0, 2:4, 4:6, 6:8, 0])) == 8


def test_a_new_network_draws_no_checkerboard():
    config = UNETRPlusConfig(dataclasses.replace(SMALL, depth=2, token=(4, 4, 4), positions="rope_index"), feature=4)
    kernel = np.asarray(jax.jit(lambda: network_of(config).head.kernel[...])())
    voxels = kernel.reshape(4, 8, 2)  # from 4 features to 8 voxels of 2 classes each
    np.testing.assert_array_equal(voxels, np.broadcast_to(voxels[:, :1], voxels.shape))
    assert len(np.unique(voxels)) == 8


def test_a_pretrained_encoder_is_taken_whole_and_nothing_else_changes():
    config = UNETRPlusConfig(SMALL, feature=4)
    _, params = random_network(config)
    _, source = nnx.split(nnx.eval_shape(lambda: nnx.Dict(encoder=ViT(SMALL, rngs=nnx.Rngs(0)))))
    source = jax.tree.map(lambda leaf: np.full(leaf.shape, 7, np.float32), source)
    transfer = take_encoder(params, SMALL, source, SMALL, channels="ab", source_channels="ab")
    before, after = flatten_params(params), flatten_params(transfer.params)
    assert all((after[name] == 7).all() if name.startswith("encoder.") else (after[name] == before[name]).all() for name in before)


def test_a_fine_tuning_config_holds_either_network_and_survives_json(tmp_path):
    for model in (UNETRConfig(SMALL, feature=4, stride=2), UNETRPlusConfig(SMALL, feature=4)):
        config = FinetuneConfig(model=model)
        assert from_json(FinetuneConfig, as_json(config)) == config
    file = tmp_path / "plus.py"
    file.write_text(
        "from finetune.config import FinetuneConfig\nfrom jaxseg.models import UNETRPlusConfig\nconfig = FinetuneConfig(model=UNETRPlusConfig())\n"
    )
    loaded = load_config(str(file), "finetune", FinetuneConfig, ["--model.widest", "64", "--model.encoder.depth", "7"])
    assert isinstance(loaded.model, UNETRPlusConfig) and loaded.model.widest == 64 and loaded.model.encoder.depth == 7


def test_its_architecture_is_json_and_builds_again():
    config = UNETRPlusConfig(SMALL, feature=4, stride=(2, 4, 2))
    model = nnx.eval_shape(lambda: network_of(config))
    assert nnx.eval_shape(lambda: build(architecture(model))).config == config


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(ShapeError, match=r"\(12, 16, 16\) voxels does not divide into tokens"):
        shapes(UNETRPlusConfig(SMALL), (1, 12, 16, 16, 2))
    with pytest.raises(ConfigError, match="2 levels above it.*which has 2"):
        UNETRPlusConfig(dataclasses.replace(SMALL, depth=2))
    with pytest.raises(ConfigError, match="widest is 8"):
        UNETRPlusConfig(SMALL, widest=8)
    with pytest.raises(ConfigError, match=r"encoder.token is \(6, 8, 8\)"):
        UNETRPlusConfig(dataclasses.replace(SMALL, token=(6, 8, 8), crop=(12, 16, 16)))
