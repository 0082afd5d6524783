"""DICOM archives whose contours are SEG and RTSTRUCT objects: which scan each belongs to, the label files drawn, and what is refused."""

import shutil

import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.archive import index_archive
from jaxseg.data.contoured import find_contoured
from jaxseg.data.io import load_label, save_volume, scans
from jaxseg.data.volume import to_grid
from jaxseg.errors import InputError
from jaxseg.files import read_json
from jaxseg.prepare import prepare_folder
from tests.dicom_archive import box, drawn_in_seg, drawn_in_structures, scan, square
from tests.dicom_files import MR


@pytest.fixture
def archive(tmp_path):
    """Three patients: a SEG in a folder of its own, an RTSTRUCT beside its slices, and a scan that nobody contoured."""
    root = tmp_path / "archive"
    scan(root / "P001" / "ct", "one")
    tumour, oedema = box(slice(1, 3), slice(2, 4), slice(1, 3)), box(4, 4, 4)
    drawn_in_seg(root / "P001" / "seg", "one", {"Tumour": tumour, "Oedema": oedema})
    scan(root / "P002", "two")
    drawn_in_structures(root / "P002", "two", {"tumour ": [square(1), square(2)], "empty": []})
    scan(root / "P003", "three")
    return root


def stored_label(case):
    return load_label(case.label, reorient=False).array[..., 0]


def test_contours_become_label_files_on_the_grid_of_their_series_with_values_by_name(archive, tmp_path):
    found = find_contoured(archive, tmp_path / "drawn")
    one, two, three = found.cases
    assert not found.left_out and found.cases.labels == {"Oedema": 1, "Tumour": 2} and three.label is None
    expected = 2 * box(slice(1, 3), slice(2, 4), slice(1, 3)).astype(int) + box(4, 4, 4)
    np.testing.assert_array_equal(stored_label(one), expected)
    # Columns 2 to 4 lie at 1.5, 2.25, 3.0 mm; rows 2 to 4 at 1, 1.5, 2 mm.
    np.testing.assert_array_equal(stored_label(two), 2 * box(slice(2, 5), slice(2, 5), slice(1, 3)))
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "drawn").iterdir()}
    again = find_contoured(archive, tmp_path / "drawn")
    assert again == found and {path.name: path.stat().st_mtime_ns for path in (tmp_path / "drawn").iterdir()} == made


def test_a_store_is_prepared_of_them_with_the_names_of_the_structures(archive, tmp_path):
    store = prepare_folder(archive, tmp_path / "store", processes=1)
    assert store.recipe.labels == {"Oedema": 1, "Tumour": 2}
    assert [store.entry(name).labelled for name in store.names] == [True, True, False]
    millilitres = [store.entry(name).info["label_ml"]["2"] for name in store.names[:2]]
    assert millilitres == pytest.approx([8 * 0.75 / 1000, 18 * 0.75 / 1000], abs=1e-4)
    # Scans for that store's recipe keep its values, whatever else is contoured there.
    other = tmp_path / "other"
    scan(other / "P009", "nine")
    drawn_in_seg(other / "P009", "nine", {"Brainstem": box(0, 0, 0), "TUMOUR": box(1, 1, slice(1, 4))})
    like = prepare_folder(other, tmp_path / "second", like=tmp_path / "store", processes=1)
    assert like.recipe.labels == store.recipe.labels
    assert like.entry(like.names[0]).info["label_ml"] == {"1": 0.0, "2": pytest.approx(3 * 0.75 / 1000, abs=1e-4)}


def test_the_headers_of_an_archive_are_read_once(archive, tmp_path, monkeypatch):
    folders, real = [], scans._scans_of
    monkeypatch.setattr(scans, "_scans_of", lambda folder, *rest: (folders.append(folder.name), real(folder, *rest))[1])
    assert len(find_contoured(archive, tmp_path / "drawn").cases) == 3
    assert folders.count("P003") == 1  # nobody contoured it, so its grid is not asked for either


