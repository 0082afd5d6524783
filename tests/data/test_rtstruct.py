"""RTSTRUCT in: contours drawn on a grid equal closed forms, with holes; real structure sets equal the publisher's masks."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from jaxseg.data.io import find_scans, load_contours, load_label, load_volume
from jaxseg.data.io.rtstruct import draw, fill, read_contours
from jaxseg.data.volume import Grid, Volume, to_grid
from jaxseg.errors import GeometryError, InputError
from tests.dicom_files import save, stack, structures, to_bytes

AFFINE = np.array([[-0.75, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
GRID = Grid((40, 36, 6), AFFINE)


def circle(radius, z, centre=(14.0, 9.0), count=90):
    """A circle in LPS mm about `centre` (mm from the first voxel), in slice z of GRID."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return np.stack([x - 10, y + 20, np.full(count, 30 + 2 * z)], -1)


@pytest.fixture
def write(tmp_path):
    def write(made):
        path = tmp_path / "rs.dcm"
        path.write_bytes(to_bytes(made))
        return path

    return write


def test_a_ring_is_a_disc_with_a_hole_in_any_axis_order(write):
    contours = {"ring": [circle(8, 2), circle(4, 2), circle(6, 3)], "empty": []}
    path = write(structures(contours))
    x, y = 0.75 * np.arange(40)[:, None] - 14, 0.5 * np.arange(36) - 9
    distance = np.hypot(x, y)
    volume = load_contours(path, GRID)
    assert volume.channels == ("ring",)
    for z, expected in ((2, (distance < 8) & (distance > 4)), (3, distance < 6)):
        differ = volume.array[:, :, z, 0] != expected
        assert differ.sum() <= 4 and np.all(np.abs(distance[differ] - np.array([[4], [6], [8]])).min(0) < 0.02)  # a polygon is no circle
    assert not volume.array[:, :, [0, 1, 4, 5]].any()
    turned = Volume(volume.array.transpose(2, 0, 1, 3)[::-1], AFFINE @ np.eye(4)[:, [2, 0, 1, 3]] @ _flip(6), ("ring",))
    np.testing.assert_array_equal(load_contours(path, turned).array, turned.array)


def _flip(size):
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = size - 1
    return flip


def test_filling_agrees_with_matplotlib_for_a_random_polygon_that_crosses_itself():
    rng = np.random.default_rng(0)
    polygon = rng.uniform(-5, 35, (9, 2))
    inside = np.zeros((30, 33), bool)
    for edge in range(1, 8):  # a fan of triangles, combined by exclusive or, is the polygon by the even-odd rule
        triangle = Outline(polygon[[0, edge, edge + 1]])
        inside ^= triangle.contains_points(np.indices((30, 33)).reshape(2, -1).T).reshape(30, 33)
    np.testing.assert_array_equal(fill([polygon], (30, 33)), inside)


def test_contours_between_slices_outside_and_of_other_kinds_are_counted(write):
    between = circle(6, 2.5)
    found = read_contours(write(structures({"a": [circle(6, 1), between, circle(6, 9), circle(6, 1)[:2]]})))
    drawn = draw(found[0], GRID)
    assert drawn.left_out == {"between slices": 1, "outside the grid": 1, "of fewer than three points": 1}
    assert drawn.mask[..., 1].any() and drawn.mask.any((0, 1)).sum() == 1
    points = read_contours(write(structures({"a": [circle(6, 1)]}, kind="POINT")))
    assert draw(points[0], GRID).left_out == {"of kind POINT": 1} and not draw(points[0], GRID).mask.any()
    with pytest.raises(GeometryError, match="none of its 1 contours lies in a slice"):
        draw(read_contours(write(structures({"a": [between]})))[0], GRID)


def test_faults_are_refused(write, tmp_path):
    broken = structures({"a": [circle(6, 1)]})
    contour = broken.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-1]
    with pytest.raises(InputError, match="expected three a point"):
        read_contours(write(broken))
    path = write(structures({"a": [circle(6, 1)]}))
    with pytest.raises(InputError, match="no contours called b; there are a"):
        load_contours(path, GRID, names=["b"])
    with pytest.raises(InputError, match="not a DICOM structure set"):
        read_contours(save(tmp_path / "scan", stack(1)) / "s0.dcm")
    assert [(ref.format, "draw them" in ref.reason) for ref in find_scans(path)] == [("DICOM RTSTRUCT", True)]


@pytest.mark.realdata
@pytest.mark.parametrize(("modality", "least"), [("CT", 0.99), ("MR_T1", 0.99)])
def test_a_real_structure_set_equals_the_publishers_mask(real_scans, modality, least):
    folder = real_scans / "dicom" / "sarcoma_STS_002" / modality
    mask = load_label(real_scans / "sarcoma" / "STS_002" / "T1_tumour.nii.gz")
    ours = to_grid(load_contours(folder / "mask" / "RS.dcm", load_volume(folder / "image")), mask.grid, labels=True)
    both = np.count_nonzero(ours.array & mask.array)
    assert 2 * both / (np.count_nonzero(ours.array) + np.count_nonzero(mask.array)) >= least
