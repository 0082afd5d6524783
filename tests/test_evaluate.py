"""Two folders in, `cases.csv` and `summary.json` out: hand-made cases with known scores, layouts, and what must be refused."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.cases import find_cases
from jaxseg.data.recipe import Recipe
from jaxseg.errors import GeometryError, InputError
from jaxseg.evaluate import Row, evaluate_cases, evaluate_folders, structures_of, summarise
from jaxseg.pairing import label_files

SPACING = (1.0, 1.5, 2.0)
SHAPE = (14, 12, 10)
DIAGONAL = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))


def block(value, start=2, side=4, shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    array[start : start + side, 3 : 3 + side, 3 : 3 + side] = value
    return array


def write(path, array, spacing=SPACING, origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Four cases: perfect, shifted by two voxels along x (half overlap), nothing found, nothing there and nothing found."""
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    for case, guess, label in [
        ("a", block(1), block(1)),
        ("b", block(1, start=4), block(1)),
        ("c", block(0), block(1)),
        ("d", block(0), block(0)),
    ]:
        write(pred / f"{case}.nii.gz", guess)
        write(truth / f"{case}.nii.gz", label)
    return pred, truth


def rows_of(out):
    with open(out / "cases.csv", newline="") as stream:
        return {(row["case"], row["label"]): row for row in csv.DictReader(stream)}


def test_known_cases_get_known_scores(folders, tmp_path):
    out = tmp_path / "out"
    summary = evaluate_folders(*folders, out, tolerance_mm=1.0)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["per_case"] == {"a": 1.0, "b": 0.5, "c": 0.0, "d": 1.0}
    assert summary["dice"] == pytest.approx(0.625)
    assert 0 <= summary["low"] < 0.625 < summary["high"] <= 1
    assert (summary["n"], summary["distances_left_out"], summary["tolerance_mm"]) == (4, 1, 1.0)
    label = summary["per_label"]["1"]
    assert label["hausdorff_mm"] == pytest.approx((0 + 2 + DIAGONAL) / 3)  # case d is left out
    assert (label["n"], label["empty_truth"], label["empty_pred"], label["both_empty"], label["distances_left_out"]) == (4, 1, 2, 1, 1)
    rows = rows_of(out)
    assert float(rows["b", "1"]["iou"]) == pytest.approx(1 / 3, abs=1e-5)
    assert float(rows["b", "1"]["volume_truth_ml"]) == pytest.approx(64 * 3 / 1000)
    assert float(rows["c", "1"]["hd95_mm"]) == pytest.approx(DIAGONAL, rel=1e-5)
    assert rows["d", "1"]["hd95_mm"] == ""
    assert (rows["d", "1"]["empty_truth"], rows["a", "1"]["empty_truth"]) == ("1", "0")


def test_labels_are_those_of_the_truths_and_cases_weigh_the_same(tmp_path):
    pairs = {
        "a": (write(tmp_path / "p/a.nii", block(1) + block(2, start=8)), write(tmp_path / "t/a.nii", block(1) + block(2, start=8))),
        "b": (write(tmp_path / "p/b.nii", block(5)), write(tmp_path / "t/b.nii", block(1))),
    }
    summary = evaluate_cases(pairs, tmp_path / "out")
    assert list(summary["per_label"]) == ["1", "2"]  # 5 is in no truth
    assert summary["per_case"] == {"a": 1.0, "b": 0.5}  # label 2 is empty in both: 1; label 1 is missed: 0
    named = evaluate_cases(pairs, tmp_path / "named", labels={"tumour": 1})
    assert (named["per_case"], list(named["per_label"])) == ({"a": 1.0, "b": 0.0}, ["tumour"])
    regions = evaluate_cases(pairs, tmp_path / "regions", regions={"whole": [1, 2, 5]})
    assert regions["dice"] == 1


def test_orientation_on_disk_does_not_matter(tmp_path):
    truth = write(tmp_path / "t/a.nii.gz", block(1))
    image = nib.load(truth)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    (tmp_path / "p").mkdir()
    nib.save(turned, tmp_path / "p/a.nii.gz")
    assert evaluate_folders(tmp_path / "p", tmp_path / "t", tmp_path / "out")["dice"] == 1