def test_an_index_of_them_gives_the_same_labels(archive, tmp_path, monkeypatch):
    direct = prepare_folder(archive, tmp_path / "direct", processes=1)
    monkeypatch.chdir(tmp_path)
    index_archive("archive", tmp_path / "index")  # its rows have relative paths, which hold from this folder on
    store = prepare_folder(tmp_path / "index", tmp_path / "store", processes=1)
    assert store.recipe.labels == direct.recipe.labels and not store.left_out
    volumes = [sorted(str(each.entry(name).info.get("label_ml")) for name in each.names) for each in (store, direct)]
    assert volumes[0] == volumes[1]
    # Contours below a root of their own, and a scan that lies below both.
    shutil.copytree(archive / "P002", tmp_path / "other" / "P002")
    shutil.move(archive / "P001" / "seg", tmp_path / "other" / "seg")
    index_archive(["archive", "other"], tmp_path / "two")
    both = prepare_folder(tmp_path / "two", tmp_path / "both", processes=1)
    assert sorted(str(both.entry(name).info.get("label_ml")) for name in both.names) == volumes[0]
    shutil.move(tmp_path / "other" / "seg", archive / "P001" / "seg")
    chosen = prepare_folder(tmp_path / "index", tmp_path / "chosen", label_name="tum*", processes=1)
    assert chosen.recipe.labels == {"tum": 1} and len(chosen.labelled) == 2
    drawn_in_seg(archive / "P001" / "again", "one", {"Tumour": box(1, 1, 1)})
    index_archive("archive", tmp_path / "index")
    (lost,) = prepare_folder(tmp_path / "index", tmp_path / "again", processes=1).left_out
    assert lost["name"].endswith("/contours") and "two of its DICOM objects" in lost["reason"] and "P001" not in str(lost)


def test_predictions_are_compared_with_them_by_the_values_that_the_model_gives_the_names(archive, tmp_path, capsys):
    values, pred = {"Tumour": 1, "Oedema": 3}, tmp_path / "pred"
    for case in find_contoured(archive, tmp_path / "drawn", labels=values).cases:
        made = load_label(case.label or find_contoured(archive, tmp_path / "drawn").cases.labelled[0].label)
        save_volume(made, pred / f"{case.id}.nii.gz")
    drawn_in_seg(archive / "P004", "four", {"Tumour": box(1, 1, 1)})
    scan(archive / "P004", "four")
    drawn_in_seg(archive / "P004" / "again", "four", {"Tumour": box(1, 1, 1)})
    verb = ["evaluate", str(pred), str(archive), "--out", str(tmp_path / "scores")]
    assert main(verb) == 2 and "--like MODEL" in capsys.readouterr().err
    assert main([*verb, "--labels", "Tumour=1,Oedema=3"]) == 3
    found = read_json(tmp_path / "scores/summary.json")
    assert found["per_case"] == {"P001_ct": 1.0, "P002": 1.0} and found["without_truth"] == ["P003"]
    assert [item["case"] for item in found["left_out"]] == ["P004/contours"]
    assert main([*verb, "--label-name", "tum*"]) == 3  # one structure, of value 1, in both
    assert main([*verb, "--labels", "liver=1"]) == 2 and "none of its DICOM contours is called liver" in capsys.readouterr().err


def test_structures_are_chosen_by_patterns(archive, tmp_path):
    drawn_in_seg(archive / "P003", "three", {"TUMOUR bed": box(1, 1, 1), "body": box(slice(0, 6), slice(0, 5), slice(0, 5))})
    with_all = find_contoured(archive, tmp_path / "drawn")
    assert "belong to other structures" in with_all.left_out["P003/contours"]
    assert [case.label is None for case in with_all.cases] == [False, False, True]
    chosen = find_contoured(archive, tmp_path / "drawn", label="tumour*, oedema")
    assert not chosen.left_out and chosen.cases.labels == {"tumour, oedema": 1}
    assert [int(stored_label(case).sum()) for case in chosen.cases] == [9, 18, 1]
    assert [case.label is None for case in find_contoured(archive, tmp_path / "drawn", label="oedema").cases] == [False, True, True]
    with pytest.raises(InputError, match=r"none of its DICOM contours is called liver; there are Oedema, TUMOUR bed, Tumour, body"):
        find_contoured(archive, tmp_path / "drawn", label="liver")


def test_contours_of_a_study_with_several_series_go_to_the_one_that_they_name(tmp_path):
    root = tmp_path / "archive"
    scan(root / "P001" / "t1", "one", sop_class=MR, Modality="MR", SeriesDescription="T1")
    scan(root / "P001" / "flair", "one", series="flair", sop_class=MR, Modality="MR", SeriesDescription="FLAIR", PixelSpacing=[1.0, 1.0])
    drawn_in_seg(root / "P001" / "seg", "one", {"tumour": box(1, 1, 1)})
    (case,) = find_contoured(root, tmp_path / "drawn").cases
    assert len(case.images) == 2 and stored_label(case).sum() == 1
    # What is drawn on a series that nobody asked for costs nothing of what is drawn on another.
    (root / "P001" / "other").mkdir()
    drawn_in_seg(root / "P001" / "other", "one", {"tumour": box(0, 0, 0)}, about="oneflair")
    found = find_contoured(root, tmp_path / "drawn", channels=["T1"])
    assert found.left_out == {}
    (case,) = found.cases
    assert len(case.images) == 1 and stored_label(case).sum() == 1
    shutil.rmtree(root / "P001" / "other")
    drawn_in_seg(root / "P001" / "seg", "one", {"tumour": box(1, 1, 1)}, about="")
    found = find_contoured(root, tmp_path / "drawn")
    assert "refers to 0 series of this folder, and its study has 2" in found.left_out[f"{case.id}/contours"] and not found.cases.labelled


