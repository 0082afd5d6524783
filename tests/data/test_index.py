"""The index as a run: it goes on where it stopped, reads nothing twice, survives a reader's death, and names nobody outside the column `path`."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.archive import index as index_module
from jaxseg.data.archive import index_archive, patient_key, read_index, readers, scan_row, voxel_hash
from jaxseg.data.archive.patients import owner_of
from jaxseg.data.io import load_volume
from jaxseg.errors import InputError
from jaxseg.files import sha256_of

RNG = np.random.default_rng(0)


def put(root, *names, shape=(9, 8, 7), offset=0.0):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image((RNG.normal(100, 20, shape) + offset).astype(np.float32), np.diag([1.0, 1, 2, 1])), root / name)
    return root


@pytest.fixture
def reads(monkeypatch):
    """The paths that were decoded, in order."""
    seen = []
    decode = scan_row.decode_scan
    monkeypatch.setattr(scan_row, "decode_scan", lambda ref, rules: (seen.append(ref.path.name), decode(ref, rules))[1])
    return seen


# Whose scan it is, and what kind


@pytest.mark.parametrize(
    ("name", "patient", "study", "role"),
    [
        ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01", "sub-01/ses-2", "image"),
        ("derivatives/x/sub-01/anat/sub-01_label-lesion_mask.nii.gz", "sub-01", "sub-01", "label"),
        ("Task01_BrainTumour/imagesTr/BRATS_001.nii.gz", "BRATS_001", "BRATS_001", "image"),
        ("Task01_BrainTumour/labelsTr/BRATS_001.nii.gz", "BRATS_001", "BRATS_001", "label"),
        ("Dataset001/imagesTr/lesion_007_0000.nii.gz", "lesion_007", "lesion_007", "image"),
        ("Train/BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz", "BraTS20_Training_001", "BraTS20_Training_001", "image"),
        ("Train/BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz", "BraTS20_Training_001", "BraTS20_Training_001", "label"),
        ("sarcoma/STS_001/T1.nii.gz", "STS_001", "STS_001", "image"),
        ("DOE^JANE/2019-03-01/T1.nii.gz", "DOE^JANE", "DOE^JANE/2019-03-01", "image"),
        ("p1/images/T1.nii.gz", "p1", "p1", "image"),
        ("p1/CT/scan.nii.gz", "p1", "p1", "image"),
        ("IXI012_T1.nii.gz", "IXI012", "IXI012", "image"),
        ("p1/brainmask.nii.gz", "p1", "p1", "mask"),
    ],
)
def test_layouts_say_whose_scan_it_is(tmp_path, name, patient, study, role):
    owner = owner_of(tmp_path / name, tmp_path)
    assert (owner.patient, owner.study, owner.role) == (patient, study, role)


def test_numbers_that_count_cases_keep_patients_apart_also_where_an_index_goes_on(tmp_path, reads):
    flat = put(tmp_path / "flat", *(f"PANCREAS_{number:04d}.nii.gz" for number in range(1, 5)))
    assert len({row["patient"] for row in index_archive(flat, tmp_path / "out").rows}) == 4
    root = put(tmp_path / "in", "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "imagesTr/b_0000.nii", "labelsTr/a.nii", "labelsTr/b.nii")
    keys = {Path(row["path"]).name: row["patient"] for row in index_archive(root, tmp_path / "nn").rows}
    assert set(keys.values()) == {patient_key("a"), patient_key("b")} and keys["a_0001.nii"] == patient_key("a")
    put(root, *(f"imagesTr/{name}.nii" for name in ("c_0003", "d_0007")))  # so these are no channels
    reads.clear()
    resumed = index_archive(root, tmp_path / "nn", resume=True)
    assert sorted(reads) == ["a_0000.nii", "a_0001.nii", "b_0000.nii", "c_0003.nii", "d_0007.nii"]
    assert resumed == index_archive(root, tmp_path / "whole")


def test_the_modality_comes_with_its_evidence(tmp_path):
    put(tmp_path / "in", "sub-01/anat/sub-01_ce-gd_T1w.nii.gz", "p1/flair.nii.gz", "p2/CT/scan.nii.gz", "p3/x.nii.gz", "p4/y_seg.nii.gz")
    values = np.where(RNG.uniform(size=(9, 9, 9)) < 0.5, -1000, 40 + RNG.normal(0, 9, (9, 9, 9))).astype(np.int16)
    (tmp_path / "in/p5").mkdir()
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "in/p5/z.nii")
    rows = {
        Path(row["path"]).name: (row["modality"], row["modality_from"]) for row in index_archive(tmp_path / "in", tmp_path / "out").rows
    }
    assert rows["sub-01_ce-gd_T1w.nii.gz"] == ("T1C", "BIDS suffix T1w with entity ce")
    assert rows["flair.nii.gz"] == ("FLAIR", "file name") and rows["scan.nii.gz"] == ("CT", "folder name")
    assert rows["x.nii.gz"] == ("unknown", "") and rows["y_seg.nii.gz"] == ("label", "its folder or file name")
    assert rows["z.nii"][0] == "CT" and "Hounsfield" in rows["z.nii"][1]


def test_rows_hold_the_file_s_own_hash_and_the_numbers_of_its_voxels(tmp_path):
    turned = nib.Nifti1Image((1000 * RNG.normal(size=(13, 11, 7))).astype(np.int16), np.diag([-1.0, 1.5, -2, 1]))
    turned.header.set_slope_inter(0.25, -7)
    (tmp_path / "in").mkdir()
    nib.save(turned.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), tmp_path / "in/a.nii.gz")
    [row] = index_archive(tmp_path / "in", tmp_path / "out").rows
    volume = load_volume(tmp_path / "in/a.nii.gz")
    assert row["sha256"] == sha256_of(tmp_path / "in/a.nii.gz") and row["voxel_hash"] == voxel_hash(volume)
    expected = {"min": volume.array.min(), "max": volume.array.max(), "mean": volume.array.mean(), "std": volume.array.std()}
    expected |= {"p25": np.percentile(volume.array, 25), "median": np.median(volume.array)}
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


# Resuming


def test_unchanged_files_are_not_read_again_and_changed_ones_are(tmp_path, reads):
    root = put(tmp_path / "in", *(f"p{number}/T1.nii.gz" for number in range(4)), "p9/T2.nii.gz")
    first = index_archive(root, tmp_path / "out", salt=None).rows
    assert len(reads) == 5
    put(root, "p2/T1.nii.gz", "p5/new.nii.gz", offset=9)
    (root / "p0/T1.nii.gz").unlink()
    reads.clear()
    second = index_archive(root, tmp_path / "out", salt=None, resume=True)
    assert sorted(reads) == ["T1.nii.gz", "new.nii.gz"] and second.scans == 5
    kept = {row["path"]: row for row in first}
    assert sum(kept.get(row["path"]) == row for row in second.rows) == 3
    reads.clear()
    index_archive(root, tmp_path / "out", salt=None)
    assert len(reads) == 5
    reads.clear()
    index_archive(root, tmp_path / "out", salt=None, resume=True, policy="sform")  # other rules: nothing can be kept
    assert len(reads) == 5


def test_an_interrupted_run_keeps_its_parts_and_ends_as_if_it_had_never_stopped(tmp_path, reads, monkeypatch):
    root = put(tmp_path / "in", *(f"p{number:02d}/T1.nii.gz" for number in range(20)))
    monkeypatch.setattr(index_module, "PART_ROWS", 4)

    def stop(done, total):
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_archive(root, tmp_path / "out", salt="s", threads=1, progress=stop)
    assert not (tmp_path / "out/scans.parquet").exists()
    before = len(reads)
    resumed = index_archive(root, tmp_path / "out", salt="s", resume=True)
    assert len(reads) == before + 20 - 12
    assert resumed == index_archive(root, tmp_path / "whole", salt="s")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scans.parquet", "summary.json"]


# Processes


def test_processes_read_what_threads_read_and_one_that_dies_costs_one_row(tmp_path):
    root = put(tmp_path / "in", *(f"p{number}/T1.nii.gz" for number in range(6)))
    (root / "p3/T1.nii.gz").rename(root / "p3/fatal.nii.gz")
    script = f"""