def test_a_missing_prediction_is_an_error_or_a_zero_in_every_label(folders, tmp_path):
    pred, truth = folders
    (pred / "d.nii.gz").unlink()
    write(pred / "e.nii.gz", block(1))
    with pytest.raises(InputError, match=r"no prediction for 1 of the 4 truths .*: d;"):
        evaluate_folders(pred, truth, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = evaluate_folders(pred, truth, tmp_path / "out", allow_missing=True)
    assert summary["per_case"]["d"] == 0  # though there was nothing to find
    assert (summary["without_prediction"], summary["without_truth"], summary["distances_left_out"]) == (["d"], ["e"], 0)


@pytest.mark.parametrize("changes", [{"spacing": (1.0, 1.5, 2.2)}, {"origin": (0, 3, 0)}])
def test_grids_that_differ_are_refused_with_their_numbers_and_leave_nothing(folders, tmp_path, changes):
    pred, truth = folders
    for case in "abcd":
        write(pred / f"{case}.nii.gz", block(1), **changes)
    with pytest.raises(
        GeometryError,
        match=r"none of the 4 .* case a: .*a\.nii\.gz has 14×12×10 voxels of .* the truth .* has 14×12×10 voxels of 1×1\.5×2 mm",
    ):
        evaluate_folders(pred, truth, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prediction_on_another_channels_grid_is_brought_onto_the_truths(tmp_path):
    """The same block at half the voxel size, which is the same block in the world; and one that lies elsewhere."""
    fine = np.kron(block(1), np.ones((2, 2, 2), np.uint8))
    half = tuple(value / 2 for value in SPACING)
    origin = tuple(-value / 4 for value in SPACING)
    truth = write(tmp_path / "t/a.nii.gz", block(1))
    pairs = {"a": (write(tmp_path / "p/a.nii.gz", fine, spacing=half, origin=origin), truth)}
    with pytest.raises(GeometryError, match="--resample"):
        evaluate_cases(pairs, tmp_path / "out")
    assert evaluate_cases(pairs, tmp_path / "out", resample=True)["dice"] == 1
    apart = {"b": (write(tmp_path / "p/b.nii.gz", fine, spacing=half, origin=(500, 0, 0)), truth)}
    assert [item["case"] for item in evaluate_cases(pairs | apart, tmp_path / "out", resample=True)["left_out"]] == ["b"]


def test_an_unusable_case_is_listed_and_the_others_are_scored(folders, tmp_path, capsys):
    pred, truth = folders
    write(pred / "b.nii.gz", block(1), origin=(0, 3, 0))
    (pred / "c.nii.gz").write_bytes(b"<html>")
    (truth / "d.nii.gz").write_bytes(b"garbage")
    assert main(["evaluate", str(pred), str(truth), "--out", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr()
    assert "over 1 cases" in shown.out and "left out: c: prediction.nii.gz" in shown.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["per_case"] == {"a": 1.0} and {case for case, _ in rows_of(tmp_path / "out")} == {"a"}
    reasons = {item["case"]: item["reason"] for item in summary["left_out"]}
    assert list(reasons) == ["b", "c", "d"]
    assert "14×12×10 voxels" in reasons["b"] and "HTML" in reasons["c"] and reasons["d"].startswith("truth.nii.gz")
    assert str(tmp_path) not in json.dumps(summary)


def test_folders_that_do_not_pair_or_hold_nothing_are_refused(folders, tmp_path):
    pred, truth = folders
    write(tmp_path / "other" / "x.nii.gz", block(1))
    with pytest.raises(InputError, match=r"no case in common: the predictions are of x, the truths of a, b, c, d"):
        evaluate_folders(tmp_path / "other", truth, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(InputError, match=folder.name):
            evaluate_folders(pred, folder, tmp_path / "out")


def test_truths_without_any_label_are_refused(tmp_path):
    write(tmp_path / "p/a.nii", block(0)), write(tmp_path / "t/a.nii", block(0))
    with pytest.raises(InputError, match="none of the 1 truths holds a label"):
        evaluate_folders(tmp_path / "p", tmp_path / "t", tmp_path / "out")


@pytest.mark.parametrize(
    "names",
    [
        ["a.nii.gz", "b.nii.gz"],
        ["a_seg.nii.gz", "b_seg.nii.gz", "a_T1.nii.gz", "b_T1.nii.gz"],
        ["labelsTr/a.nii.gz", "labelsTs/b.nii.gz", "imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"],
        ["labels/a.nii.gz", "labels/b.nii.gz"],
        ["a/T1.nii.gz", "a/tumour.nii.gz", "b/T1.nii.gz", "b/tumour.nii.gz"],
    ],
)
def test_labels_are_found_in_the_common_layouts(tmp_path, names):
    for name in names:
        write(tmp_path / name, block(1))
    found = label_files(tmp_path)
    assert sorted(found) == ["a", "b"]
    assert all(
        path.parent.name.startswith("labels") or path.name.startswith(("a.", "b.", "a_seg", "b_seg", "tumour")) for path in found.values()
    )


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["images/{}"], "labels/{}_seg"),
        (["images/img{}"], "labels/label{}"),
        (["T1/{}_T1", "FLAIR/{}_FLAIR"], "labels/{}_seg"),
        (["{}/T1"], "labels/{}_seg"),
        (["scans/{}"], "masks/{}"),
        (["{}/T1"], "{}/labels/tumour"),
        (["images/case_{}"], "labels/case_{}"),
    ],
)
def test_truths_are_called_as_segment_calls_their_scans(tmp_path, images, labels):
    for case in ("0001", "0002"):
        for name in (*images, labels):
            write(tmp_path / f"{name.format(case)}.nii.gz", block(1))
    found = label_files(tmp_path)
    assert sorted(found) == [case.id for case in find_cases(tmp_path, labels=False)] and len(found) == 2
    assert sorted(found.values()) == sorted(tmp_path / f"{labels.format(case)}.nii.gz" for case in ("0001", "0002"))


def test_labels_that_a_dataset_json_does_not_list_are_truths_too(tmp_path):
    for name in ("imagesTr/a", "labelsTr/a", "labelsTs/b"):
        write(tmp_path / f"{name}.nii.gz", block(1))
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "absent")]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"1": "x"}, "training": listed, "test": []}))
    assert sorted(label_files(tmp_path)) == ["a", "b"]


