"""A folder of scans that wrapped around: restored, copied or left out, each with its reason; interrupted, it goes on."""

import json

import nibabel
import numpy as np

from jaxseg.data.cases import find_cases
from jaxseg.data.overflow import wrap
from jaxseg.data.phantom import make_case
from jaxseg.restore_overflow import RECORD, main, restore_folder


def _write(folder, case, image, label):
    folder.mkdir(exist_ok=True)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{case}_T1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"{case}_seg.nii.gz")


def test_folder(tmp_path, capsys):
    head = make_case(5, channels=("T1",)).images["T1"][20:76, 24:84, 24:64]
    levels = np.clip(head / head.max() * 255, 0, 255).astype(np.uint8)
    label = (levels > 90).astype(np.uint8)
    noise = np.random.default_rng(0).integers(1, 256, levels.shape).astype(np.uint8)
    _write(tmp_path / "in", "a", wrap(levels, 13.8952), label)
    _write(tmp_path / "in", "b", levels, label)
    _write(tmp_path / "in", "c", noise, label)
    _write(tmp_path / "in", "d", levels, label)
    whole = (tmp_path / "in" / "d_T1.nii.gz").read_bytes()
    (tmp_path / "in" / "d_T1.nii.gz").write_bytes(whole[: len(whole) // 2])

    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--processes", "1"]) == 3
    rows = {row["case"]: row for row in json.loads((tmp_path / "out" / RECORD).read_text())["cases"]}
    assert "1 of 4 cases restored, 1 copied, 2 left out" in capsys.readouterr().out
    assert "no step explains" in rows["c"]["left_out"]["reason"] and rows["c"]["left_out"]["path"] == "c_T1.nii.gz"
    assert rows["d"]["left_out"]["path"] == "d_T1.nii.gz" and rows["d"]["left_out"]["reason"]
    assert rows["b"]["restored"] == {} and set(rows["a"]["restored"]) == {"a_T1.nii.gz"}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "a_T1.nii.gz",
        "a_seg.nii.gz",
        "b_T1.nii.gz",
        "b_seg.nii.gz",
    ]
    for name in ("a_seg", "b_T1", "b_seg"):
        assert (tmp_path / "out" / f"{name}.nii.gz").read_bytes() == (tmp_path / "in" / f"{name}.nii.gz").read_bytes()
    restored = nibabel.load(tmp_path / "out" / "a_T1.nii.gz")
    assert np.mean(np.asanyarray(restored.dataobj) == levels) > 0.95
    assert np.array_equal(restored.affine, np.diag([-2.0, 2.0, 2.0, 1.0]))

    (tmp_path / "in" / "b_T1.nii.gz").unlink()  # what is done is not looked at again
    (tmp_path / "in" / "b_seg.nii.gz").unlink()
    assert [row["case"] for row in restore_folder(tmp_path / "in", tmp_path / "out")] == ["a", "c", "d"]

    _write(tmp_path / "other", "a", levels, label)
    assert main([str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_out_within_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "in" / "x")]) == 2
    assert "outside" in capsys.readouterr().err


def test_a_dataset_is_a_dataset_afterwards(tmp_path):
    """nnU-Net's layout: what dataset.json says goes along, so that the same cases are found."""
    levels = np.full((12, 12, 12), 7, np.uint8)
    levels[4:8] = 9
    for part, name in (("imagesTr", "case_1_0000"), ("labelsTr", "case_1")):
        (tmp_path / "in" / part).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(levels, np.eye(4)), tmp_path / "in" / part / f"{name}.nii.gz")
    said = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 1, "file_ending": ".nii.gz"}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(said))
    assert restore_folder(tmp_path / "in", tmp_path / "out", processes=1) == [{"case": "case_1", "restored": {}}]
    before, after = find_cases(tmp_path / "in"), find_cases(tmp_path / "out")
    assert (after.kind, after.channels, after.labels) == (before.kind, before.channels, before.labels)
    assert [case.id for case in after.cases] == ["case_1"] and after.cases[0].label is not None
