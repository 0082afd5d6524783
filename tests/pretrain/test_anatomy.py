"""The objective "anatomy": where voxels lie moves with them, what is hidden is hidden, and fine-tuning takes the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from finetune.transfer import take_network
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig, UNETRConfig, UNETRPlusConfig, ViTConfig
from jaxseg.zoo.registry import network_of
from pretrain.objectives import OBJECTIVES, Anatomy
from pretrain.objectives.anatomy import _hidden, _moved, _places

SIDE = 8


def batch(places=False):
    made = {
        "image": np.zeros((4, SIDE, SIDE, SIDE, 3), np.float32),
        "mask": np.ones((4, SIDE, SIDE, SIDE), np.uint8),
        "present": np.ones((4, 3), np.float32),
        "spacing": np.tile(np.array([2, 2, 4], np.float32), (4, 1)),
        "air": np.zeros((4, 3), np.float32),
        "place": np.array([[[x, 4, -12], [70, 90, 80]] for x in (-30, -8, 0, 20)], np.float32),
    }
    return {**made, "image": np.array(_places(made))} if places else made


def test_places_are_millimetres_from_the_centre_over_half_the_size():
    found = np.array(_places(batch()))
    np.testing.assert_allclose(found[0, 0, 0, 0], [(-30 + 1) / 70, (4 + 1) / 90, (-12 + 2) / 80], rtol=1e-6)
    np.testing.assert_allclose(found[3, 7, 2, 1], [(20 + 15) / 70, (4 + 5) / 90, (-12 + 6) / 80], rtol=1e-6)


def test_places_move_with_the_voxels():
    """An image that shows where its voxels lie shows the same after rotation, scaling, bending and mirroring, left and right alike."""
    before = batch(places=True)
    moves = Augment(
        affine=1.0, elastic=1.0, flip=(0.5, 0.5, 0.5), noise=0, blur=0, brightness=0, contrast=0, coarse=0, gamma=0, scale=(0.8, 1.2)
    )
    after, place = _moved(before, jax.random.split(jax.random.key(1), 4), moves)
    body = np.array(after["mask"]) == 1
    shown = np.array(after["image"])
    shown[..., 0] = np.abs(shown[..., 0])
    np.testing.assert_allclose(np.array(place)[body], shown[body], atol=1e-5)
    assert body.mean() > 0.4 and np.abs(np.array(after["image"]) - before["image"])[body].max() > 0.05


@pytest.mark.parametrize("decoder", ["unetr", "unetr_plus"])
def test_hidden_voxels_are_whole_tokens_and_do_not_reach_the_network(decoder):
    hidden = np.array(_hidden(jax.random.split(jax.random.key(0), 4), (SIDE, SIDE, SIDE), (2, 2, 4), Anatomy(hidden=0.5, unit=(1, 1, 1))))
    tokens = hidden.reshape(4, 4, 2, 4, 2, 2, 4).transpose(0, 1, 3, 5, 2, 4, 6).reshape(4, 32, 16)
    assert (tokens.any(-1) == tokens.all(-1)).all() and (tokens.any(-1).sum(1) == 16).all()

    model = MAEConfig(encoder=ViTConfig(in_channels=3, crop=(SIDE,) * 3, token=(2, 2, 2), width=12, depth=2, heads=1))
    objective, settings = OBJECTIVES["anatomy"], Anatomy(decoder=decoder, feature=4)
    graph, params = nnx.split(network_of(objective.settings(model, anatomy=settings)))
    loss = objective.make_loss(graph, Augment.none(), settings)
    keys, samples = jax.random.split(jax.random.key(2), 4), batch(places=True)
    slope = jax.grad(lambda image: loss(params, {**samples, "image": image}, keys, None)["place"][0])(jnp.asarray(samples["image"]))
    seen = np.abs(np.array(slope)).max(-1) > 0
    assert 0.3 < seen.mean() <= 0.5  # the loss of places sees what is shown, and nothing of what is hidden
    assert (seen.reshape(4, 4, 2, 4, 2, 4, 2).transpose(0, 1, 3, 5, 2, 4, 6).reshape(4, 64, 8).any(-1).sum(1) <= 32).all()


@pytest.mark.parametrize(("decoder", "family"), [(None, UNETRConfig), ("unetr", UNETRConfig), ("unetr_plus", UNETRPlusConfig)])
def test_fine_tuning_takes_all_but_the_head(decoder, family):
    encoder = ViTConfig(in_channels=1, crop=(SIDE,) * 3, token=(2, 2, 2), width=12, depth=2, heads=1)
    anatomy = Anatomy(decoder=decoder, feature=4, stride=1)
    trained = nnx.state(network_of(OBJECTIVES["anatomy"].settings(MAEConfig(encoder=encoder), anatomy=anatomy), seed=1))
    mine = nnx.state(network_of(family(encoder=encoder, num_classes=7, feature=4, stride=1), seed=2))
    found = take_network(mine, trained, channels=["T1"], source_channels=["T1"], outlines=None)
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(found.params)}
    theirs = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(trained)}
    own = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(mine)}
    for name, leaf in flat.items():
        source = own if name.startswith("head.") else theirs
        np.testing.assert_array_equal(jax.tree.leaves(leaf)[0], jax.tree.leaves(source[name])[0])
    assert any(name.startswith("head.") for name in flat)


@pytest.mark.parametrize("wrong", [{"hidden": 0.0}, {"hidden": 1.0}, {"unit": (0, 2, 2)}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="anatomy.hidden"):
        Anatomy(**wrong)


def test_a_decoder_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="anatomy.decoder is 'unet'; expected unetr or unetr_plus"):
        Anatomy(decoder="unet")  # pyright: ignore[reportArgumentType]