def test_labels_beside_folders_of_no_known_layout_are_called_by_their_stems(tmp_path):
    for name in ("labels/a_x", "x/T1", "x/y/z", "other/b"):
        write(tmp_path / f"{name}.nii.gz", block(1))
    (tmp_path / "labels/dataset.json").write_text("[]")
    (tmp_path / "x/dataset.json").write_text("[]")
    assert list(label_files(tmp_path)) == ["a_x"]


def test_two_labels_for_one_case_are_refused(tmp_path):
    write(tmp_path / "a_seg.nii.gz", block(1)), write(tmp_path / "a_mask.nii.gz", block(1))
    with pytest.raises(InputError, match="case a has two label files"):
        label_files(tmp_path)


def test_the_summary_is_the_mean_over_cases_of_the_mean_over_labels():
    score = {"iou": 0, "surface_dice": 0, "volumetric_similarity": 0, "volume_pred_ml": 0, "volume_truth_ml": 0}
    distances = dict.fromkeys(("hausdorff_mm", "hd95_mm", "assd_mm"), float("nan"))
    flags = {"empty_pred": False, "empty_truth": False}
    rows = [
        Row(case, label, dice=d, **score, **distances, **flags) for case, label, d in [("a", "1", 0.2), ("a", "2", 0.4), ("b", "1", 0.9)]
    ]
    summary = summarise(rows, tolerance_mm=2.0)
    assert summary["dice"] == pytest.approx((0.3 + 0.9) / 2)
    assert summary["per_label"]["1"]["hd95_mm"] is None
    assert summary["distances_left_out"] == 3
    json.dumps(summary, allow_nan=False)


def test_what_is_predicted_where_nobody_contoured_counts_neither_way(tmp_path):
    """The truth's lower half is the label, its upper half was not looked at; a prediction of both is perfect, and half of it is not."""
    truth = block(1)
    truth[4:6, 3:7, 3:7] = 9
    pairs = {
        case: (write(tmp_path / f"{case}_pred.nii", guess), write(tmp_path / f"{case}_truth.nii", truth))
        for case, guess in (("all", block(1)), ("upper", np.where(truth == 9, 1, 0).astype(np.uint8)))
    }
    recipe = Recipe(channels=("T1",), spacing=(1, 1, 1), intensity=("zscore",), labels={"ball": 1, "ignore": 9})
    assert evaluate_cases(pairs, tmp_path / "out", **structures_of(recipe))["per_case"] == {"all": 1.0, "upper": 0.0}
    assert evaluate_cases(pairs, tmp_path / "naive", labels={"ball": 1})["per_case"]["all"] == pytest.approx(2 / 3)
    found = evaluate_cases(pairs, tmp_path / "found", ignore=[9])  # no label is named: the ignored value is none of those found
    assert found["per_case"] == {"all": 1.0, "upper": 0.0} and list(found["per_label"]) == ["1"]


def test_which_of_several_labels_is_the_truth_can_be_said(tmp_path):
    for case in ("a", "b"):
        write(tmp_path / "truth" / case / "T1.nii.gz", block(0))
        write(tmp_path / "truth" / case / "oedema_seg.nii.gz", block(1, 5))
        write(tmp_path / "truth" / case / "tumour_seg.nii.gz", block(1))
        write(tmp_path / "pred" / f"{case}.nii.gz", block(1))
        write(tmp_path / "flat" / f"{case}_tumour.nii.gz", block(1))
        write(tmp_path / "flat" / f"{case}_lesion.nii.gz", block(1, 5))
    pred = tmp_path / "pred"
    with pytest.raises(InputError, match="two label files"):
        evaluate_folders(pred, tmp_path / "truth", tmp_path / "out")
    assert evaluate_folders(pred, tmp_path / "truth", tmp_path / "out", label_name="tumour_seg")["dice"] == 1
    assert evaluate_folders(pred, tmp_path / "truth", tmp_path / "out2", label_name="oedema_seg")["dice"] < 1
    with pytest.raises(InputError, match="no label is called tumor_seg; there are oedema_seg, tumour_seg"):
        evaluate_folders(pred, tmp_path / "truth", tmp_path / "out3", label_name="tumor_seg")
    assert evaluate_folders(pred, tmp_path / "flat", tmp_path / "out4", label_name="tumour")["dice"] == 1
