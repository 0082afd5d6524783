"""nnU-Net's resampling: equal to its form in scipy (what skimage's `resize` calls), slice by slice where it says so, and exact where it must be."""

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data.spline import coarse_axis, resample_by_splines, sample_by_splines
from jaxseg.data.volume import Grid, Volume, to_grid


def stretched(volume: Volume, shape: tuple[int, int, int]) -> Grid:
    """nnU-Net's grid: the old field of view cut into `shape` voxels exactly."""
    scale = np.array(volume.shape) / shape
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * scale
    affine[:3, 3] += volume.affine[:3, :3] @ ((scale - 1) / 2)
    return Grid(shape, affine)


def volume(shape, spacing, seed=0, dtype=np.float32) -> Volume:
    rng = np.random.default_rng(seed)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 5, 30)
    array = rng.normal(100, 40, shape) if dtype is np.float32 else ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.05
    return Volume(array.astype(dtype)[..., None], affine, ("a",))


def resized(array: np.ndarray, shape, order=3) -> np.ndarray:
    """skimage.transform.resize(order, mode="edge", anti_aliasing=False, clip=True) in scipy's terms."""
    zoom = np.divide(shape, array.shape)
    done = ndimage.zoom(array.astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)
    return np.clip(done, array.min(), array.max())


@pytest.mark.parametrize("shape", [(31, 16, 24), (12, 40, 17), (20, 24, 30)])
def test_isotropic_scans_equal_a_cubic_zoom(shape):
    scan = volume((20, 24, 18), (1.0, 1.2, 1.5))
    found = sample_by_splines(scan, stretched(scan, shape)).array[..., 0]
    np.testing.assert_allclose(found, resized(scan.array[..., 0], shape), atol=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_resampled_in_plane_and_taken_as_they_are_along_the_coarse_axis(axis):
    old, new = np.roll([8, 22, 20], axis), tuple(int(n) for n in np.roll([13, 30, 17], axis))
    scan = volume(tuple(old), tuple(np.roll([5.0, 1.0, 1.0], axis)))
    slices = np.moveaxis(scan.array[..., 0], axis, 0)
    flat = tuple(n for i, n in enumerate(new) if i != axis)
    planes = np.stack([resized(plane, flat) for plane in slices])
    rows = (np.arange(new[axis]) + 0.5) * len(planes) / new[axis] - 0.5  # nnU-Net's map_coordinates of order 0
    expected = np.moveaxis(planes[np.clip(np.floor(rows + 0.5), 0, len(planes) - 1).astype(int)], 0, axis)
    np.testing.assert_allclose(sample_by_splines(scan, stretched(scan, new)).array[..., 0], expected, atol=2e-3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.4), (1.0, 1.0, 5.0)])
def test_labels_are_one_hot_linear_as_nnunets(spacing):
    label = volume((20, 22, 14), spacing, dtype=np.uint8)
    shape = (27, 30, 14)
    found = sample_by_splines(label, stretched(label, shape), labels=True).array[..., 0]
    share = resized((label.array[..., 0] == 1).astype(float), shape, order=1)
    sure = np.abs(share - 0.5) > 1e-3  # nnU-Net gives ties to the larger class, this to the nearest voxel
    assert sure.mean() > 0.95 and found.dtype == np.uint8
    np.testing.assert_array_equal(found[sure], (share >= 0.5)[sure])


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1, 1, 5), (1, 1, 1), 2),
        ((1, 1, 1), (4, 1, 1), 0),
        ((1, 1, 2.9), (1, 1, 2.9), None),
        ((5, 1, 5), (1, 1, 1), None),
        ((0.24, 1.25, 1.25), (1, 1, 1), None),
        ((1, 3.5, 1), (4, 1, 1), 1),
    ],
)
def test_the_rule_for_a_coarse_axis(old, new, axis):
    assert coarse_axis(old, new) == axis


def test_a_cubic_is_reproduced_in_the_middle_and_positions_are_the_worlds():
    affine = np.diag([1.5, 2.0, 1.8, 1.0])
    index = np.stack(np.meshgrid(*map(np.arange, (30, 30, 30)), indexing="ij"), -1)

    def cubic(places):
        x, y, z = np.moveaxis(places / 30, -1, 0)
        return 1 + x**3 - 2 * y**2 * x + z**3

    scan = Volume(cubic(index @ affine[:3, :3])[..., None].astype(np.float32), affine, ("a",))
    found = resample_by_splines(scan, (1.0, 1.3, 1.1))
    grid = found.grid
    expected = cubic(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3])
    # Splines flatten at the border (nnU-Net's too); the disturbance falls to a quarter with each voxel.
    inner = (slice(14, -14),) * 3
    np.testing.assert_allclose(found.array[inner][..., 0], expected[inner], atol=2e-4)
    assert to_grid(found, scan.grid).shape == scan.shape and grid.spacing == pytest.approx((1.0, 1.3, 1.1))
