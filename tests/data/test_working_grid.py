"""Preparing in nnU-Net's order equals its steps written down with scipy; resampling by matrices equals scipy's form; memory and masks are told right."""

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data.intensity import body_mask, bounding_box
from jaxseg.data.memory import estimated_bytes
from jaxseg.data.preprocess import Case, Recipe, prepare_case
from jaxseg.data.separable import axis_weights, resample
from jaxseg.data.volume import Grid, Volume, resample_to_spacing, stack_channels, to_grid


def head(shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A stripped head, exactly 0 around it, and a label of two values inside."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    radius = np.sqrt(sum((axis / width) ** 2 for axis, width in zip(axes, (0.8, 0.9, 0.75), strict=True)))
    image = np.where(radius < 1, np.random.default_rng(seed).normal(500, 60, shape).clip(100), 0)
    return image.astype(np.float32), (2 - np.digitize(radius, (0.3, 0.55))).astype(np.uint8)


def as_nnunet(image: np.ndarray, spacing, new) -> np.ndarray:
    """Its DefaultPreprocessor for one channel: crop to nonzero, z-score within, skimage's resize (order 3, edge, clipped), slice by slice if thick."""
    mask = ndimage.binary_fill_holes(image != 0)
    box = ndimage.find_objects(mask.astype(int))[0]
    image, mask = image[box].astype(np.float64), mask[box]
    image[mask] = (image[mask] - image[mask].mean()) / image[mask].std()
    shape = [round(old / target * n) for old, target, n in zip(spacing, new, image.shape, strict=True)]

    def resized(array, shape):
        done = ndimage.zoom(array, np.divide(shape, array.shape), order=3, mode="nearest", grid_mode=True)
        return np.clip(done, array.min(), array.max())

    if max(spacing) / min(spacing) <= 3:
        return resized(image, shape)
    planes = np.stack([resized(plane, shape[:2]) for plane in np.moveaxis(image, 2, 0)])
    rows = (np.arange(shape[2]) + 0.5) * len(planes) / shape[2] - 0.5
    return np.moveaxis(planes[np.clip(np.floor(rows + 0.5), 0, len(planes) - 1).astype(int)], 0, 2)


@pytest.mark.parametrize(
    ("shape", "spacing", "new"),
    [
        ((31, 36, 27), (1.0, 1.0, 1.1), (1.23, 1.23, 1.23)),
        ((22, 25, 30), (1.3, 1.0, 1.0), (0.9, 1.0, 0.7)),
        ((34, 30, 11), (0.7, 0.7, 5.0), (0.83, 0.9, 4.1)),
    ],
)
def test_nnunets_order_gives_its_numbers(tmp_path, shape, spacing, new):
    nib = pytest.importorskip("nibabel")
    affine, names = np.diag([*spacing, 1.0]), ("a", "b")
    images = [head(shape, seed)[0] for seed in range(2)]
    for name, array in zip((*names, "seg"), (*images, head(shape, 0)[1]), strict=True):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii")
    recipe = Recipe(names, new, ("zscore", "zscore"), labels={"shell": 1, "core": 2}, resampling="nnunet")
    case = Case("c", {name: tmp_path / f"{name}.nii" for name in names}, tmp_path / "seg.nii")
    done = prepare_case(case, recipe)
    for channel, image in enumerate(images):
        expected = as_nnunet(image, spacing, new)
        assert done.image[..., channel].shape == expected.shape
        np.testing.assert_allclose(done.image[..., channel], expected, atol=1e-3 * np.ptp(expected))
    assert done.label is not None and set(np.unique(done.label)) == {0, 1, 2}
    body = ndimage.find_objects((images[0] != 0).astype(int))[0]
    extent = [(part.stop - part.start) * size for part, size in zip(body, spacing, strict=True)]
    assert np.multiply(done.grid.spacing, done.grid.shape) == pytest.approx(extent)
    for name, before in done.info["label_ml"].items():
        assert done.info["label_ml_prepared"][name] == pytest.approx(before, rel=0.25)  # a slice more or less


@pytest.mark.parametrize("order", [1, 3])
def test_matrices_along_the_axes_are_scipys_interpolation_in_any_memory_order(order):
    plane = np.random.default_rng(0).normal(size=(61, 33, 50)).astype(np.float32)
    lines = [(61, 80, 0.77, -0.2), (33, 20, 1.7, 0.4), (50, 50, 1.0, 0.0)]
    weights = [axis_weights(*line, order) for line in lines]
    step, start = ([line[place] for line in lines] for place in (2, 3))
    expected = ndimage.affine_transform(plane.astype(np.float64), np.array(step), start, (80, 20, 50), order=order, mode="nearest")
    for array in (
        plane,
        np.asfortranarray(plane),
        np.ascontiguousarray(plane.transpose(1, 2, 0)).transpose(2, 0, 1),
        plane[:, ::-1][:, ::-1],
    ):
        np.testing.assert_allclose(resample(array, weights), expected, atol=1e-5)
    out = np.zeros((80, 20, 50, 2), np.float32)
    resample(plane, weights, out[..., 1], change=lambda part, box: 2 * part)
    np.testing.assert_allclose(out[..., 1], 2 * expected, atol=2e-5)
    assert not out[..., 0].any()


def test_a_constant_background_stays_exactly_that():
    array = np.full((20, 22, 18, 1), -1024.0, np.float32)
    array[8:12, 8:12, 8:12] = np.random.default_rng(1).normal(40, 9, (4, 4, 4, 1))
    done = resample_to_spacing(Volume(array, np.eye(4), ("ct",)), (1.37, 1.21, 1.9)).array
    assert done.min() == np.float32(-1024) and np.mean(done == done.min()) > 0.8


def test_stacked_channels_are_blocks_of_memory_and_keep_their_values():
    rng = np.random.default_rng(2)
    first, second = (
        Volume(rng.normal(size=(9, 8, 7, 1)).astype(np.float32), affine, (name,))
        for name, affine in (("a", np.eye(4)), ("b", np.diag([1, 1, 2, 1.0])))
    )
    stacked = stack_channels([first, second])
    np.testing.assert_array_equal(stacked.array[..., 0], first.array[..., 0])
    np.testing.assert_array_equal(stacked.array[..., 1], to_grid(second, Grid(first.shape, np.eye(4))).array[..., 0])
    assert stacked.array[..., 1].flags.f_contiguous and stack_channels([first]) is first


def test_the_body_is_found_without_changing_what_it_is_found_from():
    mask = np.zeros((20, 18, 12), bool)
    mask[4:15, 3:14, :] = True
    mask[7:9, 6:8, :] = False  # open at both ends, as an airway: filled slice by slice
    mask[0, 0, 0] = True  # a speck
    before = mask.copy()
    body = body_mask([mask])
    np.testing.assert_array_equal(mask, before)
    assert body.sum() == 11 * 11 * 12 and not body[0, 0, 0]
    for array in (mask[1:], np.asfortranarray(mask[1:]), mask[1:].transpose(2, 0, 1)):
        box = bounding_box(array)
        assert array[box].sum() == array.sum() and all(array[box].any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))


def test_more_channels_and_finer_grids_are_known_to_take_more_memory(tmp_path):
    nib = pytest.importorskip("nibabel")
    for name in "ab":
        nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), np.int16), np.eye(4)), tmp_path / f"{name}.nii")
    one = Case("c", {"a": tmp_path / "a.nii"})
    two = Case("c", {name: tmp_path / f"{name}.nii" for name in "ab"})
    coarse, fine = (Recipe(("a", "b"), (size,) * 3, ("zscore",) * 2) for size in (1.0, 0.5))
    assert estimated_bytes(one, coarse) < estimated_bytes(two, coarse) < estimated_bytes(two, fine)
    # At the least what must be there at once: the scan and what it becomes.
    assert estimated_bytes(two, fine) - estimated_bytes(two, coarse) >= 2 * 4 * (80**3 - 40**3)
