"""DICOM in an archive: series over several folders, gantry tilt and missing slices by name, burned-in text, JPEG lossless."""

import importlib.util

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from jaxseg.data.archive import index_archive
from jaxseg.data.cases import Case
from jaxseg.data.io import load_volume
from jaxseg.data.staging import content_of
from jaxseg.errors import InputError
from tests.dicom_files import a_slice, save, stack
from tests.jpeg_lossless import encode


def indexed(folder, out, **options):
    return index_archive(folder / "in", out, salt="s", **options).rows


def test_a_series_over_several_folders_is_one_row_and_reads_as_one_scan(tmp_path):
    slices = stack(9, PatientID="A")
    save(tmp_path / "in/case/part1", slices[:4])
    save(tmp_path / "in/case/part2", slices[4:])
    save(tmp_path / "in/other", stack(5, SeriesInstanceUID="1.2.3", PatientID="B"))
    rows = indexed(tmp_path, tmp_path / "out")
    assert [(row["path"], row["files"], row["ok"]) for row in rows] == [
        (str(tmp_path / "in/case"), 9, True),
        (str(tmp_path / "in/other"), 5, True),
    ]
    assert rows[0]["shape"] == [6, 5, 9] and "several folders" in rows[0]["flags"] and "2 folders" in rows[0]["notes"]
    volume = load_volume(rows[0]["path"], series=rows[0]["series"], reorient=False)
    np.testing.assert_array_equal(volume.array[0, 0, :, 0], 100 * np.arange(9))
    again = indexed(tmp_path, tmp_path / "out", resume=True)
    assert again == rows
    content = content_of(Case("case", {"CT": tmp_path / "in/case"}))
    assert (content["sha256"], content["voxels"]) == ([rows[0]["sha256"]], [rows[0]["voxel_hash"]])


def test_interleaved_folders_are_one_scan_and_whole_copies_are_duplicates(tmp_path):
    slices = stack(8)
    save(tmp_path / "in/a/even", slices[::2])
    save(tmp_path / "in/a/odd", slices[1::2])
    save(tmp_path / "in/b", stack(5, SeriesInstanceUID="1.2.3"))
    save(tmp_path / "in/c", stack(5, SeriesInstanceUID="1.2.3"))
    whole, first, copy = indexed(tmp_path, tmp_path / "out")
    assert whole["shape"] == [6, 5, 8] and whole["spacing"][2] == pytest.approx(2.0)  # either half alone says 4 mm
    assert copy["duplicate_of"] == first["path"] and first["ok"] and copy["ok"]


def test_folders_that_are_no_sound_scan_together_are_named(tmp_path):
    slices = stack(9)
    save(tmp_path / "in/a", slices[:4])
    save(tmp_path / "in/b", slices[6:])
    rows = indexed(tmp_path, tmp_path / "out")
    assert [row["ok"] for row in rows] == [False, False]
    for row in rows:
        assert row["flags"] == ["several folders"] and "2 folders" in row["reason"] and "missing slices: about 2" in row["reason"]


def test_gantry_tilt_and_missing_slices_have_flags_and_the_tilt_its_angle(tmp_path):
    tilted = stack(7, SeriesInstanceUID="1.2.3")
    for z, made in enumerate(tilted):
        made.ImagePositionPatient = [-10.0, 20.0 + 2 * z * np.tan(np.deg2rad(12.5)).round(6), 30.0 + 2 * z]
    save(tmp_path / "in/tilted", tilted)
    save(tmp_path / "in/without", [made for z, made in enumerate(stack(7)) if z != 3])
    rows = indexed(tmp_path, tmp_path / "out")
    assert [row["flags"] for row in rows] == [["gantry tilt"], ["missing slices"]]
    assert "12.50°" in rows[0]["reason"] and "rectangular grid" in rows[0]["reason"] and "about 1" in rows[1]["reason"]


def test_row_34_burned_in_text_is_admitted_on_request_and_flagged(tmp_path):
    folder = save(tmp_path / "in/a", stack(5, BurnedInAnnotation="YES"))
    [row] = indexed(tmp_path, tmp_path / "out")
    assert not row["ok"] and row["flags"] == ["burned in"] and "--allow-burned-in" in row["reason"]
    [row] = indexed(tmp_path, tmp_path / "out", burned_in=True, resume=True)  # the old row was made by another rule
    assert row["ok"] and "burned in" in row["flags"]
    with pytest.raises(InputError, match="burned_in=True"):
        load_volume(folder)
    np.testing.assert_array_equal(load_volume(folder, burned_in=True).shape, (6, 5, 5))


def test_jpeg_lossless_is_read_with_its_plugin_and_named_without(tmp_path):
    planes = [np.random.default_rng(z).integers(0, 4096, (24, 16)).astype(np.uint16) for z in range(3)]
    slices = [a_slice((0, 0, 3.0 * z), plane, RescaleIntercept=-1024, RescaleSlope=1) for z, plane in enumerate(planes)]
    for made, plane in zip(slices, planes, strict=True):
        made.PixelData = encapsulate([encode(plane)])
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        made.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    save(tmp_path / "in/a", slices)
    [row] = indexed(tmp_path, tmp_path / "out")
    if importlib.util.find_spec("libjpeg") is None:
        assert not row["ok"] and row["flags"] == ["decoder missing"]
        assert "JPEG Lossless" in row["reason"] and "jaxseg[dicom-jpeg]" in row["reason"]
    else:
        volume = load_volume(tmp_path / "in/a", reorient=False)
        np.testing.assert_array_equal(volume.array[..., 0], np.stack(planes).transpose(2, 1, 0) - 1024.0)
