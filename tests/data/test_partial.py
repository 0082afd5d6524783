"""Partial labels: which slices count, where the rest is ignored, and that crops are drawn for contoured voxels alone."""

import dataclasses

import numpy as np
import pytest

from jaxseg.data.cache import CaseArrays
from jaxseg.data.catalog import open_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.partial import Slices
from jaxseg.errors import ConfigError
from jaxseg.prepare import prepare_folder
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partial")
    return prepare_folder(write_scans(folder / "scans", 2, channels=("T1",)), folder / "store", processes=1)


@pytest.mark.parametrize("size", [1, 4, 9, 16])
@pytest.mark.parametrize("every", [1, 3, 5])
def test_every_nth_slice_and_the_middle_one_are_contoured(size, every):
    chosen = np.flatnonzero(Slices(every).contoured(np.arange(size), size))
    assert size // 2 in chosen
    assert set(np.diff(chosen)) <= {every}
    assert chosen[0] < every and size - 1 - chosen[-1] < every


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_crop_hides_what_the_whole_case_hides_there(axis):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 3, (9, 10, 11)).astype(np.uint8)
    slices, origin = Slices(4, axis), np.array([2, -1, 3])
    hidden = slices.hide(whole, np.zeros(3, int), whole.shape)
    assert (np.moveaxis(hidden, axis, 0)[~slices.contoured(np.arange(whole.shape[axis]), whole.shape[axis])] == 255).all()
    inside = whole[2:8, 0:6, 3:9]
    crop = slices.hide(inside, np.maximum(origin, 0), whole.shape)
    np.testing.assert_array_equal(crop, hidden[2:8, 0:6, 3:9])
    np.testing.assert_array_equal(Slices(1, axis).hide(whole, np.zeros(3, int), whole.shape), whole)


def test_a_label_that_lies_in_no_contoured_slice_is_not_drawn_for():
    nothing = np.zeros((8, 8, 8), np.uint8)
    voxels = {1: np.array([[0, 0, 4], [0, 0, 5]], np.int32), 2: np.array([[0, 0, 5]], np.int32)}
    kept = Slices(4, 2).kept(CaseArrays(nothing[..., None], nothing, nothing, voxels, np.zeros((0, 3), np.int32)))
    assert {value: found.tolist() for value, found in kept.foreground.items()} == {1: [[0, 0, 4]]}


def test_the_loader_gives_the_same_crops_with_the_rest_ignored(store):
    """Where no crop is drawn for a label's sake nothing moves; where crops are, each holds a contoured voxel of it."""
    options = {"crop": (8, 8, 8), "batch": 4, "seed": 1, "labelled": True, "threads": 0}
    whole, partial = (next(CropLoader(store, store.names, slices=slices, **options)) for slices in (None, Slices(5)))
    np.testing.assert_array_equal(whole["image"], partial["image"])
    assert ((partial["label"] == 255) | (partial["label"] == whole["label"])).all()
    assert 0 < (partial["label"] != 255).mean() < 0.4
    drawn = CropLoader(store, store.names, slices=Slices(5), foreground=1.0, **options)
    for _ in range(8):
        assert all((label == 1).any() for label in next(drawn)["label"])


def test_what_cannot_be_is_refused(store):
    with pytest.raises(ConfigError, match="expected 1 or more"):
        Slices(0)
    with pytest.raises(ConfigError, match="needs labelled=True"):
        CropLoader(store, store.names, crop=(8, 8, 8), batch=1, seed=0, slices=Slices(2))
    assert dataclasses.asdict(Slices()) == {"every": 1, "axis": 2}
    assert open_store(store.path).names == store.names