import os
from jaxseg.data.archive import scan_row, index_archive
decode = scan_row.decode_scan
def deadly(ref, rules):
    if ref.path.name == "fatal.nii.gz" and os.getpid() != {os.getpid()}:
        os._exit(9)
    return decode(ref, rules)
scan_row.decode_scan = deadly
if __name__ == "__main__":
    index = index_archive({str(root)!r}, {str(tmp_path / "out")!r}, processes=2)
    print(index.scans, index.ok, [row["reason"] for row in index.rows if not row["ok"]])
"""
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 5 ['the process that read it died")
    rows = {row["path"]: row for row in index_archive(root, tmp_path / "threads").rows}
    assert sum(rows[row["path"]] == row for row in read_index(tmp_path / "out").rows) == 5


def test_memory_does_not_grow_with_the_archive(tmp_path):
    root = put(tmp_path / "in", "p000/T1.nii", shape=(16, 16, 16))
    for number in range(1, 400):
        (root / f"p{number:03d}").mkdir()
        os.link(root / "p000/T1.nii", root / f"p{number:03d}/T1.nii")
    peaks = []
    for count in (100, 400):
        roots = [root / f"p{number:03d}" for number in range(count)] if count == 100 else root
        tracemalloc.start()
        index = index_archive(roots, tmp_path / str(count), threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert index.scans == count
    assert peaks[1] < peaks[0] + (3 << 20), peaks


def test_chunks_are_bounded_and_known_rows_keep_their_place(tmp_path):
    tasks = [scan_row.Task(None, 0, size, 0) for size in (1, 1, 1 << 25, 1, 1)]  # type: ignore[arg-type]
    known = {"path": "known"}
    chunks = list(readers._chunks([*tasks[:2], known, *tasks[2:]], 3))
    assert [len(chunk) for chunk in chunks] == [2, 1, 1, 2] and chunks[1] == [known]


# What the command says


def test_the_command_prints_one_line_of_totals_draws_a_page_and_exits_three(tmp_path, capsys):
    root = put(tmp_path / "in", "SENTINEL^JANE/T1.nii.gz", "p2/T2.nii.gz")
    (root / "p2/SENTINEL_broken.nii.gz").write_bytes(b"<html>")
    assert main(["index", str(root), "--out", str(tmp_path / "out")]) == 3
    totals = json.loads(capsys.readouterr().out)
    assert (totals["scans"], totals["ok"], totals["left_out"], totals["patients"]) == (3, 2, 1, 2)
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("data:image/png") == 4 and "HTML page" in page
    for path in (tmp_path / "out").iterdir():
        assert path.name == "scans.parquet" or b"SENTINEL" not in path.read_bytes()
    for row in read_index(tmp_path / "out").rows:
        assert "SENTINEL" not in json.dumps({name: value for name, value in row.items() if name not in ("path", "perceptual")})
    (root / "p2/SENTINEL_broken.nii.gz").unlink()
    assert main(["index", str(root), "--out", str(tmp_path / "out"), "--resume"]) == 0


def test_keys_need_the_salt(tmp_path):
    root = put(tmp_path / "in", "DOE/T1.nii.gz")
    keys = {index_archive(root, tmp_path / name, salt=None).rows[0]["patient"] for name in ("one", "two")}
    assert len(keys) == 2 and patient_key("DOE") not in keys
    assert index_archive(root, tmp_path / "one", salt=None).rows[0]["patient"] in keys  # the same again in the same folder
    assert index_archive(root, tmp_path / "three").rows[0]["patient"] == patient_key("DOE")


def test_flags_of_the_command_decide_what_is_refused(tmp_path):
    root = put(tmp_path / "in", "p1/T1.nii")
    data = bytearray((root / "p1/T1.nii").read_bytes())
    data[252:256] = bytes(4)  # neither form
    (root / "p1/T1.nii").write_bytes(bytes(data))
    assert main(["index", str(root), "--out", str(tmp_path / "out")]) == 3
    assert main(["index", str(root), "--out", str(tmp_path / "out"), "--assume-orientation", "LPS"]) == 0
    [row] = read_index(tmp_path / "out").rows
    assert row["orientation"] == "LPS"
    with pytest.raises(InputError):
        index_archive(tmp_path / "absent", tmp_path / "out")


def test_links_to_folders_are_followed_once_and_a_loop_ends(tmp_path):
    put(tmp_path / "elsewhere", "p1/T1.nii.gz", "p2/T1.nii.gz")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "first").symlink_to(tmp_path / "elsewhere" / "p1")
    (archive / "again").symlink_to(tmp_path / "elsewhere" / "p1")
    (archive / "loop").symlink_to(archive)
    index = index_archive(archive, tmp_path / "out", threads=1)
    assert [Path(row["path"]).parent.name for row in index.rows] == ["again"]
