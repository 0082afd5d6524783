"""Nothing vanishes without a word: the user's own files, scans that cannot be reached, and how a run ended."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxseg.cli import BROKEN_PIPE, main
from jaxseg.data.archive import read_index
from jaxseg.data.catalog import open_store
from jaxseg.data.io import save_volume
from jaxseg.data.io.scans import find_scans
from jaxseg.data.volume import Volume
from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.infer.predict import recipe_of_model, segment
from jaxseg.plan_file import write_plan
from jaxseg.zoo import create_model, load_model, save_model
from tests import dicom_files
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("vanishing") / "scans", 3, channels=("T1",))


def run(capsys, *arguments):
    """Exit code, and what was printed of results and of troubles."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


def test_prepare_and_index_leave_files_that_they_did_not_write(scans, tmp_path, capsys):
    own = [tmp_path / "store" / name for name in ("staging/notes.txt", "cache/precious.npy", "tfds/mine/a.txt", "parts/mine.txt")]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    assert run(capsys, "index", scans, "--out", tmp_path / "store")[0] == 0
    assert run(capsys, "prepare", scans, "--out", tmp_path / "store", "--processes", "1")[0] == 0
    shutil.copytree(scans / "case_0", tmp_path / "more" / "case_0")
    assert run(capsys, "prepare", tmp_path / "more", "--out", tmp_path / "store", "--processes", "1")[0] == 0
    assert [path.read_text() for path in own] == ["mine"] * 4
    assert len(list((tmp_path / "store" / "cache").glob("*.npy"))) == 3 + 1  # image, label and mask of the case that is left


def test_links_to_files_that_are_not_there_are_listed(scans, tmp_path, capsys):
    """As git-annex leaves what was not fetched; a label, or a whole case."""
    archive = tmp_path / "archive"
    shutil.copytree(scans, archive)
    for name in ("case_1/seg.nii.gz", "case_2/T1.nii.gz", "case_2/seg.nii.gz"):
        (archive / name).unlink()
        (archive / name).symlink_to(tmp_path / "elsewhere" / name)
    code, _, err = run(capsys, "prepare", archive, "--out", tmp_path / "store", "--processes", "1", "--keep-names")
    assert code == 3 and "left out: case_1: " in err and "left out: case_2: " in err
    assert open_store(tmp_path / "store").names == ("case_0",)
    code, _, _ = run(capsys, "index", archive, "--out", tmp_path / "index")
    assert code == 3 and sum(not row["ok"] for row in read_index(tmp_path / "index").stream()) == 3
    code, _, err = run(capsys, "prepare", tmp_path / "index", "--out", tmp_path / "again", "--processes", "1", "--keep-names")
    assert code == 3 and "case_2" in err


