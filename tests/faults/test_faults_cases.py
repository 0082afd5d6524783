"""Rows 20 to 26, 34 to 37 and 56 of docs/robustness.md: files that do not fit together, archives in archives, patients on both sides of a split."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from jaxseg.data.archive import index_archive
from jaxseg.data.io import save_volume
from jaxseg.data.split import refuse_shared_patients
from jaxseg.data.volume import Volume, refuse_apart, stack_channels
from jaxseg.errors import ConfigError, GeometryError, InputError
from jaxseg.prepare import prepare_folder
from tests.tiny_store import write_scans


def reasons(folder, out):
    return {item["name"]: item["reason"] for item in prepare_folder(folder, out).left_out}


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans", count=2)


def with_label(scans, change):
    """Replace the label of case_1 by `change(its volume)`."""
    import jaxseg

    label = jaxseg.load_volume(scans / "case_1" / "seg.nii.gz")
    save_volume(change(label), scans / "case_1" / "seg.nii.gz")
    return scans


def whole(label, **changes):
    values = {"array": np.round(label.array).astype(np.int16), "affine": label.affine, **changes}
    return Volume(values["array"], values["affine"], ("label",))


@pytest.mark.parametrize("change", ["shape", "spacing", "origin", "direction"])
def test_row_20_a_label_on_another_grid_is_left_out_with_numbers_and_advice(scans, tmp_path, change):
    affines = {
        "spacing": np.diag([2.0, 2.0, 2.0, 1.0]),
        "origin": np.diag([2.0, 2.0, 2.5, 1.0]),
        "direction": np.diag([2.0, 2.0, 2.5, 1.0]),
    }
    if change in affines:
        affine = affines[change]
        affine[0, 3] += 8.0 if change == "origin" else 0.0
        affine[0, 1] = 0.0
        if change == "direction":
            turn = np.eye(4)
            turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
            affine = turn @ affine
        with_label(scans, lambda label: whole(label, affine=affine))
    else:
        with_label(scans, lambda label: whole(label, array=np.round(label.array[:-3]).astype(np.int16)))
    reason = reasons(scans, tmp_path / "store")["case_1"]
    assert "lies on" in reason and "voxels of" in reason and "Resample the label" in reason


def test_row_21_channels_that_lie_apart_are_refused_and_those_that_meet_are_put_together():
    near = Volume(np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32), np.eye(4), ("CT",))
    moved = np.eye(4)
    moved[2, 3] = 200.0
    with pytest.raises(GeometryError, match=r"case p1: channels CT and PET share 0% .* co-register"):
        refuse_apart([near, Volume(near.array, moved, ("PET",))], "p1")
    small = Volume(near.array[2:5, 2:5, 2:5], np.array([[1, 0, 0, 2.0], [0, 1, 0, 2], [0, 0, 1, 2], [0, 0, 0, 1]]), ("PET",))
    refuse_apart([near, small], "p1")
    np.testing.assert_allclose(stack_channels([near, small]).array[2:5, 2:5, 2:5, 1:], small.array, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "values that the recipe does not name: 7 (5 voxels)"),
        (-1, "5 label values are negative"),
        (0.999, "5 of 5,760 label values are not whole"),
    ],
)
def test_row_22_strange_label_values_are_counted(scans, tmp_path, value, words):
    def change(label):
        array = np.round(label.array).astype(np.float32)
        array[0, 0, :5] = value
        return whole(label, array=array if value % 1 else array.astype(np.int16))

    prepare_folder(write_scans(tmp_path / "sound", count=2), tmp_path / "like")
    with_label(scans, change)
    found = {item["name"]: item["reason"] for item in prepare_folder(scans, tmp_path / "store", like=tmp_path / "like").left_out}
    assert words in found["case_1"]


def test_row_23_an_empty_label_is_allowed_and_flagged(scans, tmp_path):
    with_label(scans, lambda label: whole(label, array=np.zeros(label.array.shape, np.int16)))
    store = prepare_folder(scans, tmp_path / "store")
    assert store.entry("case_1").info["label_empty"] and not store.entry("case_0").info["label_empty"] and not store.left_out
    rows = {row["path"]: row for row in index_archive(scans, tmp_path / "index").rows}
    assert "empty label" in rows[str(scans / "case_1/seg.nii.gz")]["flags"]


def test_row_24_channels_go_by_name_and_values_that_belie_a_name_are_flagged(tmp_path):
    rng = np.random.default_rng(0)
    hu = np.where(rng.uniform(size=(20, 20, 20, 1)) < 0.4, -1000, 40 + 20 * rng.normal(size=(20, 20, 20, 1))).astype(np.float32)
    mr = (np.abs(rng.normal(size=(20, 20, 20, 1))) * 300).astype(np.float32)
    for name, values in (("CT", mr), ("T1", hu)):  # swapped
        save_volume(Volume(values, np.eye(4), (name,)), tmp_path / "in/p1" / f"{name}.nii.gz")
    for name, values in (("CT", hu), ("T1", mr)):
        save_volume(Volume(values, np.eye(4), (name,)), tmp_path / "in/p2" / f"{name}.nii.gz")
    rows = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert ["modality doubtful" in row["flags"] for row in rows] == [True, True, False, False]


def test_row_26_scans_smaller_than_the_patch_are_padded_and_one_slice_is_refused(tmp_path):
    # Padding and its undoing: tests/infer/test_window.py and tests/data/test_loader.py, named in the document too.
    values = np.random.default_rng(0).normal(size=(9, 8, 1, 1)).astype(np.float32)
    save_volume(Volume(values, np.eye(4), ("T1",)), tmp_path / "in/T1.nii.gz")
    [row] = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert not row["ok"] and "a single slice" in row["reason"]


def test_row_34_text_burned_into_pixels_is_refused(tmp_path):
    pytest.importorskip("pydicom")
    from tests.dicom_files import stack

    (tmp_path / "in").mkdir()
    for number, made in enumerate(stack(4, BurnedInAnnotation="YES")):
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        made.save_as(tmp_path / "in" / f"{number}.dcm", enforce_file_format=True)
    [row] = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert not row["ok"] and row["flags"] == ["burned in"]


def tar_with(path, kind):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo({"slip": "../../escaped.nii", "link": "link", "absolute": "/escaped.nii"}[kind])
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(member)
        else:
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))


@pytest.mark.parametrize("kind", ["slip", "link", "absolute"])
def test_row_35_tar_files_are_refused_by_name_and_never_unpacked(tmp_path, kind):
    (tmp_path / "in").mkdir()
    tar_with(tmp_path / "in" / "scans.tar", kind)
    with pytest.raises(InputError, match="does not open"):
        index_archive(tmp_path / "in" / "scans.tar", tmp_path / "out")
    [row] = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert not row["ok"] and "does not open" in row["reason"] and row["flags"] == ["not a scan file"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "out", "scans.parquet", "scans.tar", "summary.json"]


@pytest.mark.parametrize("member", ["../../escaped.nii", "/escaped.nii", "fine.nii"])
def test_rows_36_and_37_zip_files_are_refused_by_name_whatever_is_in_them(tmp_path, member):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(1 << 24))  # deflates a thousandfold
    with pytest.raises(InputError, match="does not open"):
        index_archive(tmp_path / "in" / "scans.zip", tmp_path / "out")
    [row] = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert not row["ok"] and "swell without bound" in row["reason"] and not list(tmp_path.rglob("escaped*"))


def test_row_56_a_patient_on_both_sides_of_a_split_is_an_error():
    patients = {"a_1": "a", "a_2": "a", "b": "b"}
    refuse_shared_patients(patients, ["a_1", "a_2"], ["b"], "training cases and test cases")
    with pytest.raises(ConfigError, match=r"share 1 patients \(a_1 and a_2\)"):
        refuse_shared_patients(patients, ["a_1", "b"], ["a_2"], "training cases and test cases")
