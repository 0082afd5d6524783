"""A folder of predictions is always that of the model, the scans and the settings it was asked for last."""

import dataclasses
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from jaxseg.data.cases import find_cases
from jaxseg.errors import InputError
from jaxseg.files import read_json, write_json
from jaxseg.infer import folder as infer_folder
from jaxseg.infer.folder import segment_cases, segment_folder
from jaxseg.pairing import label_files
from jaxseg.zoo import create_model, load_model, save_model
from tests.tiny_store import write_scans


def make_model(folder, seed, **recipe):
    network = create_model("unetr_tiny", in_channels=2, crop=8, token=4, width=24, depth=1, heads=2, feature=4, seed=seed)
    recipe = {
        "channels": ["T1", "T2"],
        "spacing": [2.0, 2.0, 2.5],
        "intensity": ["zscore", "zscore"],
        "labels": {"ball": 1},
    } | recipe
    return save_model(folder, network, {"channels": ["T1", "T2"], "recipe": recipe, "crop": [8, 8, 8]})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return make_model(folder / "one", 0), make_model(folder / "two", 1)


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans", count=2)


@pytest.fixture
def segmented(monkeypatch):
    """The scans that went through a network, in order."""
    seen, real = [], infer_folder.segment

    def segment(model, scan, **settings):
        seen.append(scan.source.paths[0].parent.name)
        return real(model, scan, **settings)

    monkeypatch.setattr(infer_folder, "segment", segment)
    return seen


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_labels_of_another_model_are_made_again(models, scans, tmp_path, segmented, capsys):
    segment_folder(models[0], [scans], tmp_path / "out")
    segment_folder(models[1], [scans], tmp_path / "alone")
    before = voxels(tmp_path / "out" / "case_0.nii.gz")
    capsys.readouterr()
    segment_folder(models[1], [scans], tmp_path / "out")
    assert "0 of 2 label files kept" in (said := capsys.readouterr().err) and "2 of another origin made again" in said
    for name in ("case_0.nii.gz", "case_1.nii.gz"):
        np.testing.assert_array_equal(voxels(tmp_path / "out" / name), voxels(tmp_path / "alone" / name))
    assert not np.array_equal(before, voxels(tmp_path / "out" / "case_0.nii.gz"))
    assert len(segmented) == 6


def test_the_same_again_is_kept_and_counted(models, scans, tmp_path, segmented, capsys):
    segment_folder(models[0], [scans], tmp_path / "out")
    assert capsys.readouterr().err == ""
    (tmp_path / "out" / "case_1.nii.gz").unlink()
    (scans / "case_0" / "seg.nii.gz").write_bytes(b"a label is not what a scan is segmented by")
    segment_folder(models[0], [scans], tmp_path / "out")
    assert segmented == ["case_0", "case_1", "case_1"]
    assert "1 of 2 label files kept" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["scan", "overlap", "air", "values", "damaged record"])
def test_another_scan_or_setting_is_never_taken_for_the_same(models, scans, tmp_path, segmented, change):
    out, model, overlap = tmp_path / "out", shutil.copytree(models[0], tmp_path / "model"), 0.5
    segment_folder(model, [scans], out)
    if change == "scan":
        shutil.copy2(scans / "case_1" / "T2.nii.gz", scans / "case_0" / "T2.nii.gz")
    elif change == "overlap":
        overlap = 0.25
    elif change == "values":
        card = read_json(model / "model.json")
        write_json(model / "model.json", card | {"recipe": card["recipe"] | {"labels": {"ball": 7}}})
    else:
        (out / ".made_from" / "case_0.json").write_text("[")
    segment_folder(model, [scans], out, overlap=overlap, skip_air=change != "air")
    assert segmented[2:] == (["case_0"] if change in ("scan", "damaged record") else ["case_0", "case_1"])


