"""Miniature copies in each dataset's layout are read with the official channels, labels, splits and folds; usual damage is named."""

import json
import shutil

import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.datasets import check_dataset, find_dataset, list_datasets, open_dataset
from jaxseg.data.datasets.spheres import Sphere, draw_spheres
from jaxseg.data.io import load_label
from jaxseg.data.recipe import Recipe
from jaxseg.data.store import open_store
from jaxseg.data.volume import Grid
from jaxseg.errors import ConfigError, GeometryError, InputError
from tests.mini_datasets import brats, decathlon, luna, write

OLD, NEW = "flair t1 t1ce t2", "t1c t1n t2f t2w"
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1000{}"
ANNOTATIONS = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def splits(copy):
    return {case.id: case.split for case in copy.cases}


def test_every_dataset_makes_a_recipe_and_says_what_is_owed():
    for dataset in list_datasets():
        recipe = Recipe(
            dataset.channels, (1, 1, 1), ("zscore",) * len(dataset.channels), labels=dict(dataset.labels), regions=dataset.regions
        )
        assert set(recipe.values) == dataset.values and dataset.licence and dataset.citation and dataset.layout and dataset.source, (
            dataset.name
        )
    assert len([dataset for dataset in list_datasets() if dataset.name.startswith("msd")]) == 10


def test_label_schemes_of_the_years():
    schemes = {
        name: {key: tuple(value) for key, value in find_dataset(name).labels.items()}
        for name in ("brats2020", "brats2023_gli", "brats2024_ped")
    }
    assert schemes["brats2020"] == {"whole tumour": (1, 2, 4), "tumour core": (1, 4), "enhancing tumour": (4,)}
    assert schemes["brats2023_gli"]["enhancing tumour"] == (3,) and schemes["brats2024_ped"]["enhancing tumour"] == (1,)
    assert find_dataset("brats2024_gli").labels["resection cavity"] == [4]


@pytest.mark.parametrize("folder", ["MICCAI_BraTS2020_TrainingData", "my tumours"])
def test_brats_until_2021(tmp_path, folder):
    root = tmp_path / folder
    brats(root / "HGG", "BraTS20_Training_001", OLD, "seg", end=".nii")
    case = brats(root, "BraTS20_Training_355", OLD, None, end=".nii")
    write(case / "W39_1998.09.19_Segm.nii", (1, 2, 4))
    brats(root, "BraTS20_Validation_001", OLD, None)
    (root / "HGG/BraTS20_Training_001/._BraTS20_Training_001_t1.nii").write_bytes(b"")
    write(root / "__MACOSX/BraTS20_Training_009_t1.nii.gz")
    copy = open_dataset("BraTS2020", root)
    assert splits(copy) == {"BraTS20_Training_001": "train", "BraTS20_Training_355": "train", "BraTS20_Validation_001": "validation"}
    assert copy.cases.channels == ("T1", "T1C", "T2", "FLAIR") and copy.cases.regions and len(copy.cases.labelled) == 2
    assert copy.cases.cases[0].images["T1C"].name == "BraTS20_Training_001_t1ce.nii" and not copy.faults


def test_a_renamed_case_folder_keeps_its_id_and_2018_has_ids_of_many_words(tmp_path):
    brats(tmp_path, "Brats18_CBICA_AAB_1", OLD, "seg").rename(tmp_path / "patient one")
    assert splits(open_dataset("brats2018", tmp_path)) == {"Brats18_CBICA_AAB_1": "train"}


def test_brats_since_2023_and_its_patients(tmp_path):
    for point in ("000", "001"):
        brats(tmp_path, f"BraTS-GLI-00005-{point}", NEW, "seg", (1, 2, 3), dash="-")
    copy = open_dataset("brats2023_gli", tmp_path)
    assert set(copy.patients.values()) == {"BraTS-GLI-00005"} and len(copy.cases) == 2
    assert {name: path.name[20:23] for name, path in copy.cases.cases[0].images.items()} == {
        "T1": "t1n",
        "T1C": "t1c",
        "T2": "t2w",
        "FLAIR": "t2f",
    }
    brats(tmp_path / "rt", "BraTS-MEN-RT-0003-1", "t1c", "gtv", (1,))
    assert splits(open_dataset("brats2024_menrt", tmp_path)) == {"BraTS-MEN-RT-0003-1": "train"}


