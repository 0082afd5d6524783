"""Networks by name, and an architecture that survives JSON."""

import dataclasses
import json
import math
import sys
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.zoo import architecture, build, create_model, list_models
from jaxseg.zoo.registry import FAMILIES, Family

TINY: dict[str, Any] = {"crop": 16, "token": 8, "width": 24, "depth": 2, "heads": 2}


def parameters(model: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def vit_parameters(width: int, depth: int, patch: int) -> int:
    """Closed form: embedding, blocks (two norms, qkv, out, SwiGLU of 8/3 in steps of 8, two LayerScales), final norm."""
    hidden = -(-int(width * 8 / 3) // 8) * 8
    block = 4 * width + 3 * width * (width + 1) + width * (width + 1) + (width + 1) * 2 * hidden + (hidden + 1) * width + 2 * width
    return (patch + 1) * width + depth * block + 2 * width


@pytest.mark.parametrize(("size", "width", "depth"), [("tiny", 192, 6), ("small", 384, 8), ("base", 768, 12), ("large", 1024, 24)])
def test_sizes_have_the_parameters_that_they_say(size, width, depth):
    model = nnx.eval_shape(lambda: create_model(f"vit3d_{size}", in_channels=4))
    assert parameters(model) == vit_parameters(width, depth, 512 * 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds_and_survives_json(family):
    name = next(iter(FAMILIES[family].names(family)))
    described = []
    for make in (lambda: create_model(name, in_channels=2), lambda: build(json.loads(json.dumps(described[0])))):
        model = nnx.eval_shape(make)
        described.append(architecture(model))
        described.append(jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model))))
    assert described[:2] == described[2:]


def test_every_name_is_of_one_family_and_its_config_can_be_made():
    names = list_models()
    assert len(set(names)) == len(names)
    for family, entry in FAMILIES.items():
        for method in entry.names(family).values():
            config = getattr(entry.config_class(), method)()
            assert getattr(config, "encoder", config).in_channels == 1, "the default of create_model"


@dataclasses.dataclass(frozen=True)
class PartConfig:
    """A part that a network may have or not."""

    size: int = 1
    steps: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclasses.dataclass(frozen=True)
class WholeConfig:
    """A config of every kind of field that the registry promises to take."""

    VARIANTS: ClassVar[dict[str, str]] = {"a_24": "larger", "": "plain"}

    in_channels: int = 1
    stages: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)
    part: PartConfig | None = None

    @classmethod
    def plain(cls, **changes):
        return cls(**changes)

    @classmethod
    def larger(cls, **changes):
        return cls(**{"part": PartConfig(size=24), **changes})


class Whole(nnx.Module):
    """The network of the config above."""

    def __init__(self, config, *, rngs):
        self.config = config


def test_names_with_underscores_optional_parts_and_nested_tuples(monkeypatch):
    monkeypatch.setitem(FAMILIES, "whole_b", Family("whole", "Whole", "WholeConfig"))
    monkeypatch.setitem(sys.modules, "whole", sys.modules[__name__])
    assert list_models()[-2:] == ["whole_b_a_24", "whole_b"]
    assert create_model("whole_b").config == WholeConfig()
    assert create_model("whole_b_a_24", steps=[[3, 4]]).config.part == PartConfig(24, ((3, 4),))
    assert create_model("whole_b", size=3).config.part == PartConfig(3)
    for changes in ({}, {"size": 2, "stages": ((1, 3, 3), (2, 2, 2))}):
        described = architecture(create_model("whole_b", **changes))
        again = build(json.loads(json.dumps(described)))
        assert again.config == create_model("whole_b", **changes).config and hash(again.config)


def test_the_seed_decides_the_parameters():
    def first(seed):
        return jax.tree.leaves(nnx.state(create_model("vit3d_tiny", seed=seed, **TINY)))[-1]

    np.testing.assert_array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def test_overrides_reach_the_encoder_and_the_network():
    model = nnx.eval_shape(lambda: create_model("mae3d_tiny", **TINY, in_channels=3, mask_ratio=0.6, decoder_width=24))
    assert model.config.encoder.crop == (16, 16, 16) and model.config.encoder.in_channels == 3
    assert (model.config.mask_ratio, model.config.decoder_width) == (0.6, 24)
    segmenter = nnx.eval_shape(lambda: create_model("unetr_tiny", encoder=model.config.encoder, num_classes=5))
    assert segmenter.config.encoder == model.config.encoder and segmenter.config.num_classes == 5
    single = nnx.eval_shape(lambda: create_model("unetr_tiny", encoder=model.config.encoder, in_channels=1))
    assert single.config.encoder.in_channels == 1


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("unetr_tiny", {"heads": 0}, "heads is 0; expected a whole number of at least 1"),
        ("unetr_tiny", {"token": 0}, r"token is \(0, 0, 0\); expected three whole numbers"),
        ("unetr_tiny", {"crop": (48, 48)}, r"crop is \(48, 48\); expected three"),
        ("unetr_tiny", {"crop": "abc"}, "crop is 'abc'"),
        ("unetr_tiny", {"width": 192.0}, "width is 192.0"),
        ("unetr_tiny", {"registers": -1}, "registers is -1; expected a whole number of at least 0"),
        ("unetr_tiny", {"rope_scale": 0}, "rope_scale is 0; expected a number above 0"),
        ("unetr_tiny", {"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ("unetr_tiny", {"encoder": 5}, "of another type or size"),
        ("mae3d_tiny", {"decoder_heads": 0}, "decoder_heads is 0"),
        ("mae3d_tiny", {"mask_unit": (2, 2)}, r"mask_unit is \(2, 2\)"),
        ("evamae_s", {"decoder_heads": 0}, "decoder_heads is 0"),
        ("primus_s", {"heads": 0}, "heads is 0"),
        ("primus_s", {"in_channels": 0}, "in_channels is 0"),
        ("swin_unetr_12", {"mlp_ratio": 0}, "mlp_ratio is 0"),
        ("resunet_small", {"channels": 8}, "of another type or size.*channels=8"),
        ("cinema_base", {"scale": (2, 2)}, "of another type or size"),
        *((name, {"dtype": "foo"}, "dtype is 'foo'") for name in ("unet_plain", "resunet_small", "attention_unet_small", "vnet_small")),
    ],
)
def test_values_that_make_no_network_are_named(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: create_model(name, **changes))


def test_mistakes_are_answered():
    with pytest.raises(ConfigError, match="perhaps you meant 'unetr_tiny'"):
        create_model("unetr_tini")
    with pytest.raises(ConfigError, match="there is no model 'vit3d'"):
        create_model("vit3d")
    with pytest.raises(ConfigError, match=r"no setting 'mask_ration' \(perhaps you meant 'mask_ratio'\); known: .*decoder_width.*width"):
        create_model("mae3d_tiny", mask_ration=0.5)
    with pytest.raises(ConfigError, match="'swin'"):
        build({"name": "swin", "arguments": {}})
    with pytest.raises(ConfigError, match="no setting 'heds'"):
        build({"name": "vit3d", "arguments": {"heds": 3}})
    with pytest.raises(ConfigError, match="cannot be described"):
        architecture(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
