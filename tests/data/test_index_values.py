"""What the index says of voxels whose background is not looked at one by one: hashes, moments, and the header's fields."""

import nibabel as nib
import numpy as np
import pytest

from jaxseg.data.archive import voxel_hash
from jaxseg.data.archive.background import find_box
from jaxseg.data.archive.values import decoded_values, examine
from jaxseg.data.io import header
from jaxseg.data.io.decoded import Decoded, Header
from jaxseg.data.volume import Grid, Volume

RNG = np.random.default_rng(5)


def scan(array, affine=None, slope=1.0, inter=0.0):
    grid = Grid(array.shape[:3], np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    return Decoded(np.asfortranarray(array), Header(array.shape, array.dtype, 352, slope, inter, grid, 1, ()))


def island(value=-3, dtype=np.int16, shape=(40, 50, 30)):
    array = np.full(shape, value, dtype)
    array[7:29, 11:33, 5:26] = RNG.integers(-200, 300, (22, 22, 21))
    return array


def hash_of(array, **options):
    return examine(scan(array, **options), image=False).voxel_hash


def test_the_box_is_the_smallest_that_holds_all_that_differs_in_any_memory_order():
    for _ in range(40):
        shape = tuple(RNG.integers(1, 70, 3))
        array = np.zeros((*shape, 1), RNG.choice([np.uint8, np.float32, np.int32]))
        points = RNG.integers(0, shape, (RNG.integers(0, 4), 3))
        array[tuple(points.T)] = 7
        turned = np.asarray(array, order="F")[:: RNG.choice([-1, 1]), :, :: RNG.choice([-1, 1])].transpose(*RNG.permutation(3), 3)
        box, background = find_box(turned, lambda part: decoded_values(part, 1.0, 0.0), one_to_one=bool(RNG.integers(2)))
        where = np.argwhere(turned[..., 0] != background)
        expected = (where.min(0), where.max(0) + 1) if len(where) else (np.zeros(3), np.zeros(3))
        np.testing.assert_array_equal((box.low, box.high), expected)


def test_moments_are_those_of_all_voxels():
    for array in (island(), island(5).astype(np.float32) * 1.7, island(0).astype(np.float64) + 1e4, np.full((4, 5, 6), 3, np.uint8)):
        values = examine(scan(array, slope=0.5, inter=2.0), image=True).summary
        wide = array.astype(np.float64) * 0.5 + 2
        for name, expected in (("min", wide.min()), ("max", wide.max()), ("mean", wide.mean()), ("std", wide.std())):
            assert values[name] == pytest.approx(expected, rel=2e-6, abs=1e-6), name


def test_the_hash_depends_on_values_and_places_alone():
    array = island()
    plain = hash_of(array)
    flipped = np.diag([-1.0, 2.0, 3.0, 1.0])
    flipped[0, 3] = 39.0
    assert plain == hash_of(array.astype(np.float32)) == hash_of(array.astype(np.int32)) == hash_of(array[::-1], affine=flipped)
    assert plain == hash_of((array * 2).astype(np.int32), slope=0.5)
    assert plain == voxel_hash(Volume(array[..., None].astype(np.float32), np.diag([1.0, 2.0, 3.0, 1.0]), ("a",)))
    others = [array.copy() for _ in range(3)]
    others[0][39, 49, 29] += 1  # in the background
    others[1][10, 15, 10] += 1
    others[2][:] = np.roll(array, 1, axis=0)
    hashes = [plain, *map(hash_of, others), hash_of(array + np.int16(1)), hash_of(array.astype(np.float32) + np.float32(0.5))]
    assert len(set(hashes)) == 6


def test_stored_values_that_become_equal_intensities_hash_alike():
    array = np.full((20, 20, 20), 2**26, np.int32)
    array[5:9] += np.arange(4, dtype=np.int32)[:, None, None]  # below float32's resolution there
    array[12, 12, 12] = 5
    assert hash_of(array) == hash_of(array.astype(np.float32))


def test_non_finite_voxels_are_counted_in_and_out_of_the_background():
    array = island(0, np.float32)
    array[8, 12, 6], array[9, 12, 6] = np.nan, np.inf
    values = examine(scan(array), image=True)
    assert (values.nans, values.infinities) == (1, 1) and values.summary["mean"] is None
    array = np.full((10, 10, 10), np.inf, np.float32)
    array[5, 5, 5] = np.nan
    values = examine(scan(array), image=True)
    assert (values.nans, values.infinities) == (1, 999)
    array[:] = np.nan
    assert examine(scan(array), image=True).nans == 1000


def test_the_fields_of_a_header_lie_where_nibabel_has_them():
    for size, theirs in ((348, nib.Nifti1Header.template_dtype), (540, nib.Nifti2Header.template_dtype)):
        ours = header._SIZES[size]
        assert ours.itemsize == theirs.itemsize == size
        for name in ours.names:
            assert ours.fields[name][:2] == theirs.fields[name][:2], (size, name)
