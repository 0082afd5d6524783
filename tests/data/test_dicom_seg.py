"""DICOM SEG in: masks land on the slices that frames name, bit for bit; real objects equal the NRRD that they must decode to."""

import numpy as np
import pytest

from jaxseg.data.io import find_scans, load_label, load_segmentation, load_volume
from jaxseg.data.io.dicom_seg import read_segmentation
from jaxseg.data.volume import to_ras
from jaxseg.errors import InputError
from tests.dicom_files import save, segmentation, stack, to_bytes

LABELS = {1: "liver", 2: "spleen"}
PLACES = [(-10.0, 20.0, 30.0 + 2 * z) for z in range(5)]


def planes(count, top=2):
    """Random planes of 5×7 pixels: 35 bits, so that frames begin in the middle of a byte."""
    return np.random.default_rng(0).integers(0, top, (count, 5, 7))


@pytest.fixture
def write(tmp_path):
    def write(made, name="seg.dcm"):
        path = tmp_path / name
        path.write_bytes(to_bytes(made))
        return path

    return write


def test_binary_frames_in_any_order_with_empty_slices_left_out(write):
    found, slices = planes(3), [3, 0, 1]
    seg = read_segmentation(write(segmentation([PLACES[z] for z in slices], found, [2, 1, 2], labels=LABELS)))
    assert seg.grid.shape == (7, 5, 4) and [(s.number, s.label) for s in seg.segments] == list(LABELS.items())
    for number in LABELS:
        expected = np.zeros((4, 5, 7), bool)
        for plane, z, owner in zip(found, slices, (2, 1, 2), strict=True):
            expected[z] |= (owner == number) & (plane == 1)
        np.testing.assert_array_equal(seg.mask(number), expected.transpose(2, 1, 0))


def test_overlapping_segments_have_channels_of_their_own_and_no_label_map(write):
    path = write(segmentation([PLACES[0], PLACES[0], PLACES[1]], np.ones((3, 5, 7), int), [1, 2, 1], labels=LABELS))
    volume = load_segmentation(path)
    assert volume.channels == ("liver", "spleen") and volume.array.sum((0, 1, 2)).tolist() == [70, 35]
    with pytest.raises(InputError, match="35 voxels belong to several of its 2 segments"):
        load_label(path)
    with pytest.raises(InputError, match="a segmentation: read it with load_label"):
        load_volume(path)


def test_segments_go_onto_the_grid_of_their_scan(write, tmp_path):
    scan = load_volume(save(tmp_path / "scan", stack()))
    found = np.random.default_rng(1).integers(0, 2, (2, 5, 6))
    path = write(segmentation([PLACES[3], PLACES[1]], found, [1, 1], labels={1: "liver"}))
    volume = load_segmentation(path, like=scan)
    expected = np.zeros((5, 5, 6))
    expected[3], expected[1] = found
    assert volume.grid.same_as(scan.grid, 1e-6)
    np.testing.assert_array_equal(volume.array[..., 0], expected.transpose(2, 1, 0)[::-1, ::-1])  # the scan is RAS by now


def test_fractional_and_label_map_objects(write, tmp_path):
    amounts = planes(2, top=101)
    made = segmentation(PLACES[:2], amounts, [1, 1], kind="FRACTIONAL", labels={1: "liver"}, MaximumFractionalValue=100)
    seg = read_segmentation(write(made))
    np.testing.assert_allclose(seg.fraction(1), amounts.transpose(2, 1, 0) / 100, rtol=1e-6)
    np.testing.assert_array_equal(seg.mask(1), amounts.transpose(2, 1, 0) >= 50)
    numbers = planes(2, top=3)
    path = write(segmentation(PLACES[:2], numbers, [0, 0], kind="LABELMAP", labels={0: "background"} | LABELS))
    np.testing.assert_array_equal(load_label(path, reorient=False).array[..., 0], numbers.transpose(2, 1, 0))
    assert [(ref.format, ref.modality, ref.reason) for ref in find_scans(tmp_path)] == [("DICOM SEG", "label", "")]


def test_faults_are_refused(write, tmp_path):
    sound = segmentation(PLACES[:3], planes(3), [1, 2, 1], labels=LABELS)
    sound.PixelData = sound.PixelData[:8]
    with pytest.raises(InputError, match=r"seg\.dcm: truncated: 8 bytes of PixelData, but 3 frames of 5×7 bits need 14"):
        read_segmentation(write(sound))
    uneven = segmentation([PLACES[0], PLACES[1], (-10.0, 20.0, 34.9)], planes(3), [1, 1, 1], labels=LABELS)
    with pytest.raises(InputError, match="no even grid"):
        read_segmentation(write(uneven))
    with pytest.raises(InputError, match="not a DICOM segmentation"):
        read_segmentation(save(tmp_path / "scan", stack(1)) / "s0.dcm")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("seg", "twins"),
    [
        ("liver.dcm", ["liver_seg.nrrd"]),
        ("24x38x3/seg/label.seg", ["24x38x3/nrrd/label.nrrd"]),
        ("23x38x3/seg/label.seg", ["23x38x3/nrrd/label.nrrd"]),
        ("partial_overlaps.dcm", ["partial_overlaps-1.nrrd", "partial_overlaps-2.nrrd", "partial_overlaps-3.nrrd"]),
        ("sparse-labelmap-noppv.dcm", ["sparse_labelmap_noppv_seg.nrrd"]),
        ("sparse-labelmap-ppv5.dcm", ["sparse_labelmap_ppv5_seg.nrrd"]),
    ],
)
def test_real_objects_equal_their_twins(real_scans, seg, twins):
    folder = real_scans / "dicom" / "dcmqi" / "segmentations"
    found = read_segmentation(folder / seg)
    seen = set()
    for twin in twins:
        expected = load_volume(folder / twin, reorient=False)
        assert expected.grid.same_as(found.grid, 1e-3)
        values = {int(value) for value in np.unique(expected.array)} - {0, found.padding}
        seen |= values
        for value in values:
            np.testing.assert_array_equal(found.mask(value), expected.array[..., 0] == value)
    assert seen == {segment.number for segment in found.segments if found.mask(segment.number).any()}
    if len(twins) == 1 and found.kind != "LABELMAP":
        np.testing.assert_array_equal(load_label(folder / seg).array, to_ras(expected).array)
