"""A published file becomes a network with its card: recognised in its wrappers, every array accounted for, nothing loaded in part unasked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jaxseg
from jaxseg.cli import main
from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.files import sha256_of
from jaxseg.train import Checkpoints, Layout
from jaxseg.zoo.convert.monai_unetr import convert_unetr
from jaxseg.zoo.convert.recognise import find_state, published_layouts
from jaxseg.zoo.convert.source import Settings
from jaxseg.zoo.folder import load_model, read_card, save_model
from jaxseg.zoo.names import flatten_params, param_shapes, unflatten_params
from jaxseg.zoo.pretrained import convert_file, load_pretrained
from jaxseg.zoo.registry import create_model
from tests import convnets
from tests.golden.make_unetr import CASES, make_state
from tests.torch_writer import mapping, state, text, write_legacy, write_zip

CASE = CASES["conv"]
SETTINGS = {"crop": list(CASE.size), "heads": CASE.heads}
OWN = {"in_channels": 2, "crop": 16, "token": 8, "width": 24, "depth": 3, "heads": 2}


@pytest.fixture(scope="module")
def published():
    return make_state(CASE)


@pytest.fixture(scope="module")
def converted(published):
    return convert_unetr(published, heads=CASE.heads, crop=CASE.size)[1]


def quietly(path, **arguments):
    return load_pretrained(path, **{"settings": SETTINGS, "say": lambda text: None, **arguments})


def assert_same(network, arrays):
    found = flatten_params(network)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


WRAPPERS = {
    "bare": lambda arrays: state(arrays),
    "state_dict beside other things": lambda arrays: wrapped(arrays, "state_dict", epoch=text("3"), best=text("0.5")),
    "network_weights of nnU-Net": lambda arrays: wrapped(arrays, "network_weights", trainer_name=text("nnUNetTrainer")),
    "a model in a module": lambda arrays: wrapped({f"module.{key}": array for key, array in arrays.items()}, "model"),
    "a compiled module": lambda arrays: state({f"module._orig_mod.{key}": array for key, array in arrays.items()}),
    "a key of no usual name": lambda arrays: wrapped(arrays, "my_weights", notes=text("of 2021")),
}


def wrapped(arrays, key, **others):
    inner, raw = state(arrays)
    return mapping({**others, key: inner}), raw


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_network_is_found_in_its_wrappers(tmp_path, published, converted, wrapper):
    content, raw = WRAPPERS[wrapper](published)
    assert_same(quietly(write_zip(tmp_path / "unetr.pt", content, raw)).network, converted)


def test_every_kind_of_file_gives_the_same(tmp_path, published, converted):
    content, raw = state(published)
    save_file(published, tmp_path / "unetr.safetensors")
    for path in (write_legacy(tmp_path / "legacy.pth", content, raw), tmp_path / "unetr.safetensors"):
        assert_same(quietly(path).network, converted)


def test_half_precision_arrays_become_float32(tmp_path, published):
    half = {key: array.astype(jnp.bfloat16) for key, array in published.items()}
    found = flatten_params(quietly(write_zip(tmp_path / "a.pt", *state(half))).network)
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_array_equal(found["head.bias"], half["out.conv.conv.bias"].astype(np.float32))


def test_the_card_says_where_it_comes_from_and_survives_saving(tmp_path, published, converted):
    path = write_zip(tmp_path / "unetr.pt", *state(published))
    said = []
    model = load_pretrained(path, settings={"crop": list(CASE.size)}, channels=["CT"], licence="Apache-2.0", say=said.append)
    source = model.card["source"]
    assert (source["file"], source["sha256"], source["form"]) == ("unetr.pt", sha256_of(path), "PyTorch")
    assert source["layout"] == "MONAI UNETR" and source["missing"] == {} and source["mapped"] == len(converted)
    assert (model.card["licence"], model.card["channels"]) == ("Apache-2.0", ["CT"])
    assert [setting for setting in source["settings"] if setting.startswith("heads = 12 (MONAI's default")]
    assert "recognised as MONAI UNETR" in said[0] and "heads = 12" in said[0] and "head.bias  (2,)" in said[0]
    assert "vit.blocks.*.norm_cross_attn.weight" in said[0]
    save_model(tmp_path / "model", model.network, model.card)
    assert read_card(tmp_path / "model")["source"] == source
    assert_same(load_pretrained(tmp_path / "model").network, flatten_params(model.network))


def test_a_partial_load_is_refused_unless_asked_for(tmp_path, published, converted):
    fewer = {key: array for key, array in published.items() if not key.startswith("out.")} | {"extra.head": np.ones(3, np.float32)}
    path = write_zip(tmp_path / "unetr.pt", *state(fewer))
    with pytest.raises(CheckpointError, match=r"unetr.pt.*(extra.head|out.conv)"):
        quietly(path)


def test_arrays_of_no_place_are_left_out_when_asked_for(tmp_path, published, converted):
    path = write_zip(tmp_path / "unetr.pt", *state(published | {"extra.head": np.ones(3, np.float32)}))
    with pytest.raises(CheckpointError, match="extra.head"):
        quietly(path)
    model, report = convert_file(path, settings=SETTINGS, partial=True)
    assert report.unknown == ["extra.head"] and not report.whole
    assert model.card["source"]["unused"]["unknown"] == ["extra.head"]
    assert_same(model.network, converted)


def test_what_shapes_cannot_tell_must_make_sense(tmp_path, published):
    path = write_zip(tmp_path / "unetr.pt", *state(published))
    with pytest.raises(ConfigError, match="heads"):
        quietly(path, settings={**SETTINGS, "heads": 5})
    for heads in (0, 2.5, "two"):
        with pytest.raises(ConfigError, match=f"heads is {heads!r}; expected a whole number"):
            quietly(path, settings={**SETTINGS, "heads": heads})
    with pytest.raises(ConfigError, match="--set hedas: this checkpoint has no such setting; known: crop, heads"):
        quietly(path, settings={**SETTINGS, "hedas": 12})
    with pytest.raises(ConfigError, match="is a MONAI UNETR, which is 'unetr' here, not 'mae3d_tiny'"):
        quietly(path, model="mae3d_tiny")
    with pytest.raises(ConfigError, match="there is no model 'unter_base'"):
        quietly(path, model="unter_base")


def test_a_model_that_is_named_must_be_that_variant(tmp_path, published):
    def folder(name, **changes):
        graph, params = nnx.split(nnx.eval_shape(lambda: create_model(name, **changes)))
        arrays = {key: np.zeros(shape, np.float32) for key, shape in param_shapes(params).items()}
        return save_model(tmp_path / name, nnx.merge(graph, unflatten_params(params, arrays)), {"channels": ["CT"]})

    own = folder("resunet_small", num_classes=3)
    assert load_pretrained(own, model="resunet_small").config.num_classes == 3
    with pytest.raises(
        ConfigError, match=r"is not a 'resunet_base': channels is \(16, 32, 64, 128\) where resunet_base has \(16, .*strides"
    ):
        load_pretrained(own, model="resunet_base")
    path = write_zip(tmp_path / "unetr.pt", *state(published))
    with pytest.raises(ConfigError, match=r"unetr.pt is not a 'unetr_large': feature is \d+ where unetr_large has .*width is \d+ where"):
        quietly(path, model="unetr_large")


def test_a_wrong_setting_is_not_blamed_on_the_file(tmp_path):
    save_file(own_network()[1], tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="width"):
        load_pretrained(tmp_path / "own.safetensors", model="mae3d_tiny", settings={**OWN, "width": "wide"})
    module = convnets.golden()
    save_file(module.make_state(module.CASES["unet"], module.stored_shapes("unet")), tmp_path / "unet.safetensors")
    for settings, name in (({"strides": 2}, "strides=2"), ({"dropout": "x"}, "dropout=x"), ({"adn_ordering": 5}, "adn_ordering=5")):
        with pytest.raises(ConfigError, match=f"with --set {name} .*correct these settings"):
            load_pretrained(tmp_path / "unet.safetensors", settings=settings)


def test_names_of_one_layout_with_the_shapes_of_none_are_refused(tmp_path, published):
    rng = np.random.default_rng(0)
    for key in [
        "vit.patch_embedding.position_embeddings",
        "encoder1.layer.conv1.conv.weight",
        "vit.blocks.0.attn.qkv.weight",
        "out.conv.conv.bias",
    ]:
        for shape in ((), (3,), (2, 3), (0, 3, 1)):
            path = write_zip(tmp_path / "unetr.pt", *state(published | {key: rng.random(shape).astype(np.float32)}))
            with pytest.raises((CheckpointError, ConfigError)) as caught:
                quietly(path, settings={})
            assert str(caught.value)


def test_whole_numbers_are_no_weights_and_nan_is_said(tmp_path, published):
    name = "out.conv.conv.bias"
    with pytest.raises(CheckpointError, match="head.bias is of int64"):
        quietly(write_zip(tmp_path / "a.pt", *state(published | {name: np.ones(2, np.int64)})))
    _, report = convert_file(write_zip(tmp_path / "b.pt", *state(published | {name: np.float32([1, np.nan])})), settings=SETTINGS)
    assert report.notes == ("1 arrays hold NaN or infinite numbers, among them head.bias",)


def test_unknown_arrays_are_answered_with_what_was_looked_for(tmp_path):
    path = write_zip(tmp_path / "a.pt", *state({"conv1.weight": np.ones((2, 1, 3, 3), np.float32)}))
    with pytest.raises(CheckpointError) as caught:
        quietly(path)
    assert all(layout.name in str(caught.value) for layout in published_layouts())
    assert "conv1.weight" in str(caught.value)


def test_a_file_without_arrays_and_a_file_of_several_networks(tmp_path):
    for content in (mapping({"epoch": text("3")}), text("hello")):
        with pytest.raises(CheckpointError, match="no dictionary of named arrays"):
            quietly(write_zip(tmp_path / "a.pt", content))
    one, two = {"a": np.ones(1)}, {"a": np.zeros(1)}
    assert find_state({"student": one, "teacher": two}, Settings(), "f")[1] == ["student"]
    assert find_state({"student": one, "teacher": two}, Settings({"branch": "teacher"}), "f")[0]["a"] == 0
    assert find_state({"first": {"net": one}, "second": two}, Settings({"wrapper": "second"}), "f")[1] == ["second"]
    with pytest.raises(ConfigError, match="--set wrapper"):
        find_state({"first": one, "second": two}, Settings(), "f")


def test_of_two_networks_in_one_dictionary_a_branch_is_chosen_and_the_other_named(tmp_path, published, converted):
    both = {f"student.{key}": array + 1 for key, array in published.items()} | {f"teacher.{key}": array for key, array in published.items()}
    model, report = convert_file(write_zip(tmp_path / "a.pt", *state(both)), settings={**SETTINGS, "branch": "teacher"})
    assert_same(model.network, converted)
    assert report.unused["student.out.conv.conv.bias"] == "of student, another network in the file"


def test_a_plan_beside_the_file_or_in_it_is_kept(tmp_path, published):
    plan = {"architecture_plans": {"arch_class_name": "UNETR"}}
    path = write_zip(tmp_path / "a.pt", *state(published))
    (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
    assert quietly(path).card["source"]["plan"] == plan
    path = write_zip(tmp_path / "b.pt", *wrapped(published, "network_weights", nnssl_adaptation_plan=mapping({"from": text("the file")})))
    assert quietly(path).card["source"]["plan"] == {"from": "the file"}


def own_network(**changes):
    """A network with numpy's numbers in it: nothing to compile."""
    graph, params = nnx.split(
        nnx.eval_shape(lambda: create_model("mae3d_tiny", **{**OWN, "decoder_width": 24, "decoder_heads": 2, **changes}))
    )
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in param_shapes(params).items()}
    return nnx.merge(graph, unflatten_params(params, arrays)), arrays


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a training run, as `train` writes it."""
    network, arrays = own_network()
    saved = Checkpoints(tmp_path / "run" / "checkpoints", Layout("pmap", devices=jax.devices()[:1]))
    params = nnx.split(network)[1]
    saved.save(7, {"params": nnx.to_pure_dict(params)}, {"position": 0})
    saved.close()
    return tmp_path / "run", arrays


def test_a_run_folder_is_read_when_the_model_is_named(checkpoint, tmp_path):
    run, arrays = checkpoint
    settings = {**OWN, "decoder_width": 24, "decoder_heads": 2}
    for folder in (run, run / "checkpoints", run / "checkpoints" / "000000007", run / "checkpoints" / "000000007" / "state"):
        model = load_pretrained(folder, model="mae3d_tiny", settings=settings, say=lambda text: None)
        assert_same(model.network, arrays)
    with pytest.raises(CheckpointError, match="no layout that jaxseg knows"):
        load_pretrained(run)
    with pytest.raises(CheckpointError, match="other shapes than mae3d_tiny"):
        load_pretrained(run, model="mae3d_tiny", settings={**settings, "in_channels": 1})
    data = next(path for path in (run / "checkpoints").rglob("d/*") if path.is_file())
    *kept, last = data.read_bytes()
    data.write_bytes(bytes([*kept, last ^ 1]))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        load_pretrained(run, model="mae3d_tiny", settings=settings)


def test_arrays_in_our_own_names_fill_a_network_in_part(tmp_path):
    _, arrays = own_network()
    encoder = {name.removeprefix("encoder."): array for name, array in arrays.items() if name.startswith("encoder.")}
    rest = {name: array for name, array in encoder.items() if not name.startswith("patch.")}
    save_file(rest, tmp_path / "rest.safetensors")
    arguments = {"model": "vit3d_tiny", "settings": OWN, "say": lambda text: None}
    with pytest.raises(CheckpointError, match=r"(?s)missing: 2\n    patch.*kernel  \(not in the file\).*partial=True"):
        load_pretrained(tmp_path / "rest.safetensors", **arguments)
    models = [load_pretrained(tmp_path / "rest.safetensors", **arguments, partial=True, seed=seed) for seed in (1, 2)]
    one, other = (flatten_params(model.network) for model in models)
    assert all(np.array_equal(one[name], rest[name]) and np.array_equal(other[name], rest[name]) for name in rest)
    assert one.keys() == encoder.keys() and not np.array_equal(one["patch.kernel"], other["patch.kernel"])
    assert models[0].card["source"]["missing"] == {"not in the file": ["patch.bias", "patch.kernel"]}


def test_a_name_and_folders_that_are_none_are_answered(tmp_path):
    with pytest.raises(InputError, match=r"'unetr_base' is an architecture: create_model"):
        load_pretrained("unetr_base")
    with pytest.raises(InputError, match="no such file.*downloads nothing"):
        load_pretrained("model_swinvit.pt")
    with pytest.raises(CheckpointError, match="neither a model folder nor an Orbax checkpoint"):
        load_pretrained(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="TensorFlow"):
        load_pretrained(tmp_path)


def test_the_commands_convert_and_export_and_come_back(tmp_path, published, converted, capsys):
    path = write_zip(tmp_path / "unetr.pt", *state(published))
    size = ",".join(map(str, CASE.size))
    convert = ["convert", str(path), "--set", f"crop={size}", "--set", f"heads={CASE.heads}", "--licence", "MIT", "--channels", "CT"]
    assert main([*convert, "--out", str(tmp_path / "model")]) == 0
    assert "recognised as MONAI UNETR" in capsys.readouterr().out
    assert_same(load_model(tmp_path / "model").network, converted)
    out = tmp_path / "back.safetensors"
    assert main(["export-torch", str(tmp_path / "model"), "--out", str(out)]) == 0
    assert "monai.networks.nets.UNETR(" in capsys.readouterr().out
    assert_same(quietly(out).network, converted)
    assert main(["convert", str(path), "--out", str(tmp_path / "x"), "--set", "heads=5"]) == 2
    assert main(["export-torch", str(tmp_path / "model"), "--out", str(tmp_path / "back.pt")]) == 2
    assert jaxseg.load_pretrained is load_pretrained
