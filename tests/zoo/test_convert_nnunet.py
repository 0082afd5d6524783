"""nnU-Net's and nnssl's files: recognised, whole or the encoder alone, copies checked, and everything that shapes cannot tell said aloud."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.unet import UNet
from jaxseg.zoo.convert.nnunet_unet import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import differences, param_shapes

PLAIN, RESIDUAL = LAYOUTS


@pytest.fixture(scope="module")
def golden():
    """The module that makes the peer's weights by seed, in all of the names that the peer's files have."""
    path = Path(__file__).parents[1] / "golden" / "make_unet.py"
    spec = importlib.util.spec_from_file_location("make_unet", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(state):
    return {key: array.shape for key, array in state.items()}


def convert(state, **given):
    """Converted, the source and the settings; the layout is the one that recognises the file."""
    (layout,) = [layout for layout in LAYOUTS if layout.recognise(shapes(state))]
    source, settings = Source(state, layout.name), Settings(given)
    converted = layout.convert(source, settings)
    settings.check_all_asked()
    return converted, source, settings


def expected(config):
    return param_shapes(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(("name", "layout"), [("plain", PLAIN), ("residual", RESIDUAL)])
def test_a_whole_file_fills_the_whole_network(golden, name, layout):
    case, state = golden.CASES[name], golden.make_state(golden.CASES[name])
    assert [each.recognise(shapes(state)) for each in LAYOUTS] == [each is layout for each in LAYOUTS]
    converted, source, settings = convert(state)
    config = converted.config
    assert (config.in_channels, config.num_classes, config.blocks) == (case.channels, case.classes, case.blocks)
    assert (config.features, config.kernels, config.strides, config.decoder_convs) == (
        case.features,
        case.kernels,
        case.strides,
        case.decoder,
    )
    assert config.conv_bias is case.bias and config.deep_supervision
    assert not differences(expected(config), shapes(converted.arrays)) and not converted.missing
    # Every array is used or said to be a copy, and the copies are more than half of the file.
    assert not source.unknown() and set(source.ignored.values()) == {"a copy of another array, found equal"}
    assert len(source.ignored) > len(source.used)
    assert [line.split(" = ")[0] for line in settings.said] == ["crop"]


def test_a_converted_network_says_its_axes_and_what_is_taken_for_granted(golden):
    converted, _, _ = convert(golden.make_state(golden.CASES["plain"]))
    assert "(z, y, x)" in converted.notes[0] and converted.card["axes"] == "z, y, x, channel"
    assert "instance norm and LeakyReLU with a slope of 0.01: the file does not say" in converted.notes[1]


@pytest.mark.parametrize("prefix", ["encoder.", ""])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_an_encoder_alone_gives_the_whole_files_features(golden, name, prefix):
    case, state = golden.CASES[name], golden.make_state(golden.CASES[name])
    alone = {prefix + key.removeprefix("encoder."): array for key, array in state.items() if key.startswith("encoder.")}
    converted, _, settings = convert(alone, strides=case.strides)
    assert set(converted.missing) == {"decoder", "head"} and converted.config.strides == case.strides
    assert [line.split(" = ")[0] for line in settings.said] == ["decoder_convs", "num_classes", "crop"]
    whole = convert(state)[0].arrays
    assert converted.arrays.keys() == {key for key in whole if key.startswith("encoder.")}
    assert all(np.array_equal(array, whole[key]) for key, array in converted.arrays.items())
    lacking = [key for key in expected(converted.config) if key not in converted.arrays]
    assert all(key.split(".")[0] in converted.missing for key in lacking)


def test_without_a_decoder_strides_follow_nnunets_rule(golden):
    # Kernels of 1 along an axis leave it whole; the file's own last stride (2, 2, 1) cannot be known, so the rule is said aloud.
    state = golden.make_state(golden.CASES["plain"])
    converted, _, settings = convert({key: array for key, array in state.items() if key.startswith("encoder.")})
    assert converted.config.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert "strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)) (without a decoder" in settings.said[0]


def test_a_decoder_tells_strides_so_that_none_may_be_given(golden):
    with pytest.raises(ConfigError, match="--set strides: this checkpoint has no such setting"):
        convert(golden.make_state(golden.CASES["plain"]), strides=2)


def test_heads_are_ordered_from_fine_to_coarse(golden):
    state = golden.make_state(golden.CASES["plain"])
    arrays = convert(state)[0].arrays
    for ours, theirs in {"head": 2, "auxiliary.0": 1, "auxiliary.1": 0}.items():
        np.testing.assert_array_equal(arrays[f"{ours}.bias"], state[f"decoder.seg_layers.{theirs}.bias"])
    finest = {key: array for key, array in state.items() if "seg_layers" not in key or "seg_layers.2" in key}
    assert not convert(finest)[0].config.deep_supervision
    without = convert({key: array for key, array in state.items() if "seg_layers" not in key})[0]
    assert set(without.missing) == {"head"} and not without.config.deep_supervision


def test_of_another_decoder_the_encoder_is_left(golden):
    state = golden.make_state(golden.CASES["residual"])
    other = {key.replace("decoder.stages.0.convs", "decoder.stages.0.blocks"): array for key, array in state.items()}
    with pytest.raises(CheckpointError, match=r"have no place here, among them .*decoder.stages.0.blocks"):
        convert(other)

    class Lenient(Source):
        def check_all_used(self):
            pass

    source = Lenient(other, RESIDUAL.name)
    converted = RESIDUAL.convert(source, Settings())
    assert set(converted.missing) == {"decoder", "head"} and converted.config.strides == golden.CASES["residual"].strides
    assert {key.split(".")[0] for key in converted.arrays} == {"encoder"} and "decoder.seg_layers.0.weight" in source.unknown()


def test_a_pretrainings_own_head_is_left_out_and_said(golden):
    state = golden.make_state(golden.CASES["residual"]) | {"projector.0.weight": np.zeros((4, 12))}
    _, source, _ = convert(state)
    assert source.ignored["projector.0.weight"] == "not a part of the U-Net"


@pytest.mark.parametrize(
    "copy",
    [
        "encoder.stem.convs.0.all_modules.0.weight",
        "decoder.encoder.stages.1.blocks.0.conv1.norm.bias",
        "decoder.stages.1.convs.0.all_modules.1.weight",
    ],
)
def test_copies_that_differ_are_refused(golden, copy):
    state = golden.make_state(golden.CASES["residual"])
    with pytest.raises(CheckpointError, match=f"and {copy} are one array in the network, but differ"):
        convert(state | {copy: state[copy] + 1})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("encoder.stages.0.blocks.0.conv3.conv.weight", "bottleneck blocks"),
        ("encoder.stages.0.blocks.0.squeeze_excitation.fc1.weight", "squeeze and excitation"),
        ("encoder.stem.convs.0.norm.running_mean", "batch norm"),
        ("encoder.stem.convs.0.all_modules.2.weight", "dropout or an activation between convolution and norm"),
        ("decoder.stages.0.attention.weight", "have no place here, among them .'decoder.stages.0.attention.weight'"),
    ],
)
def test_variants_that_the_network_does_not_have_are_refused(golden, extra, message):
    with pytest.raises(CheckpointError, match=message):
        convert(golden.make_state(golden.CASES["residual"]) | {extra: np.zeros(6)})


def test_a_2d_network_and_a_missing_array_are_refused(golden):
    state = golden.make_state(golden.CASES["plain"])
    with pytest.raises(CheckpointError, match="a network for 2D images"):
        convert({key: array[..., 0] if array.ndim == 5 else array for key, array in state.items()})
    lost = "stages.1.0.convs.0.norm.weight"
    with pytest.raises(CheckpointError, match=f"encoder.{lost} is missing"):
        convert({key: array for key, array in state.items() if not key.endswith((lost, lost.replace("norm", "all_modules.1")))})


def test_nothing_else_is_recognised(golden):
    others = [
        {"swinViT.patch_embed.proj.weight": (48, 1, 2, 2, 2)},
        {"encoder.blocks.0.norm1.weight": (8,)},
        {"model.0.conv.unit0.conv.weight": (8,)},
    ]
    assert not any(layout.recognise(state) for layout in LAYOUTS for state in others)