def test_what_cannot_be_drawn_is_said_and_costs_no_scan(archive, tmp_path):
    """An archive is there to pretrain on, whatever somebody once drew in it."""
    drawn_in_seg(archive / "P002" / "second", "two", {"tumour": box(1, 1, 1)})
    scan(archive / "P004", "four")
    drawn_in_structures(archive / "P004", "four", {"Tumour": [square(1) + [0, 0, 400.0]]})
    found = find_contoured(archive, tmp_path / "drawn")
    assert [(case.id, case.label is not None) for case in found.cases] == [
        ("P001_ct", True),
        ("P002", False),
        ("P003", False),
        ("P004", False),
    ]
    assert "two of its DICOM objects hold contours called" in found.left_out["P002/contours"]
    assert "none of its 1 contours lies in a slice" in found.left_out["P004/contours"]
    assert not any(".dcm" in reason for reason in found.left_out.values())
    store = prepare_folder(archive, tmp_path / "store", processes=1)
    assert {item["name"] for item in store.left_out} == {"P002/contours", "P004/contours"}
    assert len(store.names) == 4 and store.labelled == store.names[:1]


def test_contours_of_other_names_or_of_too_many_leave_scans_without_labels(archive, tmp_path):
    found = find_contoured(archive, tmp_path / "drawn", labels={"liver": 1})
    assert len(found.cases) == 3 and not found.cases.labelled
    assert set(found.left_out) == {"P001_ct/contours", "P002/contours"} and "is called liver; there are" in found.left_out["P002/contours"]
    drawn_in_structures(archive / "P003", "three", {f"structure {number}": [square(1)] for number in range(254)})
    crowded = find_contoured(archive, tmp_path / "drawn")
    assert len(crowded.cases) == 3 and "have 256 names, more than labels can have" in crowded.left_out["P003/contours"]
    assert len(find_contoured(archive, tmp_path / "drawn", label="tumour").cases.labelled) == 2


def test_contours_between_slices_are_said(archive, tmp_path):
    drawn_in_structures(archive / "P003", "three", {"Tumour": [square(1), square(2) + [0, 0, 1.0]]})
    with pytest.warns(RuntimeWarning, match="contours of Tumour are not drawn: 1 between slices"):
        found = find_contoured(archive, tmp_path / "drawn")
    np.testing.assert_array_equal(stored_label(found.cases.cases[2]), 2 * box(slice(2, 5), slice(2, 5), 1))


@pytest.mark.realdata
def test_the_structure_set_of_a_real_patient_is_drawn_on_the_series_that_it_names(real_scans, tmp_path):
    """Three modalities with a structure set each: one is chosen by its name, and all together are no label."""
    folder = real_scans / "dicom" / "sarcoma_STS_002"
    (case,) = find_contoured(folder, tmp_path / "drawn", label="gtv_mass_mr*").cases
    published = load_label(real_scans / "sarcoma" / "STS_002" / "T1_tumour.nii.gz")
    ours = to_grid(load_label(case.label), published.grid, labels=True).array > 0
    both = np.count_nonzero(ours & (published.array > 0))
    assert 2 * both / (np.count_nonzero(ours) + np.count_nonzero(published.array)) >= 0.99
    all_three = find_contoured(folder, tmp_path / "drawn")
    assert "were drawn on different series" in all_three.left_out["sarcoma_STS_002/contours"] and not all_three.cases.labelled


@pytest.mark.realdata
def test_a_real_segmentation_is_paired_with_its_series(real_scans, tmp_path):
    example = real_scans / "dicom" / "dcmqi" / "segmentations" / "24x38x3"
    for part in ("image", "seg"):
        shutil.copytree(example / part, tmp_path / "P001" / part)
    found = find_contoured(tmp_path / "P001", tmp_path / "drawn")
    (case,) = found.cases
    assert found.cases.labels == {"Liver": 1}
    reference = load_label(example / "nrrd" / "label.nrrd")
    np.testing.assert_array_equal(to_grid(load_label(case.label), reference.grid, labels=True).array > 0, reference.array > 0)
