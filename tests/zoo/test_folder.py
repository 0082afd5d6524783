"""A model folder gives back the network to the bit, or says what is wrong with it; a save that fails leaves what was there."""

import dataclasses
import errno
import hashlib
import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jaxseg.zoo.folder as folder_module
from jaxseg.errors import CheckpointError, ConfigError, InputError, StorageError
from jaxseg.models.mae import MAE, MAEConfig
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.vit import ViT, ViTConfig
from jaxseg.zoo.folder import load_model, read_card, save_model
from jaxseg.zoo.names import differences, flatten_params, param_shapes, unflatten_params

ENCODER = ViTConfig(in_channels=2, crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=3, heads=2)
CARD = {"channels": ["T1", "FLAIR"], "labels": {"tumour": 1}, "scores": [{"dice": 0.5, "command": "jaxseg evaluate a b"}]}


def network(make=lambda: UNETR(UNETRConfig(ENCODER, num_classes=2, feature=2, stride=2), rngs=nnx.Rngs(0)), seed=0):
    """A network with numpy's numbers in it: nothing to compile."""
    graph, params = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in param_shapes(params).items()}
    return nnx.merge(graph, unflatten_params(params, arrays))


@pytest.fixture
def saved(tmp_path):
    return save_model(tmp_path / "model", network(), CARD)


def edit(saved, **changes):
    card = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(card | changes))


def same(one, other):
    one, other = flatten_params(one), flatten_params(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViT(dataclasses.replace(ENCODER, positions="learned", registers=2), rngs=nnx.Rngs(0)),
        lambda: MAE(MAEConfig(ENCODER, decoder_width=24, decoder_depth=2, decoder_heads=2), rngs=nnx.Rngs(0)),
        lambda: UNETR(UNETRConfig(ENCODER, num_classes=5, feature=2, stride=(2, 2, 1)), rngs=nnx.Rngs(0)),
    ],
)
def test_what_comes_back_is_what_was_saved(tmp_path, make):
    before = network(make)
    model = load_model(save_model(tmp_path, before, CARD))
    assert same(before, model.network)
    assert model.config == before.config and type(model.network) is type(before)


def test_the_model_computes_what_the_network_does(saved):
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
    spacing = np.ones((1, 3), np.float32)
    graph, params = nnx.split(network())
    wanted = jax.jit(lambda params: nnx.merge(graph, params)(x, spacing=spacing))(params)
    np.testing.assert_allclose(load_model(saved)(x, spacing=spacing), wanted, rtol=1e-5, atol=1e-5)


def test_arrays_are_named_per_block(saved):
    arrays = load_file(saved / "weights.safetensors")
    names = [name for name in arrays if name.endswith("attention.qkv.kernel")]
    assert sorted(names) == [f"encoder.blocks.{i}.attention.qkv.kernel" for i in range(3)]
    assert arrays[names[0]].shape == (24, 72)
    stacked = network().encoder.blocks.attention.qkv.kernel[...]
    np.testing.assert_array_equal(arrays["encoder.blocks.2.attention.qkv.kernel"], stacked[2])


def test_the_card_says_what_the_contract_asks_for(saved):
    card = read_card(saved)
    assert card["labels"] == {"tumour": 1} and card["channels"] == ["T1", "FLAIR"] and card["orientation"] == "RAS"
    assert {"axes", "recipe", "regions", "crop", "training", "licence", "scores"} <= card.keys()
    assert card["versions"].keys() == {"jaxseg", "jax", "flax", "numpy", "python"}
    assert card["architecture"]["name"] == "unetr" and card["architecture"]["arguments"]["encoder"]["depth"] == 3
    weights = (saved / "weights.safetensors").read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(weights).hexdigest() and card["weights"]["bytes"] == len(weights)


@pytest.mark.parametrize("where", [3, 0.3, 0.6, -1])
def test_one_flipped_bit_is_noticed(saved, where):
    path = saved / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: these are not the weights .* damaged"):
        load_model(saved)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")
    (saved / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"weights.safetensors: no such file"):
        load_model(saved)
    (saved / "model.json").unlink()
    with pytest.raises(InputError, match=r"not a model folder: it holds no model.json"):
        load_model(saved)


def test_a_card_of_another_architecture_gives_a_table(saved):
    card = read_card(saved)
    card["architecture"]["arguments"] |= {"num_classes": 4}
    card["architecture"]["arguments"]["encoder"] |= {"depth": 4, "layer_scale": None}
    edit(saved, **card)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    table = str(caught.value)
    assert "missing (12):" in table and "encoder.blocks.3.attention.out.bias (24,)" in table
    assert "unexpected (6):" in table and "encoder.blocks.0.scale1.gamma (24,)" in table
    assert "head.bias expected (32,), found (16,)" in table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not a model card of format 1"),
        ({"architecture": {"name": "unetr", "arguments": {"depht": 3}}}, "depht"),
        ({"architecture": {"name": "swin"}}, "'swin'"),
        ({"architecture": None}, "the card is damaged"),
        ({"weights": {}}, "the card is damaged"),
        ({"weights": {"sha256": 5}}, "the card is damaged"),
        ({"architecture": {"name": "unetr", "arguments": {"heads": 0}}}, "heads is 0"),
        ({"architecture": {"name": "resunet", "arguments": {"channels": 8}}}, "of another type or size.*channels=8"),
    ],
)
def test_unusable_cards_are_refused(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


def test_weights_that_are_no_safetensors_file_are_refused_though_their_hash_is_right(saved):
    cut = (saved / "weights.safetensors").read_bytes()[:-100]
    (saved / "weights.safetensors").write_bytes(cut)
    edit(saved, weights={"sha256": hashlib.sha256(cut).hexdigest()})
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(saved)


def test_a_card_that_does_not_describe_the_network_is_not_written(tmp_path):
    for card, message in [
        ({"channels": ["T1"]}, "the network takes 2"),
        ({}, "channels None"),
        (CARD | {"architecture": {"name": "vit3d", "arguments": {}}}, "the card describes"),
        (CARD | {"scores": [float("nan")]}, "not JSON data"),
        (CARD | {"crop": {1, 2}}, "not JSON data"),
    ]:
        with pytest.raises(ConfigError, match=message):
            save_model(tmp_path / "model", network(), card)
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_model_that_was_there(saved, monkeypatch):
    before = sorted(path.name for path in saved.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_safetensors", full)
        with pytest.raises(StorageError, match="no space left"):
            save_model(saved, network(seed=1), CARD)
    assert sorted(path.name for path in saved.iterdir()) == before
    assert same(load_model(saved).network, network())
    save_model(saved, network(seed=1), CARD)
    assert same(load_model(saved).network, network(seed=1))


def test_differences_are_cut_short():
    table = differences({f"a.{i}": (1,) for i in range(20)}, {}, limit=3)
    assert table.splitlines() == ["  missing (20):", "    a.0 (1,)", "    a.1 (1,)", "    a.2 (1,)", "    and 17 more"]
    assert differences({"a": (1,)}, {"a": (1,)}) == ""


def test_filling_parameters_refuses_other_shapes_and_names_the_source():
    params = nnx.split(network())[1]
    arrays = flatten_params(params)
    arrays["head.bias"] = arrays["head.bias"][:-1]
    with pytest.raises(CheckpointError, match=r"(?s)pretrained.safetensors.*head.bias expected \(16,\), found \(15,\)"):
        unflatten_params(params, arrays, source="pretrained.safetensors")
