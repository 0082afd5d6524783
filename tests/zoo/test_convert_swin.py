"""Every published layout of SwinUNETR files is recognised, and gives the same arrays as MONAI's own file of the same network."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.swin import SwinConfig
from jaxseg.models.swin_unetr import SwinUNETR
from jaxseg.models.windows import MERGING_ORDERS, relative_index
from jaxseg.zoo.convert.merging_evidence import find_merging
from jaxseg.zoo.convert.monai_swin import LAYOUTS
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import param_shapes

SWIN = "swinViT."


def load_golden():
    path = Path(__file__).parents[1] / "golden" / "make_swin.py"
    spec = importlib.util.spec_from_file_location("make_swin_for_convert", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOLDEN = load_golden()
PLAIN = GOLDEN.make_state(GOLDEN.CASES["default"])
V2 = GOLDEN.make_state(GOLDEN.Case((32, 32, 32), channels=1, classes=2, use_v2=True))


def recognise(state):
    return [layout for layout in LAYOUTS if layout.recognise({key: value.shape for key, value in state.items()})]


def convert(state, **given):
    (layout,) = recognise(state)
    source, settings = Source(state, layout.name), Settings(given)
    converted = layout.convert(source, settings)
    settings.check_all_asked()
    return layout.name, converted, source, settings


def encoder_only(state, prefix):
    return {key.replace(SWIN, prefix): value for key, value in state.items() if key.startswith(SWIN)}


def old_mlp(state):
    return {key.replace("mlp.linear", "mlp.fc"): value for key, value in state.items()}


def zeros(*names):
    return {name: np.zeros((2, 2), np.float32) for name in names}


def model_swinvit():
    heads = zeros("module.rotation_head.weight", "module.rotation_head.bias", "module.contrastive_head.weight", "module.conv.0.weight")
    return old_mlp(encoder_only(PLAIN, "module.")) | heads


def pretraining_checkpoint():
    return encoder_only(PLAIN, "module.swin_vit.") | zeros(
        "module.rotation_head.weight", "module.contrastive_head.bias", "module.conv.21.bias"
    )


def voco(prefix):
    kept = {key: value for key, value in V2.items() if not key.startswith(("decoder", "out."))}
    return {f"{prefix}{key}": value for key, value in kept.items()}


def suprem():
    heads = ("precls_conv.0.weight", "GAP.3.bias", "controller.weight", "controller.bias", "organ_embedding", "text_to_vision.weight")
    return {f"module.backbone.{key}": value for key, value in PLAIN.items()} | zeros(*(f"module.{head}" for head in heads))


def autoencoder():
    nested = {f"{SWIN}layers{i}.0.": f"encoder.layers{i}.0.0." for i in range(1, 5)}
    state = PLAIN
    for flat, deep in nested.items():
        state = {key.replace(flat, deep): value for key, value in state.items()}
    state = {key.replace(SWIN, "encoder."): value for key, value in state.items()}
    return state | zeros("encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias")


FILES = {
    "full": (PLAIN, PLAIN, set()),
    "full, DDP": ({f"module.{key}": value for key, value in PLAIN.items()}, PLAIN, set()),
    "full v2": (V2, V2, set()),
    "model_swinvit.pt": (model_swinvit(), PLAIN, {"stem", "skips", "bottleneck", "decoder", "head"}),
    "pretraining checkpoint": (pretraining_checkpoint(), PLAIN, {"stem", "skips", "bottleneck", "decoder", "head"}),
    "VoCo_B_SSL_head.pt": (voco(""), V2, {"decoder", "head"}),
    "VoCo checkpoint": (
        voco("module.backbone.") | zeros("module.student.layer1.0.weight", "module.teacher.layer3.0.bias"),
        V2,
        {"decoder", "head"},
    ),
    "SuPreM": (suprem(), PLAIN, {"head"}),
    "disruptive autoencoder": (autoencoder(), PLAIN, {"head"}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_layout_gives_the_arrays_of_monais_own(name):
    state, whole, missing = FILES[name]
    _, expected, _, _ = convert(whole)
    _, found, source, _ = convert(state)
    assert found.config.encoder == expected.config.encoder
    assert not source.unknown() and set(found.missing) == missing
    assert ["older than MONAI 1.5" in note for note in found.notes] == [True] * (not name.startswith("full"))
    kept = {key for key in expected.arrays if key.split(".")[0] not in missing}
    assert found.arrays.keys() == kept
    for key in kept:
        np.testing.assert_array_equal(found.arrays[key], expected.arrays[key])


@pytest.mark.parametrize("case", ["default", "v2"])
def test_the_config_is_told_by_the_arrays(case):
    case = GOLDEN.CASES[case]
    state = GOLDEN.make_state(case) | {"swinViT.layers1.0.blocks.0.attn.relative_position_index": relative_index(case.window)}
    _, found, _, settings = convert(state)
    expected = SwinConfig(case.channels, case.feature, (2, 2, 2), case.depths, case.heads, case.window, case.mlp_ratio, case.qkv_bias)
    assert (found.config.encoder.window, found.config.encoder.heads, found.config.encoder.depths) == (case.window, case.heads, case.depths)
    assert (found.config.encoder.patch_norm, found.config.encoder.use_v2) == (case.patch_norm, case.use_v2)
    assert found.config.encoder.mlp_ratio == expected.mlp_ratio and found.config.encoder.qkv_bias == expected.qkv_bias
    assert (found.config.encoder.in_channels, found.config.num_classes) == (case.channels, case.classes)
    assert [line.split(" = ")[0] for line in settings.said] == ["normalize", "downsample"]
    shapes = param_shapes(nnx.split(nnx.eval_shape(lambda: SwinUNETR(found.config, rngs=nnx.Rngs(0))))[1])
    assert shapes == {key: found.arrays[key].shape for key in sorted(found.arrays)}


def test_of_vocos_first_version_the_student_is_taken_unless_told():
    student, teacher = (
        {f"{branch}.{key}": value + shift for key, value in voco("").items()} for branch, shift in (("student", 0), ("teacher", 1))
    )
    state = student | teacher | zeros("student.proj_head.layer1.0.weight", "teacher.proj_head.layer1.0.weight")
    name, found, source, settings = convert(state)
    assert name.startswith("VoCo") and any(line.startswith("branch = student") for line in settings.said)
    np.testing.assert_array_equal(found.arrays["encoder.patch.bias"], V2["swinViT.patch_embed.proj.bias"])
    assert all(key.split(".")[0] == "teacher" or "proj_head" in key for key in source.ignored) and not source.unknown()
    np.testing.assert_array_equal(convert(state, branch="teacher")[1].arrays["encoder.patch.bias"], V2["swinViT.patch_embed.proj.bias"] + 1)
    with pytest.raises(ConfigError, match="branch is 'mean'; this file holds student, teacher"):
        convert(state, branch="mean")


def trained_like(order, rows=24, width=12):
    """A merging layer's weights after much training: columns that see the same neighbour share most of what they learned."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(rows, 1, width))
    learned = {place: shared + rng.normal(size=(rows, width))[:, None] for place in set(MERGING_ORDERS[order])}
    columns = np.concatenate([learned[place] + 0.7 * rng.normal(size=(rows, 1, width)) for place in MERGING_ORDERS[order]], 1)
    return columns.reshape(rows, -1)