def test_another_years_copy_is_recognised_by_names_and_by_values(tmp_path):
    brats(tmp_path, "BraTS-PED-00001-000", NEW, "seg", (1, 2, 3), dash="-")
    with pytest.raises(InputError, match=r"no case of brats2021 .* it looks like brats2023_ped or brats2024_ped"):
        open_dataset("brats2021", tmp_path)
    root = tmp_path / "gli"
    brats(root, "BraTS-GLI-00001-000", NEW, "seg", (1, 2, 3, 4), dash="-")
    faults = "\n".join(check_dataset("brats2023_gli", root).faults)
    assert "BraTS-GLI-00001-000: its label has the values 4; expected 0, 1, 2, 3" in faults and "those of brats2024_gli" in faults
    assert not check_dataset("brats2024_gli", root).faults and not check_dataset("brats2023_gli", root, voxels=False).faults


def test_what_a_copy_lacks_is_named(tmp_path):
    root = tmp_path / "TrainingData"
    brats(root, "BraTS2021_00000", "t1 t1ce t2", "seg")
    brats(root, "BraTS2021_00002", OLD, None)
    brats(root, "BraTS2021_00003", "", "seg")
    brats(root, "BraTS2021_00005", OLD, None)
    write(root / "BraTS2021_00005/BraTS2021_00005_seg.nii.gz", (1,), affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    brats(root / "again", "BraTS2021_00005", "t1", None)
    (root / "BraTS2021_00002/BraTS2021_00002_t2.nii.gz").write_bytes(b"<html>")
    checked = check_dataset("brats2021", root)
    for fault in (
        "BraTS2021_00000: lacks FLAIR",
        "BraTS2021_00002: a case of the train split without its label",
        "BraTS2021_00003: has a label (BraTS2021_00003_seg.nii.gz) but no image",
        "BraTS2021_00005: the label lies on",
        "are both its T1",
        "this is an HTML page",
    ):
        assert any(fault in found for found in checked.faults), (fault, checked.faults)
    assert len(checked.faults) == 6 and len(checked.copy.cases) == 3


@pytest.mark.parametrize(
    "dataset", [dataset for dataset in list_datasets() if dataset.name.startswith("msd")], ids=lambda dataset: dataset.name
)
def test_decathlon(tmp_path, dataset):
    prefix = dataset.layout.split("imagesTr/")[1].split("_001")[0]
    decathlon(tmp_path, dataset.title.split(", ")[1], prefix, [*dataset.channels], [*dataset.labels], len(dataset.channels))
    checked = check_dataset(dataset.name, tmp_path)
    assert checked.faults == () and splits(checked.copy) == {f"{prefix}_001": "train", f"{prefix}_002": "train", f"{prefix}_003": "test"}
    case = checked.copy.cases.cases[0]
    assert tuple(case.images) == dataset.channels and case.packed == (dataset.channels if len(dataset.channels) > 1 else ())
    assert any(f"2 train of {dataset.sizes['train']}" in line for line in checked.lines)


def test_decathlon_faults(tmp_path):
    folder = decathlon(tmp_path, "Prostate_renamed", "prostate", ["T2", "ADC"], ["PZ", "TZ"], channels=3)
    data = json.loads((folder / "dataset.json").read_text()) | {"modality": {"0": "T2"}, "labels": {"0": "background", "1": "prostate"}}
    (folder / "dataset.json").write_text(json.dumps(data))
    shutil.copy(folder / "imagesTr/prostate_001.nii.gz", folder / "imagesTr/prostate_001_0000.nii.gz")
    faults = "\n".join(check_dataset("Task05_Prostate", tmp_path).faults)
    for part in (
        "holds 3 channels, expected 2: T2, ADC",
        "1 channels, expected 2",
        "label values [1], expected 1 to 2",
        "nnU-Net's conversion",
    ):
        assert part in faults
    (folder / "dataset.json").unlink()
    assert any("dataset.json is missing" in fault for fault in open_dataset("msd05_prostate", tmp_path).faults)


def test_lits(tmp_path):
    write(tmp_path / "Training Batch 1/volume-0.nii")
    write(tmp_path / "Training Batch 2/volume-28.nii")
    for number in (0, 28):
        write(tmp_path / f"labels/segmentation-{number}.nii", (1, 2))
    write(tmp_path / "test/test-volume-0.nii")
    checked = check_dataset("lits", tmp_path)
    assert splits(checked.copy) == {"volume-0": "train", "volume-28": "train", "test-volume-0": "test"} and not checked.faults
    assert checked.copy.cases.labels == {"liver": [1, 2], "tumour": [2]}


def test_kits(tmp_path):
    for case in ("case_00000", "case_00209", "case_00210", "patient7"):
        write(tmp_path / "data" / case / "imaging.nii.gz")
        if case != "case_00210":
            write(tmp_path / "data" / case / "segmentation.nii.gz", (1, 2))
    copy = open_dataset("kits19", tmp_path)
    assert splits(copy) == {"case_00000": "train", "case_00209": "train", "case_00210": "test"}
    assert len(copy.faults) == 1 and "folder patient7: expected a name such as case_00000" in copy.faults[0]
    later = open_dataset("kits23", tmp_path / "data")
    assert splits(later)["case_00210"] == "train" and any("case_00210: a case of the train split" in fault for fault in later.faults)
    assert later.cases.labels == {"kidney and masses": [1, 2, 3], "masses": [2, 3], "tumour": [2]}
    assert splits(open_dataset("kits19", tmp_path / "data/case_00000")) == {"case_00000": "train"}


def test_amos_tells_ct_from_mr_by_the_id(tmp_path):
    for folder, number, labelled in (("Tr", 1, True), ("Tr", 507, True), ("Va", 8, True), ("Ts", 600, False), ("Ts", 2, True)):
        write(tmp_path / f"amos22/images{folder}/amos_{number:04d}.nii.gz")
        if labelled:
            write(tmp_path / f"amos22/labels{folder}/amos_{number:04d}.nii.gz", range(1, 16))
    assert splits(open_dataset("amos22_ct", tmp_path)) == {"amos_0001": "train", "amos_0002": "test", "amos_0008": "validation"}
    assert splits(open_dataset("amos22_mr", tmp_path)) == {"amos_0507": "train", "amos_0600": "test"}
    checked = check_dataset("amos22", tmp_path)
    assert len(checked.copy.cases) == 5 and not checked.faults and len(checked.copy.cases.labels) == 15


def test_btcv_and_transunets_split(tmp_path):
    for number in (1, 5, 40):
        write(tmp_path / f"Training/img/img{number:04d}.nii.gz")
        write(tmp_path / f"Training/label/label{number:04d}.nii.gz", range(1, 14))
    write(tmp_path / "Testing/img/img0061.nii.gz")
    assert splits(open_dataset("btcv", tmp_path)) == {"img0001": "train", "img0005": "train", "img0040": "train", "img0061": "test"}
    checked = check_dataset("synapse", tmp_path)
    assert splits(checked.copy) == {"img0001": "test", "img0005": "train", "img0040": "train"} and not checked.faults
    assert find_dataset("synapse").sizes == {"train": 18, "test": 12} and find_dataset("btcv").sizes == {"train": 30, "test": 20}


def test_luna_nodules_are_spheres_on_the_scans_grid(tmp_path):
    for number in range(3):
        luna(tmp_path, UID.format(number), number * 4)
    luna(tmp_path / "seg-lungs-LUNA16", UID.format(0), 0)
    # the nodule's centre is voxel (5, 6, 7): LPS (-5, -14, -23)
    (tmp_path / "CSVFILES").mkdir()
    (tmp_path / "CSVFILES/annotations.csv").write_text(f"{ANNOTATIONS}{UID.format(0)},-5,-14,-23,6\n{UID.format(2)},100,0,0,6\n")
    checked = check_dataset("luna16", tmp_path)
    assert [case.fold for case in checked.copy.cases] == [0, 4, 8] and any("2 nodules in 2 scans" in line for line in checked.lines)
    assert len(checked.faults) == 1 and "do scan and table belong together?" in checked.faults[0]
    copy = open_dataset("luna16", tmp_path, drawn=tmp_path / "drawn")
    assert copy.origin(tuple(case.id for case in copy.cases))["folds"] == [[UID.format(0)], [], [], [], [UID.format(1)]]
    assert list(copy.left_out) == [UID.format(2)] and len(copy.cases) == 2
    label = load_label(copy.cases.cases[0].label, reorient=False).array[..., 0]
    index = np.indices(label.shape).transpose(1, 2, 3, 0)
    assert np.array_equal(label, (((index - (5, 6, 7)) ** 2).sum(-1) <= 9).astype(np.uint8)) and label.sum() == 123
    assert load_label(copy.cases.cases[1].label).array.max() == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "drawn").iterdir()}
    open_dataset("luna16", tmp_path, drawn=tmp_path / "drawn")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "drawn").iterdir()} and not any(
        "1.3.6" in path.name for path in made
    )


