"""Pictures of reconstructions: what was seen stays, the latest few are kept, and the error is that of the hidden voxels of the body."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.data.store import open_store
from jaxseg.errors import ConfigError, InputError
from jaxseg.models import MAE, MAEConfig, ViTConfig
from jaxseg.prepare import prepare_folder
from jaxseg.report import reconstruction_figure
from jaxseg.train import TrainState
from pretrain.pictures import PictureConfig, drawn, make_pictures
from tests.tiny_store import write_scans

ENCODER = ViTConfig(in_channels=2, crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=1, heads=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    prepare_folder(write_scans(folder / "scans", 2, labelled=False), folder / "store")
    return open_store(folder / "store")


@pytest.fixture(scope="module")
def model():
    return nnx.split(MAE(MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1), rngs=nnx.Rngs(0)))


def test_the_latest_pictures_are_kept_and_the_error_is_the_same_again(store, model, tmp_path):
    graph, params = model
    draw = make_pictures(graph, PictureConfig(keep=2, channel="T2"), store, store.names, ENCODER, tmp_path)
    state = TrainState.create(params, optax.sgd(1.0))
    errors = [draw(dataclasses.replace(state, step=step))["picture_error"] for step in (5, 30, 1_200_000)]
    assert [path.name for path in drawn(tmp_path)] == ["step_000030.png", "step_1200000.png"]
    assert errors[0] == errors[2] > 0
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn(tmp_path))
    # A decoder that says 0 everywhere errs by what the scan itself is, in the part of it that is hidden.
    arrays = store.arrays(store.names[0])
    image = np.abs(np.asarray(arrays.image, np.float32)[6:14, 5:13, 4:12])[np.asarray(arrays.mask[6:14, 5:13, 4:12]) == 1].mean()
    blank = draw(TrainState.create(jax.tree.map(np.zeros_like, params), optax.sgd(1.0)))
    assert blank["picture_error"] == pytest.approx(image, rel=0.3)


def test_cases_and_channels_that_are_not_there_are_refused(store, model, tmp_path):
    with pytest.raises(ConfigError, match="pictures.channel is 'CT'"):
        make_pictures(model[0], PictureConfig(channel="CT"), store, store.names, ENCODER, tmp_path)
    with pytest.raises(InputError, match="no case 'nobody'"):
        make_pictures(model[0], PictureConfig(case="nobody"), store, store.names, ENCODER, tmp_path)
    with pytest.raises(ConfigError, match=r"pictures.keep is -1"):
        PictureConfig(keep=-1)


def test_a_figure_of_a_constant_crop_can_be_drawn():
    flat = np.zeros((4, 6, 8), np.float32)
    assert reconstruction_figure(flat, flat > 0, flat, (1, 1, 2)).startswith(b"\x89PNG")
