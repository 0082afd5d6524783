"""The index: a row for every file, reasons for the bad ones, hashes that know copies, the same result twice."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as parquet
import pytest

from jaxseg.data.archive import index_archive, patient_key, read_index
from jaxseg.data.io import save_volume
from jaxseg.data.volume import Grid, Volume, reorient_like
from jaxseg.errors import InputError, JaxsegError

CONTRACT = ["path", "ok", "reason", "format", "shape", "spacing", "orientation", "modality", "patient", "sha256", "voxel_hash"]
RNG = np.random.default_rng(0)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def scan(shape=(8, 9, 7), **changes):
    """Bytes of a sound scan whose header fields are then overwritten."""
    image = nib.Nifti1Image(RNG.normal(100, 20, shape).astype("f4"), AFFINE)
    image.header.set_qform(AFFINE, 1)
    data = image.to_bytes()
    head = nib.Nifti1Header(data[:348], check=False)
    for name, value in changes.items():
        head.structarr[name] = value
    return head.structarr.tobytes() + data[348:]


def put(path, image):
    """Write bytes or a nibabel image, compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = image if isinstance(image, bytes) else image.to_bytes()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Sound scans and every kind of bad one, with the reason that each must get."""
    root = tmp_path_factory.mktemp("archive")
    sound = put(root / "p1/T1.nii.gz", scan())
    put(root / "p1/CT.nii.gz", scan())
    label = nib.Nifti1Image(np.zeros((8, 9, 7), np.uint8), AFFINE)
    put(root / "p1/seg.nii.gz", label)
    put(root / "p1/brainmask.nii.gz", label)
    data = sound.read_bytes()
    bad = {
        "cut.nii.gz": (data[:-200], "truncated"),
        "page.nii.gz": (b"<html>404</html>" * 50, "HTML page"),
        "none.nii": (b"", "empty file"),
    }
    bad["flip.nii.gz"] = (data[:-8] + bytes([data[-8] ^ 1]) + data[-7:], "gzip stream is damaged")
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in bad.items()}
    for name, image, reason in [
        (
            "nan.nii",
            nib.Nifti1Image(np.where(np.arange(504).reshape(8, 9, 7) < 2, np.nan, 1.0).astype("f4"), AFFINE),
            "2 of 504 voxels are not finite",
        ),
        ("flat.nii", nib.Nifti1Image(np.full((8, 9, 7), 5, "i2"), AFFINE), "constant: every voxel is 5"),
        ("slice.nii", scan((8, 9, 1)), "a single slice"),
        ("flat2d.nii", nib.Nifti1Image(np.ones((8, 9), "f4"), AFFINE), "2-D image"),
        ("series.nii", scan((8, 9, 7, 3)), "4-D image with 3 volumes"),
        ("mirror.nii", scan(srow_x=[-1, 0, 0, 0]), "mirror image"),
        ("conflict.nii", scan(srow_x=[1, 0, 0, 4]), "corners up to 4.0 voxels"),
    ]:
        put(root / name, image)
        reasons[name] = reason
    (root / ".hidden").mkdir()
    put(root / ".hidden/x.nii", scan())
    (root / "notes.txt").write_text("not a scan")
    return root, reasons


def by_name(index):
    return {Path(row["path"]).name: row for row in index.rows}


def test_every_bad_scan_is_a_row_with_its_reason(archive, tmp_path):
    root, reasons = archive
    calls = []
    index = index_archive(root, tmp_path, progress=lambda done, total: calls.append((done, total)))
    rows = by_name(index)
    assert len(rows) == len(reasons) + 4 and calls[-1] == (len(rows), len(rows)) and index.ok == 4
    for name, reason in reasons.items():
        row = rows[name]
        # File names may be patients' names: they stand in the column `path` alone.
        assert not row["ok"] and reason in row["reason"] and name not in row["reason"] and str(root) not in row["reason"]
        assert row["sha256"] is None if name == "none.nii" else len(row["sha256"]) == 64
    assert {item["path"] for item in index.left_out} == {str(root / name) for name in reasons}


def test_sound_rows_say_what_a_scan_is(archive, tmp_path):
    rows = by_name(index_archive([archive[0]], tmp_path))
    assert [rows[f"{name}.nii.gz"]["modality"] for name in ("T1", "CT", "seg", "brainmask")] == ["T1", "CT", "label", "mask"]
    row = rows["T1.nii.gz"]
    assert row["ok"] and row["reason"] == "" and row["shape"] == [8, 9, 7] and row["spacing"] == [1, 1, 2] and row["orientation"] == "RAS"
    assert row["mean"] == pytest.approx(100, abs=5) and row["std"] == pytest.approx(20, abs=3) and row["min"] < row["p01"] < row["median"]
    assert row["patient"] == patient_key("p1") == rows["seg.nii.gz"]["patient"] != rows["nan.nii"]["patient"] and "p1" not in row["patient"]


def test_the_parquet_and_summary_hold_the_same_and_twice_is_the_same(archive, tmp_path):
    index = index_archive(archive[0], tmp_path / "one")
    again = index_archive(archive[0], tmp_path / "two", threads=1)
    assert index == again == read_index(tmp_path / "one")
    assert set(CONTRACT) <= set(parquet.read_schema(tmp_path / "one/scans.parquet").names)
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    assert summary == json.loads((tmp_path / "two/summary.json").read_text())
    assert summary["scans"] == len(index.rows) and summary["ok"] == 4 and str(archive[0]) not in json.dumps(summary)
    assert [item["reason"] for item in summary["left_out"]] == [item["reason"] for item in index.left_out]
    assert [index.rows[item["row"]]["path"] for item in summary["left_out"]] == [item["path"] for item in index.left_out]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["scans.parquet", "summary.json"]


def test_copies_are_known_whatever_the_file(tmp_path):
    grid = Grid((6, 5, 4), AFFINE)
    volume = Volume(RNG.integers(0, 90, (6, 5, 4, 1)).astype(np.float32), AFFINE, ("a",))
    a = save_volume(volume, tmp_path / "in/a.nii.gz")
    (tmp_path / "in/b.nii").write_bytes(gzip.decompress(a.read_bytes()))
    save_volume(reorient_like(volume, np.diag([-1, -1, 1, 1.0])), tmp_path / "in/c.nii.gz", dtype="int16")
    moved = AFFINE.copy()
    moved[0, 3] = 5
    save_volume(Volume(volume.array, moved, ("a",)), tmp_path / "in/d.nii.gz")
    rows = by_name(index_archive(tmp_path / "in", tmp_path / "out"))
    assert len({row["voxel_hash"] for row in rows.values()}) == 2 and len({row["sha256"] for row in rows.values()}) == 4
    assert [rows[name]["duplicate_of"] for name in ("a.nii.gz", "b.nii", "c.nii.gz", "d.nii.gz")] == [None, str(a), str(a), None]
    assert all(row["ok"] for row in rows.values()) and grid.orientation == "RAS"


def test_four_dimensions_are_fine_where_channels_are_declared(tmp_path):
    put(tmp_path / "in/imagesTr/a.nii.gz", scan((6, 5, 4, 2)))
    assert index_archive(tmp_path / "in", tmp_path / "out").ok == 0
    assert index_archive(tmp_path / "in", tmp_path / "out", channels=["T1", "T2"]).ok == 1
    (tmp_path / "in/dataset.json").write_text(json.dumps({"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background"}}))
    row = index_archive(tmp_path / "in", tmp_path / "out").rows[0]
    assert row["ok"] and row["channels"] == 2 and row["patient"] == patient_key("a")


def test_integers_that_overflowed_are_noted(tmp_path):
    x = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")).sum(0) * 20.0 + RNG.normal(0, 30, (24, 24, 24)) + 200
    put(tmp_path / "in/wrapped.nii", nib.Nifti1Image(x.astype(np.int64).astype(np.uint8), AFFINE))
    put(tmp_path / "in/sound.nii", nib.Nifti1Image(np.clip(x / 8, 0, 255).astype(np.uint8), AFFINE))
    rows = by_name(index_archive(tmp_path / "in", tmp_path / "out"))
    assert "may have wrapped around" in rows["wrapped.nii"]["notes"] and rows["sound.nii"]["notes"] == ""


def test_nothing_to_index_or_to_read(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.nii or \.nii\.gz file below"):
        index_archive(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        index_archive(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(InputError, match="no index here"):
        read_index(tmp_path)
    (tmp_path / "scans.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(JaxsegError, match="damaged"):
        read_index(tmp_path)


@pytest.mark.realdata
def test_real_scans_are_all_sound(real_scans, tmp_path):
    index = index_archive([real_scans / "sarcoma/STS_002", real_scans / "sarcoma/STS_019"], tmp_path)
    assert index.ok == len(index.rows) == 7 and sorted({row["modality"] for row in index.rows}) == ["CT", "PET", "T1", "label"]