def test_luna_faults(tmp_path):
    luna(tmp_path, UID.format(0), 3).with_suffix(".raw").unlink()
    (tmp_path / "subset3").rename(tmp_path / "third")
    faults = "\n".join(open_dataset("luna16", tmp_path).faults)
    assert ".raw is missing" in faults and "fold is unknown" in faults and "annotations.csv is missing" in faults
    with pytest.raises(InputError, match="nodules cannot be drawn"):
        open_dataset("luna16", tmp_path, drawn=tmp_path / "drawn")
    for text, message in (
        (f"{ANNOTATIONS}a,1,2,x,4\n", "line 2: expected numbers"),
        (f"{ANNOTATIONS}a,1,2,3,0\n", "line 2: .* diameter above 0"),
        ("a,b\n", "columns a, b"),
    ):
        (tmp_path / "annotations.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            open_dataset("luna16", tmp_path, drawn=tmp_path / "drawn")


def test_a_sphere_has_its_volume_on_any_grid_and_a_small_one_is_kept():
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (0.5, 0.6, 1.25), (-40, 30, 7)
    grid = Grid((60, 50, 30), affine)
    centre = affine @ (30.3, 25.4, 15.2, 1)
    drawn = draw_spheres(grid, [Sphere(tuple(centre[:3]), 8.0)])
    assert drawn.sum() * grid.voxel_volume_ml * 1000 == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.02)
    assert draw_spheres(grid, [Sphere(tuple(centre[:3]), 0.05)]).sum() == 1
    with pytest.raises(GeometryError, match="case x: a finding"):
        draw_spheres(grid, [Sphere((900.0, 0.0, 0.0), 1.0)], "x")


