"""Geometry: reorientation is exact, resampling keeps world positions, labels keep their volume."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from scipy.spatial.transform import Rotation

from jaxseg.data.volume import Grid, Volume, reorient_like, resample_to_spacing, spacing_grid, stack_channels, to_grid, to_ras
from jaxseg.errors import GeometryError

CODES = ["".join(flip) for order in itertools.permutations(("RL", "AP", "SI")) for flip in itertools.product(*order)]


def affine_for(codes="RAS", spacing=(1.0, 2.0, 3.0), shape=(12, 14, 16), origin=(-5.0, 7.0, 11.0), turn=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine @ np.linalg.inv(inv_ornt_aff(axcodes2ornt(tuple(codes)), shape)) if codes != "RAS" else affine


def world(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ramp(grid, slope=(0.3, -0.7, 0.2)):
    return Volume((world(grid) @ slope + 4).astype(np.float32)[..., None], grid.affine, ("ramp",))


def ball(grid, centre, radius):
    return (np.linalg.norm(world(grid) - centre, axis=-1) < radius).astype(np.uint8)


def centre_of_mass(volume):
    weight = volume.array[..., 0].astype(float)
    return (world(volume.grid) * weight[..., None]).sum((0, 1, 2)) / weight.sum()


@pytest.mark.parametrize("codes", CODES)
def test_ras_agrees_with_nibabel_in_all_48_orientations(codes):
    affine = affine_for(codes, turn=(4, -7, 11))
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    ours = to_ras(Volume(array[..., None], affine, ("a",)))
    theirs = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(ours.array[..., 0], np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)
    back = reorient_like(ours, affine)
    np.testing.assert_array_equal(back.array[..., 0], array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)


@pytest.mark.parametrize(("codes", "turn"), [("RAS", (0, 0, 0)), ("PSR", (0, 0, 0)), ("LPI", (0, 0, 0)), ("SLA", (10, -20, 35))])
def test_a_linear_ramp_in_mm_is_reproduced_on_any_grid(codes, turn):
    source = ramp(Grid((30, 28, 26), affine_for("LAS", (1.0, 1.2, 1.5), origin=(-20, -20, -20))))
    centre = world(source.grid).mean((0, 1, 2))
    affine = affine_for(codes, (0.7, 0.9, 0.8), (10, 9, 8), (0, 0, 0), turn)
    affine[:3, 3] += centre - (affine @ [4.5, 4, 3.5, 1])[:3]
    target = Grid((10, 9, 8), affine)
    np.testing.assert_allclose(to_grid(source, target).array, ramp(target).array, atol=2e-5)


def test_a_ramp_survives_antialiasing_away_from_the_border():
    source = ramp(Grid((40, 40, 40), affine_for(spacing=(1, 1, 1))))
    coarse = resample_to_spacing(source, (2.3, 2.3, 2.3))
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(coarse.array[inner], ramp(coarse.grid).array[inner], atol=1e-4)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.3, 1.0, 3.1), (0.7, 1.1, 0.9)])
@pytest.mark.parametrize("labels", [False, True])
def test_a_blob_keeps_its_place_and_volume(spacing, labels):
    grid = Grid((48, 48, 40), affine_for("LPS", (1.0, 1.0, 1.2)))
    centre = world(grid).mean((0, 1, 2)) + [1.3, -2.1, 0.4]
    blob = Volume(ball(grid, centre, 12.0)[..., None], grid.affine, ("b",))
    blob = to_ras(blob if labels else Volume(blob.array.astype(np.float32), blob.affine, ("b",)))
    moved = resample_to_spacing(blob, spacing, labels=labels)
    np.testing.assert_allclose(moved.spacing, spacing, rtol=1e-9)
    assert np.abs((centre_of_mass(moved) - centre_of_mass(blob)) / moved.spacing).max() < 0.1
    before, after = blob.array.sum() * blob.grid.voxel_volume_ml, moved.array.sum() * moved.grid.voxel_volume_ml
    assert after == pytest.approx(before, rel=0.03)


def test_halving_a_grid_does_not_shrink_thin_labels():
    # A slab of odd thickness at every phase: half-and-half voxels must not all go to background.
    plane = np.zeros((64, 8, 8), np.uint8)
    for start in (3, 12, 22, 33, 45):
        plane[start : start + 3] = 1
    half = resample_to_spacing(Volume(plane[..., None], np.eye(4), ("l",)), (2, 2, 2), labels=True)
    assert float(half.array.sum()) * 8 == pytest.approx(float(plane.sum()), rel=0.15)


def test_labels_stay_labels_and_agree_inside_and_out():
    grid = Grid((20, 20, 20), np.eye(4))
    label = np.zeros(grid.shape, np.uint8)
    label[5:15, 5:15, 5:15], label[8:12, 8:12, 8:12] = 2, 7
    fine = to_grid(Volume(label[..., None], grid.affine, ("l",)), spacing_grid(grid, (0.5, 0.5, 0.5)), labels=True)
    assert fine.array.dtype == np.uint8 and set(np.unique(fine.array)) == {0, 2, 7}
    wrong = fine.array[..., 0] != label.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert wrong.sum() == 16  # linear interpolation rounds off the eight corners of either cube (0.75³ < 1/2), and nothing else


def test_a_label_at_the_border_reaches_half_a_voxel_out_and_no_further():
    label = Volume(np.ones((4, 4, 4, 1), np.uint8), np.eye(4), ("l",))
    wide = np.eye(4)
    wide[:3, 3] = -2.0
    out = to_grid(label, Grid((32, 32, 32), np.diag([0.25, 0.25, 0.25, 1]) + wide - np.eye(4)), labels=True)
    where = np.flatnonzero(out.array[:, 16, 16, 0]) * 0.25 - 2
    assert where.min() == -0.5 and where.max() == 3.5


def test_outside_the_field_of_view_is_the_channel_minimum_or_fill():
    source = Volume(np.full((4, 4, 4, 2), [3.0, -5.0], np.float32), np.eye(4), ("a", "b"))
    far = np.eye(4)
    far[0, 3] = 3.0
    out = to_grid(source, Grid((4, 4, 4), far), fill=9.0)
    assert out.array[0, 0, 0].tolist() == [3.0, -5.0] and (out.array[1:] == 9).all()
    assert to_grid(source, Grid((4, 4, 4), far)).array[3, 0, 0].tolist() == [3.0, -5.0]


@pytest.mark.parametrize(("old", "new"), [((1, 1, 5), (1, 1, 1)), ((0.98, 0.98, 3.27), (1.5, 1.5, 3.0)), ((3, 3, 3), (2, 2, 2))])
def test_spacing_grid_keeps_the_field_of_view(old, new):
    grid = Grid((61, 47, 20), affine_for("LAI", old, turn=(3, 5, 7)))
    coarse = spacing_grid(grid, new)
    np.testing.assert_allclose(coarse.spacing, new)
    assert coarse.shape == tuple(int(np.floor(n * a / b + 0.5 + 1e-6)) for n, a, b in zip(grid.shape, old, new))
    np.testing.assert_allclose(coarse.corners().mean(0), grid.corners().mean(0), atol=1e-6)
    assert (np.abs(np.multiply(coarse.shape, new) - np.multiply(grid.shape, old)) <= np.divide(new, 2) + 1e-3).all()


def test_antialiasing_removes_what_the_coarse_grid_cannot_hold():
    noise = np.random.default_rng(0).normal(size=(60, 16, 16, 1)).astype(np.float32)
    volume = Volume(noise, np.eye(4), ("s",))
    smooth, raw = (resample_to_spacing(volume, (3, 1, 1), antialias=on).array.std() for on in (True, False))
    # Variance (f² - 1) / (8 ln 2) at f = 3 leaves 1 / (2 σ √π) of the power of white noise.
    sigma = np.sqrt(8 / (8 * np.log(2)))
    assert smooth == pytest.approx(np.sqrt(1 / (2 * sigma * np.sqrt(np.pi))), rel=0.08) and raw > 0.95


@pytest.mark.parametrize("axis", "xyz")
def test_axes_at_45_degrees_go_the_same_way_whatever_the_last_digit(axis):
    """A file's affine has rounding of its own; a label on the same grid must come out the same, and go back into the scan's own order."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(4, 5, 6, 1)).astype(np.float32)
    for degrees, flips in itertools.product((45, 135, -45, -135), itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() @ np.diag(np.multiply(flips, (1.0, 0.7, 2.5)))
        volumes = [to_ras(Volume(array, affine + 1e-8 * rng.normal(size=(4, 4)) * ([1] * 3 + [0]), ("a",))) for _ in range(4)]
        for volume in volumes:
            assert volume.grid.same_as(volumes[0].grid) and to_ras(volume).grid.same_as(volume.grid)
            np.testing.assert_array_equal(volume.array, volumes[0].array)
            np.testing.assert_array_equal(reorient_like(volume, affine).array, array)


def test_several_turns_by_45_degrees_can_be_put_back():
    rng = np.random.default_rng(1)
    array = rng.normal(size=(4, 5, 6, 1)).astype(np.float32)
    for _ in range(60):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", rng.choice((0, 45, 90, -45), 3), degrees=True).as_matrix() @ np.diag((1.0, 0.7, 2.5))
        back = reorient_like(to_ras(Volume(array, affine, ("a",))), affine)
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_allclose(back.affine, affine, atol=1e-9)


def test_channels_are_stacked_by_world_position_not_by_index():
    one, two = (
        Grid((30, 30, 20), affine_for("RAS", (1, 1, 2), origin=(0, 0, 0))),
        Grid((20, 40, 30), affine_for("PSR", (1.5, 2, 1), (20, 40, 30), (-10, -3, -8))),
    )
    centre = np.array([14.0, 15.0, 18.0])
    blobs = [
        Volume(ball(grid, centre, 7.0).astype(np.float32)[..., None], grid.affine, (name,)) for grid, name in ((one, "T1"), (two, "PET"))
    ]
    stacked = stack_channels(blobs)
    assert stacked.channels == ("T1", "PET") and stacked.grid.same_as(one)
    a, b = stacked.array[..., 0] > 0.5, stacked.array[..., 1] > 0.5
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
    assert stack_channels(blobs, on=1).grid.same_as(two)


def test_whole_numbers_become_float32_whatever_the_grid():
    values, half = np.arange(-3, 3, dtype=np.int16)[:, None, None, None] * np.ones((1, 4, 4, 1), np.int16), np.eye(4)
    half[0, 3] = 0.5
    one, other = Volume(np.zeros_like(values), np.eye(4), ("a",)), Volume(values, half, ("b",))
    np.testing.assert_array_equal(stack_channels([one, other]).array[:, 0, 0, 1], [-3, -2.5, -1.5, -0.5, 0.5, 1.5])
    for moved in (to_grid(one, one.grid), to_grid(one, other.grid), resample_to_spacing(one, (1, 1, 1)), stack_channels([one, other])):
        assert moved.array.dtype == np.float32
    assert to_grid(one, one.grid, labels=True).array.dtype == np.int16


def test_same_as_measures_corners_in_voxels():
    grid = Grid((10, 10, 10), affine_for())
    moved = affine_for()
    moved[0, 3] += 0.05
    assert grid.same_as(Grid(grid.shape, moved)) and not grid.same_as(Grid(grid.shape, moved), tol=0.01)
    assert grid.offset_from(Grid((10, 10, 11), affine_for())) == float("inf")
    assert "10×10×10" in grid.describe() and grid.orientation == "RAS"


def test_a_volume_refuses_what_is_not_one():
    with pytest.raises(GeometryError, match="one name a channel"):
        Volume(np.zeros((3, 3, 3)), np.eye(4), ("a",))
    with pytest.raises(GeometryError, match="invertible"):
        Volume(np.zeros((3, 3, 3, 1)), np.zeros((4, 4)), ("a",))
    with pytest.raises(GeometryError, match="three positive"):
        spacing_grid(Grid((3, 3, 3), np.eye(4)), (1, 0, 1))
