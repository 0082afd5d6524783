"""Sizes of labelled structures, and the working grid that follows from them."""

import numpy as np
import pytest

from jaxseg.data.cases import find_cases
from jaxseg.data.io import save_volume
from jaxseg.data.preprocess import guess_recipe
from jaxseg.data.structure_size import structure_size
from jaxseg.data.volume import Volume


def archive(folder, *, extent: int, thickness: int, side: int = 96, cases: int = 3, specks: int = 0):
    """Cases of side³ voxels of 1 mm with a bar of `extent` x `thickness` x `thickness` mm as label 1, beside single voxels of it."""
    image = np.random.default_rng(0).normal(100, 10, (side, side, side, 1)).astype(np.float32)
    label = np.zeros((side, side, side, 1), np.uint8)
    label[2 : 2 + extent, 40 : 40 + thickness, 40 : 40 + thickness] = 1
    label[2 : 2 + 4 * specks : 4, 10, 10] = 1
    for number in range(cases):
        save_volume(Volume(image, np.eye(4), ("T1",)), folder / f"c{number}" / "T1.nii.gz")
        save_volume(Volume(label, np.eye(4), ("label",)), folder / f"c{number}" / "label.nii.gz")
    return find_cases(folder)


def test_a_size_is_that_of_the_largest_part_in_millimetres(tmp_path):
    size = structure_size(archive(tmp_path, extent=60, thickness=12, specks=9), {"label_1": 1})
    assert size is not None and (size.extent, size.thickness) == (60, 12)


def test_a_large_structure_is_measured_by_every_nth_voxel(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.data.structure_size._ENOUGH", 20_000)
    size = structure_size(archive(tmp_path, extent=90, thickness=60, cases=1), {"label_1": 1})
    assert size is not None and size.extent == pytest.approx(90, abs=3) and size.thickness == pytest.approx(60, abs=6)
    monkeypatch.setattr("jaxseg.data.structure_size._ENOUGH", 1)
    specks = np.zeros((96, 96, 96, 1), np.uint8)
    specks[5, 5, 5], specks[90, 90, 91] = 1, 1
    specks[4, 90, 5] = 1
    case = archive(tmp_path / "specks", extent=1, thickness=1, cases=1)
    save_volume(Volume(specks, np.eye(4), ("label",)), case.labelled[0].label)
    size = structure_size(case, {"label_1": 1})
    assert size is not None and size.extent == 1


def test_regions_are_measured_whole_and_the_thinnest_counts(tmp_path):
    cases = archive(tmp_path, extent=40, thickness=20)
    both = np.zeros((96, 96, 96, 1), np.uint8)
    both[2:42, 40:60, 40:60] = 1
    both[42:52, 40:60, 40:60] = 3
    for case in cases:
        save_volume(Volume(both, np.eye(4), ("label",)), case.label)
    size = structure_size(cases, {"whole": [1, 3], "core": 3, "never": 7})
    assert size is not None and (size.extent, size.thickness) == ((50 + 20) / 2, 10)


@pytest.mark.parametrize(
    ("extent", "thickness", "spacing"),
    [
        (24, 12, 1.5),  # as long as a crop of 16 voxels
        (48, 12, 2.0),  # still six voxels thick
        (90, 60, 96 / (4 * 16**3) ** (1 / 3)),  # still four crops in a scan
    ],
)
def test_a_grid_is_coarser_where_a_crop_is_shorter_than_the_structure(tmp_path, extent, thickness, spacing):
    cases = archive(tmp_path, extent=extent, thickness=thickness)
    assert guess_recipe(cases).spacing == (1.0, 1.0, 1.0)
    assert guess_recipe(cases, crop=16).spacing == pytest.approx((spacing,) * 3, abs=0.001)


def test_structures_that_fit_change_no_grid(tmp_path):
    cases = archive(tmp_path, extent=12, thickness=12)
    assert guess_recipe(cases, crop=16).spacing == (1.0, 1.0, 1.0)
    small = archive(tmp_path / "small", extent=20, thickness=20, side=24, cases=1)
    assert guess_recipe(small, crop=32).spacing == (1.0, 1.0, 1.0)


def test_empty_and_unreadable_labels_say_no_size(tmp_path):
    cases = archive(tmp_path, extent=1, thickness=1)
    for case in cases:
        save_volume(Volume(np.zeros((96, 96, 96, 1), np.uint8), np.eye(4), ("label",)), case.label)
    assert structure_size(cases, {"label_1": 1}) is None
    for case in cases:
        strange = np.zeros((96, 96, 96, 1), np.int32)
        strange[0, 0, 0] = 2_000_000_000
        save_volume(Volume(strange, np.eye(4), ("label",)), case.label)
    assert structure_size(cases, {"label_1": 2_000_000_000}) is None
    for case in cases:
        case.label.write_bytes(b"broken")
    assert structure_size(cases, {"label_1": 1}) is None and structure_size([], {"label_1": 1}) is None