def test_unknown_names_and_folders():
    with pytest.raises(ConfigError, match=r"perhaps you meant .*brats2021"):
        find_dataset("brats21")
    with pytest.raises(ConfigError, match=r"perhaps you meant .*brats2023_gli"):
        find_dataset("GLI")
    with pytest.raises(ConfigError, match="there is: brats2018"):
        find_dataset("")
    with pytest.raises(InputError, match="no such folder"):
        open_dataset("lits", "absent")


def test_channels_are_chosen_by_name(tmp_path):
    decathlon(tmp_path, "Task01_BrainTumour", "BRATS", ["FLAIR", "T1w", "t1gd", "T2w"], ["edema", "non", "enh"], 4)
    case = open_dataset("msd01_braintumour", tmp_path, channels=["t1c", "FLAIR"]).cases.cases[0]
    assert list(case.images) == ["t1c", "FLAIR"] and case.packed == ("FLAIR", "T1", "T1C", "T2")
    with pytest.raises(InputError, match="has no channel PET; there is: FLAIR, T1, T1C, T2"):
        open_dataset("msd01_braintumour", tmp_path, channels=["PET"])


def test_command_line(tmp_path, capsys):
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert all(dataset.name in listed for dataset in list_datasets())
    brats(tmp_path, "BraTS2021_00000", OLD, "seg")
    assert main(["datasets", "brats2021", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "cases: 1 (1 train of 1251)" in shown and "licence: " in shown and "cite: " in shown and "values found: 1 in 1 cases" in shown
    (tmp_path / "BraTS2021_00000/BraTS2021_00000_t2.nii.gz").unlink()
    assert main(["datasets", "brats2021", str(tmp_path)]) == 3 and "fault: BraTS2021_00000: lacks T2" in capsys.readouterr().err
    assert main(["datasets", "brats21"]) == 2 and "perhaps you meant" in capsys.readouterr().err


def test_a_dataset_becomes_a_store_with_its_regions_patients_and_splits(tmp_path, capsys):
    for number in (1, 2):
        brats(tmp_path / "in", f"BraTS-GLI-00007-00{number}", NEW, "seg", (1, 2, 3), dash="-")
    brats(tmp_path / "in", "BraTS-GLI-00008-001", NEW, None, dash="-")
    out = tmp_path / "store"
    command = ["prepare", str(tmp_path / "in"), "--dataset", "brats2023_gli", "--out", str(out), "--processes", "1"]
    assert main(command) == 0, capsys.readouterr().err
    store = open_store(out)
    assert (
        store.recipe.regions and store.recipe.labels["tumour core"] == [1, 3] and set(store.recipe.channels) == {"T1", "T1C", "T2", "FLAIR"}
    )
    assert len(store.labelled) == 2 and len({store.entry(name).patient for name in store.names}) == 2
    origin = json.loads((out / "origin.json").read_text())
    assert origin["train"] == list(store.labelled) and origin["validation"] == ["BraTS-GLI-00008-001"] and origin["licence"]
    assert main([*command, "--label-name", "seg"]) == 2 and "leave it out" in capsys.readouterr().err
