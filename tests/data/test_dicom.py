"""DICOM series: sound ones land where their positions say, and every fault of docs/robustness.md rows 27–32 is refused by name."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from jaxseg.data.io import find_scans, load_volume, read_grid
from jaxseg.data.io.scans import files_of
from jaxseg.errors import GeometryError, InputError, JaxsegError
from tests.dicom_files import MR, PET, a_slice, dataset, enhanced, item, save, stack, to_bytes
from tests.peers import import_peer

TILTED = np.deg2rad(20)


def refused(path, match, kind=InputError, **options):
    with pytest.raises(kind, match=match) as caught:
        load_volume(path, **options)
    message = str(caught.value)
    assert "SENTINEL" not in message and "19630229" not in message and "1.2.826" not in message, message
    return message


# Sound series


def test_slices_land_where_their_positions_say_whatever_names_and_numbers_say(tmp_path):
    slices = stack()
    save(tmp_path, [slices[i] for i in (3, 0, 4, 1, 2)], name="IM{}")  # no suffix, shuffled; InstanceNumber runs backwards
    volume = load_volume(tmp_path, reorient=False)
    x, y, z = np.indices((6, 5, 5))
    np.testing.assert_array_equal(volume.array[..., 0], 100 * z + 10 * y + x)
    expected = [[-0.75, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]  # LPS → RAS; 2 mm apart, although the tag says 3
    np.testing.assert_allclose(volume.affine, expected)
    assert volume.source.unit == "HU" and volume.source.dtype == "int16" and volume.source.paths == (tmp_path,)
    assert read_grid(tmp_path).same_as(volume.grid, 1e-9)
    one_file = load_volume(tmp_path / "IM2", reorient=False)
    np.testing.assert_array_equal(one_file.array, volume.array)
    (tmp_path / "notes.txt").write_text("no slice")
    assert files_of(tmp_path / "IM2") == [tmp_path / f"IM{i}" for i in range(5)]  # what is kept for a scan must know of all of them


def test_an_oblique_series_keeps_the_world_position_of_every_voxel(tmp_path):
    across = np.array([np.cos(0.3), np.sin(0.3), 0])
    down = np.cross([-np.sin(0.3) * np.sin(0.2), np.cos(0.3) * np.sin(0.2), np.cos(0.2)], across)
    normal = np.cross(across, down)
    origin, made = np.array([5.0, -7, 11]), []
    row, column = np.indices((7, 6))
    for z in range(4):
        corner = origin + 1.5 * z * normal
        lps = corner + 0.75 * column[..., None] * across + 0.5 * row[..., None] * down
        made.append(a_slice(corner, np.round(100 * lps[..., 2]).astype(np.int16), orientation=[*across, *down]))
    volume = load_volume(save(tmp_path, made))
    index = np.stack(np.indices(volume.shape), -1)
    world = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(volume.array[..., 0], 100 * world[..., 2], atol=0.51)
    assert volume.grid.orientation == "RAS"


def test_a_folder_with_several_series_a_localiser_and_a_report_in_nested_folders(tmp_path):
    save(tmp_path, stack())
    other = stack(4, SeriesInstanceUID=generate_uid())
    save(tmp_path / "more", other, name="x{}.ima")
    scout = a_slice((0, 0, 0), orientation=(0, 1, 0, 0, 0, -1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = dataset("1.2.840.10008.5.1.4.1.1.88.67")
    capture = dataset("1.2.840.10008.5.1.4.1.1.7")
    save(tmp_path / "more", [scout, report, capture], name="y{}")
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "s0.dcm").read_bytes())
    (tmp_path / "notes.txt").write_text("no scan")
    message = refused(tmp_path, "2 scans")
    refs = list(find_scans(tmp_path))
    scans = [ref for ref in refs if not ref.reason]
    assert [(ref.path, ref.format, len(ref.files), ref.modality) for ref in scans] == [
        (tmp_path, "DICOM", 5, "CT"),
        (tmp_path / "more", "DICOM", 4, "CT"),
    ]
    assert {word for ref in refs for word in ("localiser", "report", "capture") if word in ref.reason} == {"localiser", "report", "capture"}
    for ref in scans:
        assert ref.key in message
        assert load_volume(tmp_path, series=ref.key).shape[2] == len(ref.files)
    assert scans[0].patient == scans[1].patient and "SENTINEL" not in str(refs)


def test_echoes_at_the_same_positions_are_two_scans_but_acquisition_numbers_alone_split_nothing(tmp_path):
    echoes = [part for echo in ("1", "2") for part in stack(sop_class=MR, EchoTime=echo, EchoNumbers=echo)]
    save(tmp_path / "echoes", echoes)
    save(tmp_path / "helical", [made for z, made in enumerate(stack()) for made in [made] if not setattr(made, "AcquisitionNumber", z)])
    dynamic = [made for time in ("101500", "101700", "101900") for made in stack(4, AcquisitionDate="20200101", AcquisitionTime=time)]
    save(tmp_path / "dynamic", dynamic)
    sizes = {folder: [len(ref.files) for ref in find_scans(tmp_path / folder)] for folder in ("echoes", "helical", "dynamic")}
    assert sizes == {"echoes": [5, 5], "helical": [5], "dynamic": [4, 4, 4]}


def test_row_27_rescaling_is_applied_slice_by_slice(tmp_path):
    slices = stack(sop_class=PET, Units="CNTS")
    for z, made in enumerate(slices):
        made.RescaleSlope, made.RescaleIntercept = 0.5 + z, -3 * z
    volume = load_volume(save(tmp_path, slices), reorient=False)
    x, y, z = np.indices((6, 5, 5))
    np.testing.assert_allclose(volume.array[..., 0], (100 * z + 10 * y + x) * (0.5 + z) - 3 * z, rtol=1e-6)


def test_an_enhanced_object_takes_place_and_scale_from_each_frame(tmp_path):
    order = [2, 0, 3, 1]
    pixels = np.stack([np.full((5, 6), 10 + z, np.uint16) for z in order])
    values = [{"PixelValueTransformationSequence": item(RescaleSlope=1 + z, RescaleIntercept=-z, RescaleType="HU")} for z in order]
    path = tmp_path / "enhanced"
    path.write_bytes(to_bytes(enhanced([(0, 0, 4.0 * z) for z in order], pixels, frames=values)))
    volume = load_volume(path, reorient=False)
    np.testing.assert_allclose(volume.array[0, 0, :, 0], [(10 + z) * (1 + z) - z for z in range(4)])
    assert volume.spacing == pytest.approx((0.75, 0.5, 4.0))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_pixels_are_those_of_the_plain_file_and_damage_is_refused(tmp_path, syntax):
    pixels = [np.random.default_rng(z).integers(0, 4000, (64, 48)).astype(np.uint16) for z in range(3)]
    slices = [a_slice((0, 0, 3.0 * z), plane, RescaleIntercept=-1024, RescaleSlope=1) for z, plane in enumerate(pixels)]
    for made in slices:
        made.compress(syntax, generate_instance_uid=False)
    save(tmp_path, slices)
    volume = load_volume(tmp_path, reorient=False)
    np.testing.assert_array_equal(volume.array[..., 0], np.stack(pixels).transpose(2, 1, 0) - 1024.0)
    for made in slices:
        made.Rows = 40000  # the stream inside says 64
    refused(save(tmp_path, slices), r"s0\.dcm.*(compressed as 64×48|damaged)")
    for made in slices:
        made.Rows = 64
    save(tmp_path, slices)
    data = (tmp_path / "s1.dcm").read_bytes()
    (tmp_path / "s1.dcm").write_bytes(data[: len(data) - 600])
    refused(tmp_path, r"s1\.dcm: (truncated|damaged)")


def test_monochrome1_is_inverted_where_values_are_only_shades(tmp_path):
    shades = stack(sop_class=MR, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelRepresentation=0)
    units = stack(PhotometricInterpretation="MONOCHROME1")
    grey = load_volume(save(tmp_path / "mr", shades), reorient=False).array
    kept = load_volume(save(tmp_path / "ct", units), reorient=False).array
    np.testing.assert_array_equal(grey, 4095 - kept)


def pet(**changes):
    tracer = item(RadionuclideTotalDose=3.7e8, RadionuclideHalfLife=6586.2, RadiopharmaceuticalStartTime="100000.00")
    facts = {"Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START", "PatientWeight": 70.0}
    facts |= {"SeriesDate": "20200101", "SeriesTime": "110000", "AcquisitionDate": "20200101", "AcquisitionTime": "110000.5"}
    facts |= {"RadiopharmaceuticalInformationSequence": [tracer], "RescaleSlope": 2.0, "RescaleIntercept": 0.0}
    return stack(sop_class=PET, **(facts | changes))


def test_pet_becomes_suv_where_the_header_allows_it_and_says_so(tmp_path):
    stored = load_volume(save(tmp_path / "plain", stack()), reorient=False).array
    decayed = load_volume(save(tmp_path / "start", pet()), reorient=False)
    expected = stored * 2.0 * 70_000 / (3.7e8 * 2 ** (-3600 / 6586.2))
    np.testing.assert_allclose(decayed.array, expected, rtol=1e-5)
    injected = load_volume(save(tmp_path / "admin", pet(DecayCorrection="ADMIN")), reorient=False)
    np.testing.assert_allclose(injected.array, stored * 2.0 * 70_000 / 3.7e8, rtol=1e-5)
    assert decayed.source.unit == injected.source.unit == "SUVbw (g/ml)"
    for number, change in enumerate(
        ({"PatientWeight": None}, {"SeriesTime": "113000"}, {"SeriesTime": "090000"}, {"CorrectedImage": ["DECY"]})
    ):
        raw = load_volume(save(tmp_path / f"{number}", pet(**change)), reorient=False)
        np.testing.assert_allclose(raw.array, stored * 2.0)
        assert raw.source.unit == "Bq/ml"


# Faults


def test_row_28_missing_duplicate_irregular_and_tilted_slices_are_named(tmp_path):
    sound = stack(7)
    without = save(tmp_path / "missing", [made for z, made in enumerate(sound) if z != 3])
    refused(without, r"missing slices: about 1 .*4 mm between s2\.dcm and s3\.dcm", GeometryError)
    twice = save(tmp_path / "twice", [*sound, a_slice(sound[2].ImagePositionPatient)])
    refused(twice, r"duplicate slices.*s2\.dcm and s7\.dcm", GeometryError)
    shifted = stack(7)
    shifted[4].ImagePositionPatient = [-10.0, 20.0, 30.0 + 2 * 4 + 0.7]
    refused(save(tmp_path / "irregular", shifted), r"irregular slices.*s4\.dcm", GeometryError)
    tilted = stack(7)
    for z, made in enumerate(tilted):
        made.ImagePositionPatient = [-10.0, 20.0 + 2 * z * np.tan(TILTED).round(6), 30.0 + 2 * z]
    refused(save(tmp_path / "tilted", tilted), r"gantry tilt.*20\.00°", GeometryError)
    mixed = save(tmp_path / "mixed", [*sound, *(a_slice((z, 0, 0), orientation=(0, 1, 0, 0, 0, -1)) for z in (0.0, 3.0))])
    refused(mixed, "2 scans")
    assert [len(ref.files) for ref in find_scans(mixed)] == [7, 2]


def test_row_29_short_pixels_and_huge_sizes_are_refused_before_memory_is_taken(tmp_path):
    short = stack()
    short[3].PixelData = short[3].PixelData[:-10]
    refused(save(tmp_path / "short", short), r"s3\.dcm: truncated.*50 bytes.*60")
    huge = stack()
    for made in huge:
        made.Rows = made.Columns = 60000
    folder = save(tmp_path / "huge", huge)
    tracemalloc.start()
    refused(folder, "more than the limit")
    refused(folder, r"s0\.dcm: truncated", max_voxels=2**40, max_bytes=2**44)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    cut = save(tmp_path / "cut", stack())
    (cut / "s2.dcm").write_bytes((cut / "s2.dcm").read_bytes()[:-20])
    refused(cut, r"s2\.dcm: truncated")


@pytest.mark.parametrize("spacing", [(0.0, 0.75), (0.5, -0.75)])
def test_row_30_a_pixel_spacing_of_zero_is_refused(tmp_path, spacing):
    refused(save(tmp_path, stack(spacing=spacing)), r"s0\.dcm.*PixelSpacing")
    assert all("PixelSpacing" in ref.reason for ref in find_scans(tmp_path))


def test_rows_31_and_32_no_identifier_becomes_a_path_and_a_dicomdir_is_passed_over(tmp_path):
    slices = stack()
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        for z, made in enumerate(slices):
            made.SOPInstanceUID = f"../../evil{z}"
        folder = save(tmp_path / "a" / "b", slices)
    before = sorted(tmp_path.rglob("*"))
    assert load_volume(folder).shape == (6, 5, 5)
    assert sorted(tmp_path.rglob("*")) == before and "evil" not in str(list(find_scans(folder)))
    source = "".join(path.read_text() for path in Path(load_volume.__code__.co_filename).parent.rglob("*.py"))
    assert "fileset" not in source.lower()  # CVE-2026-32711: a DICOMDIR's file names lead anywhere
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"../../../etc/passwd")
    assert [len(ref.files) for ref in find_scans(folder)] == [5]


def test_other_objects_and_unusable_headers_are_refused_with_what_they_are(tmp_path):
    save(tmp_path / "report", [dataset("1.2.840.10008.5.1.4.1.1.88.22")])
    refused(tmp_path / "report", "structured report")
    colour = stack(2, SamplesPerPixel=3)
    refused(save(tmp_path / "colour", colour), "3 colours")
    placeless = stack(3)
    del placeless[0].ImagePositionPatient
    refused(save(tmp_path / "placeless", placeless[:1]), r"s0\.dcm states no position")
    refused(save(tmp_path / "flat", stack(RescaleSlope=0.0)), "RescaleSlope of 0")
    (tmp_path / "text.dcm").write_text("hello " * 100)
    refused(tmp_path / "text.dcm", "not a DICOM file")
    with pytest.raises(InputError, match="not a scan in a known format"):
        (tmp_path / "x.xyz").write_text("hello")
        load_volume(tmp_path / "x.xyz")


def test_the_message_without_pydicom_names_the_extra(tmp_path, monkeypatch):
    folder = save(tmp_path, stack())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(folder, r"jaxseg\[dicom\]")
    assert all("jaxseg[dicom]" in ref.reason for ref in find_scans(folder))


@pytest.mark.filterwarnings("default")
def test_random_damage_ends_in_an_error_of_ours_that_names_nobody(tmp_path, recwarn, caplog):
    rng, sound = np.random.default_rng(1), [to_bytes(made) for made in stack(3)]
    for number, data in enumerate(sound):
        (tmp_path / f"{number}.dcm").write_bytes(data)
    refusals = 0
    for _ in range(60):
        damaged = bytearray(sound[1])
        for place in rng.integers(132, len(damaged) - 60, rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "1.dcm").write_bytes(damaged[: rng.integers(140, len(damaged))] if rng.random() < 0.3 else damaged)
        try:
            load_volume(tmp_path)
        except JaxsegError as error:
            refusals += 1
            assert "SENTINEL" not in str(error)
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert refusals > 5 and "SENTINEL" not in said


# Real scans


@pytest.mark.realdata
@pytest.mark.parity
@pytest.mark.parametrize(
    "folder", ["tiny_ct", "ct_jpeg2000", "sarcoma_STS_002/CT/image", "sarcoma_STS_002/MR_T1/image", "sarcoma_STS_002/PET/image"]
)
def test_real_series_equal_simpleitk(real_scans, folder):
    sitk = import_peer("SimpleITK")
    path = real_scans / "dicom" / folder
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    theirs, ours = reader.Execute(), load_volume(path, reorient=False)
    values = sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)
    np.testing.assert_allclose(ours.array[..., 0], values, atol=1e-6 * np.abs(values).max())
    direction = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
    np.testing.assert_allclose(ours.affine[:3], np.column_stack([direction, theirs.GetOrigin()]) * [[-1], [-1], [1]], atol=1e-4)
    assert folder != "ct_jpeg2000" or ours.spacing[2] == pytest.approx(2.0)


@pytest.mark.realdata
def test_a_real_multi_frame_object_equals_its_single_slices(real_scans):
    folder = real_scans / "dicom" / "dcmqi" / "segmentations" / "24x38x3"
    whole, slices = load_volume(folder / "multiframe" / "mf.dcm"), load_volume(folder / "image")
    np.testing.assert_array_equal(whole.array, slices.array)
    assert whole.grid.same_as(slices.grid, 1e-6)
