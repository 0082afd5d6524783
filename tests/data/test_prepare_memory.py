"""Preparing a case takes less than three times the memory of its scan (a bar of the project), whatever the recipe: counted by numpy's allocations.

A scan counts as its voxels in float32. `python -m bench.prepare_memory` measures whole processes at real sizes.
"""

import dataclasses
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from jaxseg.data.cache import sample_foreground
from jaxseg.data.cases import Case
from jaxseg.data.connected import fill_holes, keep_large_parts
from jaxseg.data.percentiles import percentiles
from jaxseg.data.preprocess import Recipe, prepare_case
from jaxseg.data.staging import Job, to_arrays

SHAPE = (176, 184, 192)
FLOAT32 = 4 * int(np.prod(SHAPE))


def put_mask(folder, spacing):
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    inside = sum(axis**2 for axis in axes) < 0.5
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), np.diag([-spacing, -spacing, spacing, 1.0])), folder / "brainmask.nii.gz")
    return folder / "brainmask.nii.gz"


def put_case(folder, dtype, *, slope=1.0, labelled=False, spacing=1.0):
    """A ball of noise that reaches the borders, in noisy air, stored from right to left as many scanners do."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE)]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    rng = np.random.default_rng(0)
    image = np.where(radius < 1, rng.normal(120, 12, SHAPE), np.abs(rng.normal(0, 3, SHAPE)))
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    scan = nib.Nifti1Image(np.clip(np.round(image), 0, 250).astype(dtype), affine)
    scan.header.set_slope_inter(slope, 0)
    nib.save(scan, folder / "T1.nii.gz")
    if labelled:
        nib.save(nib.Nifti1Image((radius < 0.8).astype(np.uint8) + (radius < 0.5), affine), folder / "label.nii.gz")
    return Case("case", {"T1": folder / "T1.nii.gz"}, folder / "label.nii.gz" if labelled else None)


def peak(run):
    tracemalloc.start()
    try:
        result = run()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "dtype, rule, spacing, resampling, labelled, slope",
    [
        ("int16", "zscore", (1, 1, 1), "linear", False, 1.0),
        ("int16", "zscore", (1, 1, 1), "linear", True, 1.0),
        ("float32", "percentile", (1, 1, 1), "linear", False, 1.0),
        ("int16", "zscore", (1, 1, 1), "linear", False, 0.25),
        ("uint8", "percentile", (0.97, 0.97, 0.97), "linear", True, 1.0),
        ("int16", "zscore", (1.5, 1.5, 1.5), "linear", True, 1.0),
        ("int16", "zscore", (1, 1, 1), "nnunet", False, 1.0),
        ("int16", "zscore", (1.1, 1.1, 1.1), "nnunet", True, 1.0),
    ],
)
def test_preparing_takes_less_than_three_times_the_scan(tmp_path, dtype, rule, spacing, resampling, labelled, slope):
    case = put_case(tmp_path, dtype, slope=slope, labelled=labelled)
    labels = {"shell": 1, "core": 2} if labelled else {}
    recipe = Recipe(("T1",), spacing, (rule,), labels=labels, resampling=resampling)
    most, prepared = peak(lambda: prepare_case(case, recipe))
    scan = max(FLOAT32, prepared.image.nbytes)
    assert most < 3 * scan, most / scan
    most, arrays = peak(lambda: to_arrays(prepared, Job(case, recipe, tmp_path / "staged.npz", "", "")))
    assert most < scan, most / scan  # beside the prepared image
    most, _ = peak(lambda: sample_foreground(arrays))
    assert most < 0.5 * scan, most / scan


@pytest.mark.parametrize("strip", ["mask", "surface"])
def test_stripping_takes_less_than_three_times_the_scan(tmp_path, strip):
    case = put_case(tmp_path, "int16", spacing=0.85)
    case = dataclasses.replace(case, mask=put_mask(tmp_path, 0.85))
    most, _ = peak(lambda: prepare_case(case, Recipe(("T1",), (0.85, 0.85, 0.85), ("zscore",), strip=strip)))
    assert most < 3 * FLOAT32, most / FLOAT32


def test_float64_counts_as_it_is_stored(tmp_path):
    case = put_case(tmp_path, "float64", slope=0.5)
    most, _ = peak(lambda: prepare_case(case, Recipe(("T1",), (1, 1, 1), ("zscore",))))
    assert most < 2 * (2 * FLOAT32), most / FLOAT32


def test_percentiles_of_parts_are_numpys_to_the_bit():
    rng = np.random.default_rng(3)
    for values in (
        rng.normal(size=5000),
        rng.integers(-4, 5, 999),
        -np.abs(rng.normal(size=77)) * 1e-30,
        np.zeros(3),
        rng.normal(size=1) * 1e9,
    ):
        values = values.astype(np.float32)
        parts = np.array_split(values, 7)
        for shares in ((0.5, 99.5), (0, 1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99, 100)):
            found = percentiles(lambda parts=parts: iter(parts), shares)
            np.testing.assert_array_equal(found, np.percentile(values, shares))
    with pytest.raises(ValueError, match="no values"):
        percentiles(lambda: iter([np.zeros(0, np.float32)]), (50,))


def test_parts_are_the_same_in_slabs_and_as_a_whole(monkeypatch):
    """A comb whose teeth meet in the last slab only is one part; specks are none of its size."""
    mask = np.zeros((9, 7, 40), bool)
    mask[::2, 3, :] = True
    mask[:, 3, -1] = True
    mask[1, 0, 5] = mask[7, 6, 20] = True
    expected = mask.copy()
    expected[1, 0, 5] = expected[7, 6, 20] = False
    for slab in (1, 200, 1 << 20):
        monkeypatch.setattr("jaxseg.data.connected._SLAB", slab)
        for order in "CF":
            found = mask.copy(order=order)
            keep_large_parts(found)
            np.testing.assert_array_equal(found, expected)


def test_holes_are_filled_slice_by_slice_and_open_ones_stay():
    mask = np.ones((8, 8, 3), bool)
    mask[3:5, 3:5, :] = False  # a tube: a hole of each slice
    mask[0:2, 6, 1] = False  # open at the border of its slice
    expected = np.ones((8, 8, 3), bool)
    expected[0:2, 6, 1] = False
    fill_holes(mask)
    np.testing.assert_array_equal(mask, expected)
