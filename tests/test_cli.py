"""The command line: every error that a user can cause ends in one readable message and exit code 2, without a traceback unless --debug."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jaxseg
from jaxseg.cli import main
from jaxseg.cli_arguments import make_parser
from jaxseg.data.io import load_volume, save_volume
from jaxseg.data.volume import Volume
from jaxseg.errors import InputError, ShapeError
from jaxseg.zoo import create_model, load_model, save_model
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("cli") / "scans")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = create_model("unetr_tiny", in_channels=2, crop=8, token=4, width=24, depth=2, heads=2, feature=4)
    recipe = {
        "channels": ["T1", "T2"],
        "spacing": [2.0, 2.0, 2.5],
        "intensity": ["zscore", "zscore"],
        "labels": {"ball": 1},
    }
    card = {"channels": ["T1", "T2"], "recipe": recipe, "labels": {"ball": 1}, "crop": [8, 8, 8]}
    return save_model(tmp_path_factory.mktemp("cli") / "model", network, card)


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    progress, found, message = shown.partition(f"jaxseg {arguments[0]}: error: ")
    assert found, progress
    return found + message


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out.replace("\n", " ")
    for verb in "demo run index prepare pretrain finetune segment evaluate report models convert export-torch doctor".split():
        assert f"    {verb} " in text


def test_python_m_jaxseg_is_the_command(tmp_path):
    found = subprocess.run([sys.executable, "-m", "jaxseg", "report", str(tmp_path / "absent")], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("jaxseg report: error: ") and "absent" in found.stderr


@pytest.mark.parametrize(
    ("verb", "config", "field"), [("pretrain", "brain_mae", "--model.mask-ratio"), ("finetune", "brain", "--optim.lr")]
)
def test_help_after_a_config_lists_its_fields(capsys, verb, config, field):
    for arguments, listed in (([config, "--help"], True), ([config, "-h"], True), (["--help"], False)):
        with pytest.raises(SystemExit) as stopped:
            main([verb, *arguments])
        text = capsys.readouterr().out
        assert stopped.value.code == 0 and (field in text) == listed and f"jaxseg {verb}" in text


def test_models_are_listed_with_their_size(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in jaxseg.list_models())


@pytest.mark.parametrize("verb", [["index", "absent", "--out", "o"], ["prepare", "absent", "--out", "o"], ["report", "absent"]])
def test_a_missing_folder_is_named(capsys, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    assert "absent" in fails(capsys, *verb)


def test_a_missing_folder_of_a_run_is_named_before_anything_is_written(capsys, tmp_path, scans):
    error = fails(capsys, "run", "--unlabelled", tmp_path / "absent", "--labelled", scans, "--out", tmp_path / "out", "--labels", 1)
    assert "absent" in error
    assert not (tmp_path / "out").exists()


def test_a_run_without_test_cases_is_refused(capsys, tmp_path, scans):
    error = fails(capsys, "run", "--unlabelled", scans, "--labelled", scans, "--out", tmp_path / "out")
    assert "--labels" in error


def test_the_signal_of_lesions_is_a_channel_and_three_numbers(capsys):
    given = ["--signal", "FLAIR=1.8,1,0", "--signal", "T1c=-0.8,1.2,-1.6"]
    known = make_parser().parse_args(["run", "--unlabelled", "U", "--labelled", "L", "--out", "O", *given])
    assert dict(known.signal) == {"FLAIR": (1.8, 1.0, 0.0), "T1c": (-0.8, 1.2, -1.6)}
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(["run", "--unlabelled", "U", "--labelled", "L", "--out", "O", "--signal", "FLAIR=1"])
    assert stopped.value.code == 2 and "three numbers such as FLAIR=1.8,1,0" in capsys.readouterr().err


def test_debug_shows_where_it_came_from(tmp_path):
    with pytest.raises(InputError):
        main(["--debug", "prepare", str(tmp_path / "absent"), "--out", str(tmp_path / "out")])


def test_a_warning_is_a_line_of_the_command(tmp_path):
    raw = tmp_path / "raw"
    for number, part in enumerate(("imagesTr", "imagesTs")):
        save_volume(Volume(np.random.rand(9, 8, 7, 1).astype(np.float32), np.eye(4), ("T1",)), raw / part / f"c_{number}_0000.nii.gz")
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": {"background": 0}}))
    command = [sys.executable, "-m", "jaxseg.cli", "prepare", str(raw), "--out", str(tmp_path / "store")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "jaxseg prepare: warning: " in shown and "the data set's own test scans" in shown and "RuntimeWarning" not in shown
    assert "RuntimeWarning" in subprocess.run([*command, "--debug"], capture_output=True, text=True, check=True).stderr


def test_a_mistyped_config_is_met_with_the_nearest(capsys):
    assert "perhaps you meant 'brain_mae'" in fails(capsys, "pretrain", "brain_mea", "--store", "s", "--out", "o")


def test_a_store_that_is_none_is_named(capsys, tmp_path):
    assert "jaxseg prepare" in fails(capsys, "finetune", "brain", "--store", tmp_path, "--out", tmp_path / "o")


def test_segment_writes_a_case_on_its_own_grid(model, scans, tmp_path):
    assert main(["segment", str(model), str(scans), "--out", str(tmp_path)]) == 0
    scan = jaxseg.load_volume(scans / "case_0" / "T1.nii.gz")
    assert jaxseg.load_volume(tmp_path / "case_0.nii.gz").grid.same_as(scan.grid)


def test_segment_refuses_the_wrong_number_of_channels_in_one_line(capsys, model, scans, tmp_path):
    error = fails(capsys, "segment", model, scans / "case_0" / "T1.nii.gz", "--out", tmp_path)
    assert "2 channels (T1, T2)" in error
    assert error.count("\n") == 1


def test_segment_refuses_scans_of_another_modality(capsys, tmp_path):
    network = create_model("unetr_tiny", in_channels=1, crop=8, token=4, width=24, depth=2, heads=2, feature=4)
    recipe = {"channels": ["CT"], "spacing": [2.0, 2.0, 2.5], "intensity": ["ct"], "labels": {"ball": 1}}
    model = save_model(tmp_path / "model", network, {"channels": ["CT"], "recipe": recipe, "labels": {"ball": 1}, "crop": [8, 8, 8]})
    scans = write_scans(tmp_path / "scans", count=1, labelled=False, channels=("T1",))
    error = fails(capsys, "segment", model, scans, "--out", tmp_path / "out")
    assert "its scan is T1, and CT was expected" in error and error.count("\n") == 1
    (scans / "case_0" / "T1.nii.gz").rename(scans / "P1_T1.nii.gz")
    assert "this is no CT" in fails(capsys, "segment", model, scans / "P1_T1.nii.gz", "--out", tmp_path / "out")
    with pytest.raises(ShapeError, match="is called P1_T1, and CT was expected"):
        jaxseg.segment(jaxseg.load_model(model), jaxseg.load_volume(scans / "P1_T1.nii.gz"))
    (scans / "P1_T1.nii.gz").rename(scans / "P1.nii.gz")
    assert main(["segment", str(model), str(scans / "P1.nii.gz"), "--out", str(tmp_path / "out")]) == 0


def test_a_4d_file_holds_the_channels_in_the_order_of_the_card(capsys, model, scans, tmp_path):
    files = [scans / "case_0" / f"{name}.nii.gz" for name in ("T1", "T2")]
    volumes = [jaxseg.load_volume(file) for file in files]
    for count in (2, 3):
        array = np.concatenate([volume.array for volume in volumes] + [volumes[0].array] * (count - 2), -1)
        names = tuple("abc"[:count])
        save_volume(Volume(array, volumes[0].affine, names, None), tmp_path / f"of{count}" / "P1.nii.gz")
    assert main(["segment", str(model), *map(str, files), "--out", str(tmp_path / "two")]) == 0
    [apart] = (tmp_path / "two").glob("*.nii.gz")
    for number, source in enumerate([tmp_path / "of2" / "P1.nii.gz", tmp_path / "of2"]):
        assert main(["segment", str(model), str(source), "--out", str(tmp_path / f"packed{number}")]) == 0
        labels = jaxseg.load_volume(tmp_path / f"packed{number}" / "P1.nii.gz")
        np.testing.assert_array_equal(labels.array, jaxseg.load_volume(apart).array)
    error = fails(capsys, "segment", model, tmp_path / "of3" / "P1.nii.gz", "--out", tmp_path / "other")
    assert "2 channels (T1, T2)" in error and "a 4-D file with 3 volumes" in error


def test_one_case_that_lacks_a_channel_does_not_stop_the_others(capsys, model, tmp_path):
    folder = write_scans(tmp_path / "scans", count=2, labelled=False)
    (folder / "case_0" / "T2.nii.gz").unlink()
    assert main(["segment", str(model), str(folder), "--out", str(tmp_path / "out")]) == 3
    assert "case_0" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["case_1.nii.gz"]


def test_row_16_a_case_of_a_single_slice_is_left_out_by_name(capsys, model, tmp_path):
    folder = write_scans(tmp_path / "scans", count=2)
    for path in (folder / "case_0").iterdir():
        volume = load_volume(path, channels=["x"])
        save_volume(replace(volume, array=volume.array[:, :1]), path)
    for verb, out in ((["segment", str(model), str(folder)], "predictions"), (["prepare", str(folder)], "store")):
        assert main([*verb, "--out", str(tmp_path / out)]) == 3
        assert "a single slice" in (said := capsys.readouterr().err) and "case_0" in said
    with pytest.raises(InputError, match="the scan: a single slice"):
        jaxseg.segment(load_model(model), load_volume({name: folder / "case_0" / f"{name}.nii.gz" for name in ("T1", "T2")}))


def test_a_folder_of_which_no_case_fits_is_an_error(capsys, model, tmp_path):
    folder = write_scans(tmp_path / "scans", count=2, labelled=False, channels=("CT",))
    assert "none of the 2 cases" in fails(capsys, "segment", model, folder, "--out", tmp_path / "out")


def test_labels_beside_scans_to_segment_are_none_of_its_business(model, tmp_path):
    folder = write_scans(tmp_path / "scans", count=2)
    (folder / "case_0" / "lesion.nii.gz").write_bytes((folder / "case_0" / "seg.nii.gz").read_bytes())
    assert main(["segment", str(model), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case_0.nii.gz", "case_1.nii.gz"]


def test_a_model_folder_that_is_none_is_named(capsys, scans, tmp_path):
    assert "model.json" in fails(capsys, "segment", tmp_path, scans, "--out", tmp_path / "o")


def test_evaluate_writes_the_summary_and_refuses_other_grids(capsys, scans, tmp_path):
    truth = jaxseg.load_volume(scans / "case_0" / "seg.nii.gz")
    labels = np.round(truth.array).astype(np.uint8)
    for folder, affine in (("same", truth.affine), ("moved", truth.affine + _shift(9.0))):
        save_volume(Volume(labels, affine, ("label",), None), tmp_path / folder / "case_0.nii.gz")
    truths = tmp_path / "truth"
    save_volume(Volume(labels, truth.affine, ("label",), None), truths / "case_0.nii.gz")
    assert main(["evaluate", str(tmp_path / "same"), str(truths), "--out", str(tmp_path / "scores")]) == 0
    assert json.loads((tmp_path / "scores" / "summary.json").read_text())["dice"] == 1.0
    assert "grid" in fails(capsys, "evaluate", tmp_path / "moved", truths, "--out", tmp_path / "other")


def test_evaluate_scores_what_it_is_told_to(capsys, model, tmp_path):
    """Where every truth is empty no value can be read from them; by a model, by names, and as a region of two values."""
    for folder, value in (("truth", 0), ("pred", 0), ("two", 2)):
        save_volume(Volume(np.full((6, 6, 6, 1), value, np.uint8), np.eye(4), ("label",), None), tmp_path / folder / "a.nii.gz")
    empty = ["evaluate", tmp_path / "pred", tmp_path / "truth", "--out", tmp_path / "out"]
    assert "--labels" in fails(capsys, *empty)
    for said, label in ((("--like", model), "ball"), (("--labels", "lesion=3"), "lesion")):
        assert main([str(part) for part in (*empty, *said)]) == 0
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert (summary["dice"], list(summary["per_label"]), summary["per_label"][label]["both_empty"]) == (1.0, [label], 1)
    two = ["evaluate", tmp_path / "two", tmp_path / "two", "--out", tmp_path / "out", "--labels", "whole=1+2,core=1"]
    assert main([str(part) for part in two]) == 0
    labels = json.loads((tmp_path / "out" / "summary.json").read_text())["per_label"]
    assert (labels["whole"]["empty_truth"], labels["core"]["empty_truth"]) == (0, 1)
    for wrong in ("core", "core=", "core=0", "a=1,a=2", "a=1+", ""):
        with pytest.raises(SystemExit):
            make_parser().parse_args(["evaluate", "p", "t", "--out", "o", "--labels", wrong])


def _shift(millimetres):
    shift = np.zeros((4, 4))
    shift[0, 3] = millimetres
    return shift


def test_labels_out_of_range_leave_the_case_out_with_its_reason(capsys, tmp_path):
    folder = write_scans(tmp_path / "scans", count=3)
    label = jaxseg.load_volume(folder / "case_1" / "seg.nii.gz")
    save_volume(Volume(-np.ones(label.array.shape, np.int16), label.affine, ("label",), None), folder / "case_1" / "seg.nii.gz")
    assert main(["prepare", str(folder), "--out", str(tmp_path / "store")]) == 3
    assert "case_1" in capsys.readouterr().err


def test_a_label_on_another_grid_leaves_the_case_out_with_the_numbers(capsys, tmp_path):
    folder = write_scans(tmp_path / "scans", count=3)
    label = jaxseg.load_volume(folder / "case_2" / "seg.nii.gz")
    smaller = Volume(np.round(label.array[:-4]).astype(np.uint8), label.affine, ("label",), None)
    save_volume(smaller, folder / "case_2" / "seg.nii.gz")
    assert main(["prepare", str(folder), "--out", str(tmp_path / "store")]) == 3
    error = capsys.readouterr().err
    assert "case_2" in error
    assert "16×18×16" in error


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_an_out_that_cannot_be_made_is_one_line(capsys, model, scans, tmp_path, out):
    (tmp_path / "file").write_text("")
    truths = tmp_path / "truth"
    truths.mkdir()
    (truths / "case_0.nii.gz").write_bytes((scans / "case_0" / "seg.nii.gz").read_bytes())
    jobs = [
        ["index", scans],
        ["prepare", scans],
        ["segment", model, scans],
        ["evaluate", truths, truths],
        ["run", "--unlabelled", scans, "--labelled", scans, "--labels", "1"],
        ["demo"],
    ]
    for job in jobs:
        error = fails(capsys, *job, "--out", tmp_path / out)
        assert "choose another --out" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "option", "value"), [("segment", "--overlap", "1"), ("evaluate", "--tolerance", "nan"), ("evaluate", "--tolerance", "-1")]
)
def test_a_number_out_of_range_is_refused(capsys, verb, option, value):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "A", "B", "--out", "O", f"{option}={value}"])
    assert stopped.value.code == 2 and f"argument {option}: expected a" in capsys.readouterr().err


def test_the_module_runs_verbs_as_the_command_does(tmp_path):
    command = [sys.executable, "-m", "jaxseg.cli", "report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