def test_what_was_made_before_an_interruption_is_kept(models, scans, tmp_path, segmented, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_folder(models[0], [scans], tmp_path / "out", progress=stop)
    segment_folder(models[0], [scans], tmp_path / "out")
    assert segmented == ["case_0", "case_1"]


def test_an_interruption_between_labels_and_record_leaves_no_false_record(models, scans, tmp_path, segmented, monkeypatch):
    def until_finished(path, record):
        if "unfinished" not in record:
            raise KeyboardInterrupt
        write_json(path, record)

    segment_folder(models[0], [scans], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("jaxseg.infer.made_from.write_json", until_finished)
        with pytest.raises(KeyboardInterrupt):
            segment_folder(models[1], [scans], tmp_path / "out")
    segment_folder(models[0], [scans], tmp_path / "out")
    assert segmented == ["case_0", "case_1", "case_0", "case_0"]


def test_labels_of_a_scan_that_can_no_longer_be_segmented_are_removed(models, scans, tmp_path):
    segment_folder(models[0], [scans], tmp_path / "out")
    (scans / "case_0" / "T1.nii.gz").write_bytes(b"damaged")
    (left_out,) = segment_folder(models[0], [scans], tmp_path / "out")
    assert left_out[0] == "case_0"
    assert set(label_files(tmp_path / "out")) == {"case_1"}


def test_labels_without_a_channel_do_only_where_that_is_allowed(models, scans, tmp_path, segmented):
    (scans / "case_0" / "T2.nii.gz").unlink()
    for allowed, missed in ((True, 0), (True, 0), (False, 1)):
        assert len(segment_folder(models[0], [scans], tmp_path / "out", allow_missing=allowed)) == missed
    assert segmented == ["case_0", "case_1", "case_0"]  # the last was refused


def test_a_model_in_memory_keeps_nothing_because_nobody_knows_its_weights(models, scans, tmp_path, segmented):
    model = load_model(models[0])
    model = dataclasses.replace(model, card={name: value for name, value in model.card.items() if name != "weights"})
    cases = infer_folder.find_cases(scans).cases
    for _ in range(2):
        assert segment_cases(model, cases, tmp_path / "out") == []
    assert segmented == ["case_0", "case_1"] * 2


def test_the_records_name_nobody_and_do_not_disturb_evaluation(models, scans, tmp_path):
    segment_folder(models[0], [scans], tmp_path / "out")
    assert set(label_files(tmp_path / "out")) == {"case_0", "case_1"}
    record = (tmp_path / "out" / ".made_from" / "case_0.json").read_text()
    assert "T1" not in record and "case" not in record and str(tmp_path) not in record


def test_labels_are_never_written_over_a_file_of_their_case(models, scans, tmp_path):
    for folder, kind in (("images", "T1"), ("labels", "seg")):
        (tmp_path / "flat" / folder).mkdir(parents=True)
        shutil.copy2(scans / "case_0" / f"{kind}.nii.gz", tmp_path / "flat" / folder / "case_0.nii.gz")
    for folder in ("images", "labels"):
        file = tmp_path / "flat" / folder / "case_0.nii.gz"
        before = file.read_bytes()
        with pytest.raises(InputError, match="case_0.nii.gz: this file .*case case_0.*choose another --out"):
            segment_folder(models[0], [tmp_path / "flat"], tmp_path / "flat" / folder, allow_missing=True)
        assert file.read_bytes() == before


@pytest.mark.parametrize("layout", ["a folder per case", "one case", "flat", "in a case"])
def test_predictions_below_the_scans_are_not_taken_for_scans(models, scans, tmp_path, segmented, layout):
    out = scans / "case_0" / "pred" if layout == "in a case" else scans / "pred"
    if layout == "one case":
        shutil.rmtree(scans / "case_1")
    if layout == "flat":
        for file in sorted(scans.glob("*/T?.nii.gz")):
            file.rename(scans / f"{file.parent.name}_{file.name}")
        for folder in ("case_0", "case_1"):
            shutil.rmtree(scans / folder)
    before = [case.id for case in find_cases(scans)]
    for _ in range(2):
        assert segment_folder(models[0], [scans], out) == []
    assert len(segmented) == len(before) and [case.id for case in find_cases(scans)] == before
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in before]


def test_predictions_among_the_scans_are_refused(models, scans, segmented):
    for out in (scans, scans / "case_1"):
        with pytest.raises(InputError, match="this is a folder of scans.*choose another --out, such as .*predictions"):
            segment_folder(models[0], [scans], out)
    assert not segmented and not list(scans.rglob(".made_from"))


def test_a_file_that_was_not_made_here_is_never_written_over_or_removed(models, scans, tmp_path):
    contours = tmp_path / "out" / "case_1.nii.gz"
    contours.parent.mkdir()
    contours.write_bytes((scans / "case_1" / "seg.nii.gz").read_bytes())
    (scans / "case_1" / "T1.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"case_1.nii.gz: this file was not written by .*move it away"):
        segment_folder(models[0], [scans], tmp_path / "out")
    assert contours.read_bytes() == (scans / "case_1" / "seg.nii.gz").read_bytes()
    assert not (tmp_path / "out" / "case_0.nii.gz").exists()


def test_a_folder_of_which_nothing_can_be_segmented_is_an_error(models, scans, tmp_path):
    for case in scans.iterdir():
        (case / "T1.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match="none of the 2 cases"):
        segment_folder(models[0], [scans], tmp_path / "out")


def test_numbers_in_names_are_channels_in_the_order_of_the_model(models, scans, tmp_path, segmented):
    """nnU-Net's image folders, which a model of its dataset knows by the names in dataset.json."""
    flat = tmp_path / "imagesTs"
    flat.mkdir()
    for case in scans.iterdir():
        for number, channel in enumerate(("T1", "T2")):
            shutil.copy(case / f"{channel}.nii.gz", flat / f"{case.name}_000{number}.nii.gz")
    segment_folder(models[0], [scans], tmp_path / "named")
    with pytest.warns(UserWarning, match="channels 0000, 0001 are taken for the model's T1, T2, in this order"):
        segment_folder(models[0], [flat], tmp_path / "numbered")
    for name in ("case_0", "case_1"):
        np.testing.assert_array_equal(voxels(tmp_path / "numbered" / f"{name}.nii.gz"), voxels(tmp_path / "named" / f"{name}.nii.gz"))


def test_files_of_two_patients_or_in_another_order_are_no_case(models, scans, tmp_path):
    made = {}
    for case in ("case_0", "case_1"):
        for number, channel in enumerate(("T1", "T2")):
            made[case, number] = shutil.copy(scans / case / f"{channel}.nii.gz", tmp_path / f"{case}_000{number}.nii.gz")
    for wrong in ([("case_0", 0), ("case_1", 0)], [("case_0", 1), ("case_0", 0)], [("case_0", 0), ("case_1", 1)]):
        with pytest.raises(InputError, match="not the channels of one scan in order"):
            segment_folder(models[0], [Path(made[each]) for each in wrong], tmp_path / "out")
    segment_folder(models[0], [Path(made["case_0", 0]), Path(made["case_0", 1])], tmp_path / "out")