def test_an_index_is_of_the_folder_that_it_was_made_of_wherever_it_is_used(scans, tmp_path, capsys, monkeypatch):
    for name, first in (("here", 0), ("there", 7)):
        write_scans(tmp_path / name / "data", 2, channels=("T1",), first=first)
    monkeypatch.chdir(tmp_path / "here")
    assert run(capsys, "index", "data", "--out", "index")[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    code, _, _ = run(capsys, "prepare", "../here/index", "--out", "store", "--processes", "1", "--keep-names")
    assert code == 0 and open_store("store").names == ("case_0", "case_1")
    write_scans(tmp_path / "here" / "data", 1, channels=("T1",), first=5)
    code, _, err = run(capsys, "prepare", "../here/index", "--out", "later", "--processes", "1", "--keep-names")
    assert code == 3 and "case_5" in err and "not in the index" in err


@pytest.mark.parametrize("second", ["", "case_0"])
def test_a_root_within_another_is_refused(scans, tmp_path, capsys, second):
    code, _, err = run(capsys, "index", scans, scans / second, "--out", tmp_path / "index")
    assert code == 2 and "give one of them" in err


def test_a_folder_that_cannot_be_listed_has_a_row(scans, tmp_path, monkeypatch):
    archive = tmp_path / "archive"
    shutil.copytree(scans, archive)
    listed = os.scandir

    def scandir(path="."):
        if os.fspath(path).endswith("case_1"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list(find_scans(archive))
    assert [ref.path.name for ref in found if ref.reason] == ["case_1"] and len(found) == 2 * 2 + 1
    assert "cannot be read (Permission denied)" in next(ref.reason for ref in found if ref.reason)


def test_a_file_that_may_not_be_read_is_named(scans, tmp_path, capsys, monkeypatch):
    archive = tmp_path / "archive"
    shutil.copytree(scans, archive)
    (archive / "dataset.json").write_text("{}")
    read = type(archive).read_text

    def read_text(path, *arguments, **named):
        if path.name == "dataset.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **named)

    monkeypatch.setattr(type(archive), "read_text", read_text)
    code, _, err = run(capsys, "prepare", archive, "--out", tmp_path / "store")
    assert code == 2 and "dataset.json: cannot be read (Permission denied)" in err


def test_a_closed_pipe_is_no_success_and_stops_no_work(scans, tmp_path):
    command = (
        f"{sys.executable} -m jaxseg.cli prepare {scans} --out {tmp_path / 'store'} --processes 1 2>&1 | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() in ("0", str(BROKEN_PIPE))
    assert len(open_store(tmp_path / "store").names) == 3  # whole, whether anybody read of it or not


def test_names_that_are_not_utf8_stop_nothing(scans, tmp_path, capsys):
    archive = tmp_path / "archive"
    for number in range(2):
        folder = os.fsencode(archive) + b"/m\xfcller_%d" % number
        os.makedirs(folder)
        for name in ("T1.nii.gz", "seg.nii.gz"):
            shutil.copy(scans / f"case_{number}" / name, os.path.join(folder, name.encode()))
    assert run(capsys, "index", archive, "--out", tmp_path / "index")[0] == 0
    for source, out in ((archive, "one"), (tmp_path / "index", "two")):
        for keep in ((), ("--keep-names",)):
            folder = tmp_path / (out + "".join(keep))
            code, _, err = run(capsys, "prepare", source, "--out", folder, "--processes", "1", *keep)
            assert code == 0, err
            assert len(open_store(folder).names) == 2 and len(open_store(folder).labelled) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"channel_names": {"0": "T1"}, "labels": {"t": 1}, "training": [{"image": "a"}], "test": 5}', "test must be a list"),
        ('{"channel_names": {"0": "T1"}, "labels": {"t": 1e400}}', "channel_names must look like"),
        ("[" * 100_000, "not a JSON file"),
        ('{"channel_names": {"0": "T1"}, "labels": {"t": ' + "1" * 5000 + "}}", "not a JSON file"),
        ('{"channel_names": {"0": "T1"}, "labels": {"t": 1, "u": 1}}', "two labels have one value"),
        ('{"channel_names": {"0": "CT", "1": "CT", "2": "CT_0"}, "labels": {"t": 1}}', "two channels have one name"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_refused(tmp_path, capsys, content, said):
    (tmp_path / "imagesTr").mkdir()
    text = content.replace('"channel_names"', '"modality"') if "training" in content else content
    (tmp_path / "dataset.json").write_text(text)
    code, _, err = run(capsys, "prepare", tmp_path, "--out", tmp_path / "store")
    assert code == 2 and said in err and "dataset.json" in err


def test_a_pipe_called_a_scan_is_not_waited_for(scans, tmp_path, capsys):
    archive = tmp_path / "archive"
    shutil.copytree(scans, archive)
    os.mkfifo(archive / "x.nii")
    code, _, _ = run(capsys, "index", archive, "--out", tmp_path / "index")
    assert code == 3
    reason = next(row["reason"] for row in read_index(tmp_path / "index").stream() if not row["ok"])
    assert reason.endswith("(a pipe, a socket or a device)")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("unetr_tiny", in_channels=1, crop=8, token=4, width=24, depth=2, heads=2, feature=4)
    recipe = {"channels": ["T1"], "spacing": [2.0, 2.0, 2.5], "intensity": ["zscore"], "labels": {"ball": 1}}
    return save_model(tmp_path_factory.mktemp("run") / "model", network, {"channels": ["T1"], "recipe": recipe, "crop": [8, 8, 8]})


def with_card(model, folder, change):
    shutil.copytree(model, folder)
    card = json.loads((folder / "model.json").read_text())
    change(card)
    (folder / "model.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card["recipe"].update(newfield=1), "newfield.*another version"),
        (lambda card: card["recipe"].update(labels=[1, 2]), "recipe.*cannot be read"),
        (lambda card: card.update(channels=5), "channels"),
        (lambda card: card.update(objective="mae"), "fine-tune it first"),
    ],
)
def test_a_card_that_cannot_segment_is_refused_by_what_is_wrong_with_it(model, tmp_path, change, said):
    with pytest.raises(CheckpointError, match=f"(?s){said}"):
        recipe_of_model(load_model(with_card(model, tmp_path / "other", change)))


def test_a_run_folder_names_its_model_and_a_path_is_no_volume(model):
    with pytest.raises(InputError, match=r"run folder, whose model is .*model: give that"):
        load_model(model.parent)
    with pytest.raises(InputError, match="load_volume"):
        segment(load_model(model), "scan.nii.gz")  # type: ignore[arg-type]


def test_a_ct_slice_is_no_t1_whatever_its_name(model, tmp_path, capsys):
    dicom_files.save(tmp_path / "scan", dicom_files.stack(12), "IMG{}.dcm")
    code, _, err = run(capsys, "segment", model, tmp_path / "scan" / "IMG0.dcm", "--out", tmp_path / "out")
    assert code == 2 and "this is no T1" in err


def test_an_edited_plan_is_not_written_over(scans, tmp_path, capsys):
    assert run(capsys, "prepare", scans, "--out", tmp_path / 'st """ore', "--processes", "1")[0] == 0
    write_plan(tmp_path / 'st """ore', tmp_path / "plan.py", 2)
    compile((tmp_path / "plan.py").read_text(), "plan.py", "exec")
    write_plan(tmp_path / 'st """ore', tmp_path / "plan.py", 2)
    (tmp_path / "plan.py").write_text("# hours of work")
    with pytest.raises(ConfigError, match="there already"):
        write_plan(tmp_path / 'st """ore', tmp_path / "plan.py", 2)
    assert (tmp_path / "plan.py").read_text() == "# hours of work"


def test_predictions_without_a_truth_are_said(scans, tmp_path, capsys):
    for name in ("truths", "predictions"):
        (tmp_path / name).mkdir()
        for number in range(3 if name == "predictions" else 2):
            shutil.copy(scans / f"case_{number}" / "seg.nii.gz", tmp_path / name / f"case_{number}.nii.gz")
    code, out, err = run(capsys, "evaluate", tmp_path / "predictions", tmp_path / "truths", "--out", tmp_path / "out")
    assert code == 0 and "over 2 cases" in out and "1 predictions have no truth" in err and "case_2" in err


def test_prepare_says_what_is_labelled_what_lacks_and_what_is_there_to_test_on(scans, tmp_path, capsys):
    raw = tmp_path / "raw"
    for number, (images, label) in enumerate((("imagesTr", True), ("imagesTr", True), ("imagesTs", False))):
        for folder in (images, "labelsTr"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(scans / f"case_{number}" / "T1.nii.gz", raw / images / f"c_{number}_0000.nii.gz")
        if label:
            shutil.copy(scans / f"case_{number}" / "seg.nii.gz", raw / "labelsTr" / f"c_{number}.nii.gz")
    shutil.copy(scans / "case_0" / "T1.nii.gz", raw / "imagesTr" / "c_0_0001.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "ball": 1}, "numTraining": 2, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    with pytest.warns(RuntimeWarning, match="1 of 3 cases are the data set's own test scans"):
        code, out, err = run(capsys, "prepare", raw, "--out", tmp_path / "store", "--processes", "1")
    assert code == 0 and "3 cases, 2 labelled (ball), channels T1, T2" in out and "channel T2: 2 of 3 cases lack it" in err
    assert np.isfinite(open_store(tmp_path / "store").arrays(open_store(tmp_path / "store").names[0]).image).all()


def test_labels_where_the_scan_looks_like_air_are_said(tmp_path, capsys):
    """A hot rim around a cold core, as of a necrotic tumour in PET alone; no body lies around it."""
    places = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1)
    radius = np.linalg.norm(places - 11.5, axis=-1)
    open_below = np.abs(places[..., 2] - 11.5) < 9  # the core is no hole: it is open below and above
    image = np.random.default_rng(0).gamma(2.0, 0.05, (24,) * 3) + 8.0 * ((radius > 5) & (radius < 9) & open_below)
    image[(radius < 5) | (np.hypot(places[..., 0] - 11.5, places[..., 1] - 11.5) < 4)] = 0.05
    label = ((radius < 9) & open_below).astype(np.uint8)
    for name, array in (("uptake", image.astype(np.float32)), ("seg", label)):
        save_volume(Volume(array[..., None], np.eye(4), (name,), None), tmp_path / "scans" / "case_0" / f"{name}.nii.gz")
    code, _, err = run(capsys, "prepare", tmp_path / "scans", "--out", tmp_path / "store", "--processes", "1")
    assert code == 0 and "1 cases have over 1 % of their labelled voxels where the scan looks like air (case_0: " in err


def test_channels_of_one_name_are_told_apart(scans, tmp_path, capsys):
    """nnU-Net takes names for kinds of normalisation: the phases of a CT are all called CT. One was taken for the other without a word."""
    raw = tmp_path / "raw"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for number in range(2):
        for channel in range(2):
            shutil.copy(scans / f"case_{(number + channel) % 3}" / "T1.nii.gz", raw / "imagesTr" / f"c_{number}_{channel:04d}.nii.gz")
        shutil.copy(scans / f"case_{number}" / "seg.nii.gz", raw / "labelsTr" / f"c_{number}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI", "1": "MRI"}, "labels": {"background": 0, "ball": 1}}))
    code, out, _ = run(capsys, "prepare", raw, "--out", tmp_path / "store", "--processes", "1", "--keep-names")
    store = open_store(tmp_path / "store")
    assert code == 0 and "channels MRI_0, MRI_1" in out and all(store.entry(name).present == (True, True) for name in store.names)
    image = np.asarray(store.arrays("c_0").image, np.float32)
    assert not np.allclose(image[..., 0], image[..., 1])
