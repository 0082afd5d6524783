"""Partial labels: which slices or cubes count, where the rest is ignored, and that crops are drawn for contoured voxels alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxseg.data.cache import CaseArrays
from jaxseg.data.catalog import open_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.partial import Cubes, Slices
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
    nowhere = np.zeros(1, int)
    chosen = np.flatnonzero(Slices(every).contoured((nowhere, nowhere, np.arange(size)), (8, 8, size)))
    assert size // 2 in chosen
    assert set(np.diff(chosen)) <= {every}
    assert chosen[0] < every and size - 1 - chosen[-1] < every


@pytest.mark.parametrize("every", [1, 3, 5])
@pytest.mark.parametrize("side", [1, 4])
def test_one_cube_in_n_is_contoured_whole_and_they_lie_all_over_the_case(every, side):
    """Counted along each axis from the middle voxel, cubes are contoured or not as wholes; a line along any axis meets one every n cubes."""
    shape = (13, 20, 17)
    chosen = Cubes(every, side).contoured(np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True), shape)
    middle = [size // 2 for size in shape]
    assert chosen[tuple(slice(at, at + side) for at in middle)].all()
    first = [at % side for at in middle]
    cubes = [chosen[x : x + side, y : y + side, z : z + side] for x, y, z in itertools.product(*map(range, first, shape, [side] * 3))]
    assert all(cube.all() or not cube.any() for cube in cubes)
    for axis in range(3):
        line = np.moveaxis(chosen, axis, 0)
        assert all(line[start : start + every * side].any(0).all() for start in range(shape[axis] - every * side + 1))
    assert abs(chosen.mean() - 1 / every) < 0.1


@pytest.mark.parametrize("partial", [*(Slices(4, axis) for axis in range(3)), Cubes(3, 2)])
def test_a_crop_hides_what_the_whole_case_hides_there(partial):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 3, (9, 10, 11)).astype(np.uint8)
    hidden = partial.hide(whole, np.zeros(3, int), whole.shape)
    everywhere = np.meshgrid(*map(np.arange, whole.shape), indexing="ij")
    chosen = partial.contoured(everywhere, whole.shape)
    assert (hidden[~chosen] == 255).all() and (hidden[chosen] == whole[chosen]).all() and 0 < chosen.mean() < 1
    crop = partial.hide(whole[2:8, 0:6, 3:9], np.array([2, 0, 3]), whole.shape)
    np.testing.assert_array_equal(crop, hidden[2:8, 0:6, 3:9])
    outside = partial.hide(np.pad(whole, ((0, 0), (1, 0), (0, 0)))[2:8, 0:6, 3:9], np.array([2, -1, 3]), whole.shape)
    np.testing.assert_array_equal(outside[:, 1:], hidden[2:8, 0:5, 3:9])
    np.testing.assert_array_equal(dataclasses.replace(partial, every=1).hide(whole, np.zeros(3, int), whole.shape), whole)


def test_a_label_that_lies_in_no_contoured_part_is_not_drawn_for():
    nothing = np.zeros((8, 8, 8), np.uint8)
    voxels = {1: np.array([[0, 0, 4], [0, 0, 5]], np.int32), 2: np.array([[0, 0, 5]], np.int32)}
    arrays = CaseArrays(nothing[..., None], nothing, nothing, voxels, np.zeros((0, 3), np.int32))
    for partial in (Slices(4, 2), Cubes(4, 1)):  # (0 - 4) + (0 - 4) + (4 - 4) = -8, and -7
        assert {value: found.tolist() for value, found in partial.kept(arrays).foreground.items()} == {1: [[0, 0, 4]]}


@pytest.mark.parametrize("part", [Slices(5), Cubes(5, 2)])
def test_the_loader_gives_the_same_crops_with_the_rest_ignored(store, part):
    """Where no crop is drawn for a label's sake nothing moves; where crops are, each holds a contoured voxel of it."""
    options = {"crop": (8, 8, 8), "batch": 4, "seed": 1, "labelled": True, "threads": 0}
    whole, partial = (next(CropLoader(store, store.names, partial=given, **options)) for given in (None, part))
    np.testing.assert_array_equal(whole["image"], partial["image"])
    assert ((partial["label"] == 255) | (partial["label"] == whole["label"])).all()
    assert 0 < (partial["label"] != 255).mean() < 0.4
    drawn = CropLoader(store, store.names, partial=part, foreground=1.0, **options)
    for _ in range(8):
        assert all((label == 1).any() for label in next(drawn)["label"])


def test_what_cannot_be_is_refused(store):
    with pytest.raises(ConfigError, match="expected 1 or more"):
        Slices(0)
    with pytest.raises(ConfigError, match="expected 0, 1 or 2"):
        Slices(2, 3)
    with pytest.raises(ConfigError, match="expected 1 or more"):
        Cubes(2, 0)
    with pytest.raises(ConfigError, match="needs labelled=True"):
        CropLoader(store, store.names, crop=(8, 8, 8), batch=1, seed=0, partial=Slices(2))
    assert repr(Slices(2)) == "Slices(every=2, axis=2)"  # in a loader's saved position
    assert open_store(store.path).names == store.names
