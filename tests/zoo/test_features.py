"""Feature maps of every family as timm's users know them: a list, with channels and reductions that are true."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.features import FeatureMaps
from jaxseg.train import array_names, layer_depths
from jaxseg.zoo import create_model
from jaxseg.zoo.registry import FAMILIES

TINY: dict[str, Any] = {"crop": (16, 16, 32), "token": 8, "width": 24, "depth": 6, "heads": 2}


def smallest(family):
    return next(iter(FAMILIES[family].names(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_maps_that_its_info_describes(family):
    model = nnx.eval_shape(lambda: create_model(smallest(family), in_channels=2, features_only=True))
    config = getattr(model.config, "encoder", model.config)
    sides = getattr(model.config, "crop", getattr(config, "crop", (96, 96, 96)))
    maps = nnx.eval_shape(lambda model: model(jnp.zeros((1, *sides, 2)), spacing=jnp.ones((1, 3))), model)
    assert len(maps) == len(model.feature_info) > 0
    for each, (channels, reduction) in zip(maps, model.feature_info):
        assert each.shape == (1, *(side // r for side, r in zip(sides, reduction)), channels)
    reductions = [info.reduction for info in model.feature_info]
    assert reductions == sorted(reductions), "from fine to coarse"


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_family_have_depths_from_the_stem_to_the_head(family):
    """What layer-wise learning rates need: all depths are there, ours from the input on, and nothing of a decoder is in the encoder."""
    params = nnx.state(nnx.eval_shape(lambda: create_model(smallest(family))), nnx.Param)
    depths = layer_depths(params)
    last = max(int(depth.max()) for depth in depths.values())
    found = set(np.concatenate([np.atleast_1d(depth) for depth in depths.values()]).tolist())
    assert found >= set(range(1, last + 1)) and last > 2
    assert all(int(depth.min()) == last for name, depth in depths.items() if name.startswith(("decoder", "head")))
    for name, leaf in zip(array_names(params), jax.tree.leaves(params)):
        assert depths[name].shape in ((), leaf.shape[:1])


def test_the_maps_are_the_networks_own_and_the_decoder_is_gone():
    network = create_model("unetr_tiny", **TINY, in_channels=2, seed=3)
    maps = FeatureMaps(network, (0, -1))
    x, spacing = jax.random.normal(jax.random.key(0), (1, 16, 16, 32, 2)), jnp.ones((1, 3))
    tokens, states = network.encoder(x, spacing=spacing, taps=(2,))
    found = maps(x, spacing=spacing)
    for wanted, each in zip((states[0], tokens), found):
        np.testing.assert_array_equal(each, wanted.reshape(1, 2, 2, 4, 24))
    assert [info.reduction for info in maps.feature_info] == [(8, 8, 8)] * 2
    assert all(name.startswith("encoder.") for name in array_names(nnx.state(maps, nnx.Param)))
    assert hasattr(network, "decoder") and not hasattr(maps.encoder, "decoder")


def test_a_convolutional_network_keeps_its_encoder_alone():
    full = nnx.eval_shape(lambda: create_model("unet_plain"))
    maps = nnx.eval_shape(lambda: create_model("unet_plain", features_only=True, out_indices=(1, 5)))
    assert [info.reduction for info in maps.feature_info] == [(2, 2, 2), (32, 32, 32)]
    names = array_names(nnx.state(maps, nnx.Param))
    assert names and all(name.startswith("encoder.encoder.") for name in names)
    assert len(names) < len(array_names(nnx.state(full, nnx.Param)))


@pytest.mark.parametrize(
    ("name", "changes", "coarsest"),
    [
        ("resunet_small", {"channels": (4,) * 7, "strides": (2,) * 6}, (64, 64, 64)),
        ("attention_unet_small", {"channels": (4,) * 3, "strides": (5, (7, 1, 2))}, (35, 5, 10)),
        (
            "unet_plain",
            {"features": (4, 4, 4), "kernels": 3, "strides": (1, 3, 5), "blocks": 1, "decoder_convs": 1, "crop": 32},
            (15, 15, 15),
        ),
        ("swin_unetr_12", {"patch": (5, 2, 1)}, (80, 32, 16)),
    ],
)
def test_networks_whose_strides_do_not_divide_the_usual_size_have_maps_too(name, changes, coarsest):
    model = nnx.eval_shape(lambda: create_model(name, features_only=True, **changes))
    assert model.feature_info[-1].reduction == coarsest


def test_mistakes_are_answered():
    with pytest.raises(ConfigError, match="no feature map 4: ViT gives 4"):
        nnx.eval_shape(lambda: create_model("vit3d_tiny", **TINY, features_only=True, out_indices=(4,)))
    with pytest.raises(ConfigError, match="a Linear gives no feature maps"):
        FeatureMaps(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