@pytest.mark.parametrize(("order", "found"), [("merging", "merging"), ("mergingv2", "merging"), ("merging_repeated", "merging_repeated")])
def test_repeated_neighbours_betray_themselves_by_columns_that_learned_the_same(order, found):
    name, why = find_merging([trained_like(order)] * 4)
    assert name == found and "cosines of" in why
    state = PLAIN | {
        f"swinViT.layers{i}.0.downsample.reduction.weight": trained_like(order, 24 * 2 ** (i - 1), 12 * 2 ** (i - 1)) for i in range(1, 5)
    }
    assert convert(state)[1].config.encoder.downsample == found
    assert convert(state, downsample="mergingv2")[1].config.encoder.downsample == "mergingv2"


def test_what_is_no_swin_unetr_is_not_recognised_and_what_is_broken_is_said():
    assert recognise({}) == recognise({"vit.patch_embedding.weight": np.zeros(3)}) == []
    flat = {key: value[..., 0] if value.ndim == 5 else value for key, value in PLAIN.items()}
    assert recognise(flat) == []
    short = {key: value for key, value in PLAIN.items() if key != "decoder3.conv_block.conv2.conv.weight"}
    with pytest.raises(CheckpointError, match=r"not a MONAI SwinUNETR: decoder3\.conv_block\.conv2\.conv\.weight is missing"):
        convert(short)
    three = {key: value for key, value in PLAIN.items() if "layers4" not in key}
    with pytest.raises(CheckpointError, match="four stages"):
        convert(three)
    with pytest.raises(ConfigError, match="normalize is 'no'; expected true or false"):
        convert(PLAIN, normalize="no")
    assert convert(PLAIN | {"swinViT.extra": np.zeros(2)})[2].unknown() == ["swinViT.extra"]
    assert convert(model_swinvit() | {"module.other.weight": np.zeros(2)})[2].unknown() == ["module.other.weight"]


def test_a_window_that_is_no_cube_is_told_by_the_stored_index_or_has_to_be_given():
    case = GOLDEN.CASES["v2"]
    state = GOLDEN.make_state(case)
    with pytest.raises(ConfigError, match=r"window cannot be told .* 315 rows.*--set window="):
        convert(state)
    assert convert(state, window=[4, 3, 5])[1].config.encoder.window == (4, 3, 5)
    with pytest.raises(ConfigError, match=r"window is 'big'; expected one number or three"):
        convert(state, window="big")
    with pytest.raises(ConfigError, match="has 343 offsets, but the file's table has 315 rows"):
        convert(state, window=4)
    key = "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    assert convert(state | {key: relative_index((5, 3, 4))})[1].config.encoder.window == (5, 3, 4)
    with pytest.raises(CheckpointError, match=r"is not the index of a window of \(7, 7, 7\)"):
        convert(PLAIN | {key.replace("layers1", "layers3"): relative_index((7, 7, 7)).T})
