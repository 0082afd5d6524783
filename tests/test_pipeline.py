"""The main job on a few tiny scans: it ends with everything it promises, keeps what is complete, and refuses what does not fit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxseg
from finetune import plan as finetune_plan
from jaxseg.cli import _trainers, main
from jaxseg.config import as_json
from jaxseg.data.cases import find_cases
from jaxseg.data.io import load_label, load_volume, save_volume
from jaxseg.data.preprocess import Recipe, guess_recipe
from jaxseg.data.store import open_store
from jaxseg.data.volume import Volume, resample_to_spacing
from jaxseg.errors import ConfigError, InputError
from jaxseg.files import write_json
from jaxseg.job_inputs import Inputs, MainJob, _same_channels, read_inputs
from jaxseg.job_report import draw_report
from jaxseg.models import UNETRConfig, UNETRPlusConfig
from jaxseg.pipeline import Trainers, _plan, run_main_job
from jaxseg.plan import Plan, make_plan
from pretrain import plan as pretrain_plan
from pretrain.implants import Lesions
from tests.dicom_archive import box, drawn_in_seg, scan
from tests.tiny_store import write_scans


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    unlabelled = write_scans(folder / "unlabelled", count=5, labelled=False, seed=1)
    damaged = unlabelled / "case_4" / "T2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return MainJob(
        unlabelled=unlabelled,
        labelled=write_scans(folder / "labelled", count=3),
        test=write_scans(folder / "test", count=2, seed=2, first=3),
        out=folder / "out",
        minutes=0.01,
    )


@pytest.fixture(scope="module")
def summary(job):
    return run_main_job(job, _trainers())


@pytest.mark.slow
def test_the_summary_says_what_was_promised(job, summary):
    assert json.loads((job.out / "summary.json").read_text()) == summary
    assert summary["cases"] == {"unlabelled": 5, "train": 3, "test": 2}
    assert summary["index"]["ok"] == 9
    [left_out] = summary["index"]["left_out"]
    assert left_out["path"].endswith("case_4/T2.nii.gz")
    assert "truncated" in left_out["reason"]
    assert summary["seconds"] > 0
    assert 0 < summary["peak_memory_gib"] < 8
    for arm in ("pretrained", "scratch"):
        assert summary[arm]["low"] <= summary[arm]["dice"] <= summary[arm]["high"]
        assert set(summary[arm]["per_case"]) == {"case_3", "case_4"}
    assert set(summary["position_only"]["per_case"]) == {"case_3", "case_4"} and 0 < summary["position_only"]["dice"] < 1


@pytest.mark.slow
def test_evaluate_gives_the_same_scores_again(job, summary, tmp_path):
    folders = [str(job.out / "predictions" / "scratch"), str(job.test)]
    assert main(["evaluate", *folders, "--like", str(job.out / "models" / "scratch"), "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["per_case"] == summary["scratch"]["per_case"] and list(again["per_label"]) == ["label_1"]


@pytest.mark.slow
def test_both_models_segment_a_scan_and_their_cards_say_what_they_are(job, summary):
    for arm, init in (("pretrained", "pretrained encoder"), ("scratch", "scratch")):
        model = jaxseg.load_model(job.out / "models" / arm)
        assert model.card["training"]["init"] == init
        assert model.card["channels"] == ["T1", "T2"]
        scan = jaxseg.load_volume({name: job.test / "case_3" / f"{name}.nii.gz" for name in ("T1", "T2")})
        labels = jaxseg.segment(model, scan)
        assert labels.shape == scan.shape
        assert set(np.unique(labels.array)) <= {0, 1}


@pytest.mark.slow
def test_the_report_is_one_page_without_anything_fetched(job, summary):
    page = (job.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # of two test cases one is best and median
    assert "http" not in page.replace("data:image/png", "")
    assert "truncated" in page
    assert f"<td>position only</td><td>{summary['position_only']['dice']:.3f}</td>" in page


@pytest.mark.slow
def test_the_report_of_a_case_that_is_gone_says_so(job, summary, tmp_path):
    case = job.test / "case_3"
    try:
        case.rename(tmp_path / "case_3")
        page = draw_report(job.out).read_text()
    finally:
        (tmp_path / "case_3").rename(case)
    assert "its scan is no longer in" in page and page.count("data:image/png;base64,") == 5
    assert draw_report(job.out).read_text().count("data:image/png;base64,") == 6


@pytest.mark.slow
def test_test_labels_are_looked_at_before_training(tmp_path, capsys):
    """One on another grid, one with values that training never had: listed and not scored; with no other label the job ends at once.
    One drawn on its second channel's grid is scored there."""
    job = small(tmp_path)
    odd, shifted = (job.test / f"case_{number}" / "seg.nii.gz" for number in (3, 4))
    label = jaxseg.load_volume(odd)
    save_volume(dataclasses.replace(label, array=label.array.astype(np.uint8) * 7), odd)
    affine = label.affine.copy()
    affine[0, 3] += 6
    save_volume(Volume(label.array.astype(np.uint8), affine, ("label",)), shifted)
    with pytest.raises(
        InputError, match=r"none of the 2 labels .* case_3/label\.nii\.gz: .* does not name: 7 \(\d+ voxels\); expected 0 and"
    ):
        run_main_job(job, BEGIN)
    write_scans(job.test, count=1, seed=3, first=5)
    for name in ("T2", "seg"):
        path = job.test / "case_5" / f"{name}.nii.gz"
        coarse = resample_to_spacing(jaxseg.load_volume(path), (2.5, 3.0, 2.5), order=0)
        save_volume(dataclasses.replace(coarse, array=coarse.array.astype(np.float32 if name == "T2" else np.uint8), source=None), path)
    (job.test / "case_6").mkdir()
    shutil.copy(job.test / "case_5" / "T1.nii.gz", job.test / "case_6" / "T1.nii.gz")
    (job.test / "case_6" / "seg.nii.gz").write_bytes(b"<html>")
    second = jaxseg.load_volume(job.labelled / "case_1" / "seg.nii.gz")
    array = second.array.astype(np.uint8)
    array[8:10] *= 2
    save_volume(dataclasses.replace(second, array=array), job.labelled / "case_1" / "seg.nii.gz")
    capsys.readouterr()
    summary = run_main_job(dataclasses.replace(job, allow_overlap=True, labels=1), _trainers())
    assert set(summary["scratch"]["per_case"]) == {"case_5"}
    listed = {item["path"]: item["reason"] for item in summary["index"]["left_out"]}
    assert list(listed) == [f"case_{number}/label.nii.gz" for number in (3, 4, 6)]
    assert all(reason.startswith("not scored: ") for reason in listed.values())
    assert "values" in listed["case_3/label.nii.gz"] and "corners 3.0 voxels away" in listed["case_4/label.nii.gz"]
    told = capsys.readouterr().err
    assert "case_4/label.nii.gz: not scored" in told
    # Of the two labelled cases the first alone is trained on; what the second one has more is known, and learnt by nobody.
    assert summary["untaught"] == ["label_2"] and "none of the 1 training case holds label_2" in told
    assert "Take note: none of the 1 training case holds label_2" in (job.out / "report.html").read_text()
    assert len(list((job.out / "predictions" / "scratch").glob("*.nii.gz"))) == 4


class Began(Exception):
    """Training began: everything before it went through."""


def _begin(*_):
    raise Began


BEGIN = Trainers(pretrain=_begin, finetune=_begin)


def small(folder, **changes):
    """A job on other scans than `job`'s, for what is refused or listed before training."""
    folders = {
        "unlabelled": write_scans(folder / "unlabelled", count=2, labelled=False, seed=1),
        "labelled": write_scans(folder / "labelled", count=2),
        "test": write_scans(folder / "test", count=2, seed=2, first=3),
    }
    return MainJob(**{**folders, "out": folder / "out", "minutes": 0.01, **changes})


@pytest.mark.slow
def test_test_scans_are_none_of_those_that_labels_are_learnt_from(tmp_path, capsys):
    job = small(tmp_path)
    same = dataclasses.replace(job, test=job.labelled, out=tmp_path / "same")
    with pytest.raises(ConfigError, match=r"fine-tuning has seen 2 of the 2 test cases \(case_0, case_1\)"):
        run_main_job(same, BEGIN)
    with pytest.raises(Began):
        run_main_job(dataclasses.replace(same, allow_overlap=True), BEGIN)
    (job.test / "case_3").rename(job.test / "case_1")
    with pytest.raises(Began):
        run_main_job(dataclasses.replace(job, out=tmp_path / "counted"), BEGIN)
    assert "1 of the 2 test cases are called like cases of fine-tuning (case_1)" in capsys.readouterr().err
    for folder in (job.test, job.labelled):
        (folder / "case_1").rename(folder / "STS_001")
    with pytest.raises(ConfigError, match=r"other scans of the patients of 1 of the 2 test cases \(STS_001\)"):
        run_main_job(dataclasses.replace(job, out=tmp_path / "patient", labels=2, keep_names=True), BEGIN)


@pytest.mark.slow
def test_artificial_lesions_pretrain_the_whole_network(job, tmp_path):
    job = dataclasses.replace(job, out=tmp_path / "out", objective="lesions", signal={"T1": (1.0, 2.0, 0.0)})
    run_main_job(job, _trainers())
    assert jaxseg.load_model(job.out / "models" / "pretrained").card["training"]["init"] == "pretrained network"
    assert "outlining artificial lesions" in (job.out / "report.html").read_text()
    lesions = json.loads((job.out / "pretrain" / "config.json").read_text())["lesions"]
    assert lesions["signal"] == {"T1": [1.0, 2.0, 0.0]} and lesions["spread"] < Lesions().spread
    run_main_job(job, _trainers())
    with pytest.raises(ConfigError, match=r"signal: .*then, .*now"):
        run_main_job(dataclasses.replace(job, signal={"T1": (1.0, 3.0, 0.0)}), _trainers())


def test_a_signal_needs_artificial_lesions_and_channels_that_are_there():
    recipe = Recipe(channels=("T1", "T2"), spacing=(3.0, 3.0, 3.0), intensity=("zscore", "zscore"))
    with pytest.raises(ConfigError, match="--objective lesions"):
        make_plan(recipe, minutes=1, seed=0, signal={"T1": (1.0, 0.0, 0.0)})
    with pytest.raises(ConfigError, match="--signal names T9; the scans' channels are T1, T2"):
        make_plan(recipe, minutes=1, seed=0, objective="lesions", signal={"T9": (1.0, 0.0, 0.0)})


def test_plans_from_before_a_choice_keep_what_there_was():
    recipe = Recipe(channels=("T1", "T2"), spacing=(3.0, 3.0, 3.0), intensity=("zscore", "zscore"))
    plan = make_plan(recipe, minutes=1, seed=0)
    old = Plan.from_json({name: value for name, value in as_json(plan).items() if name not in ("muon", "decoder")})
    for each, family in ((plan, UNETRPlusConfig), (old, UNETRConfig)):
        network = finetune_plan.plan_config(each, Path("store"), Path("out"), None).model
        assert type(network) is family and (network.feature, network.stride) == (16, 2)
    # Of artificial lesions the whole network is taken: both trainings must ask for the same one.
    drawn = make_plan(recipe, minutes=1, seed=0, objective="lesions")
    for each, decoder in ((drawn, None), (dataclasses.replace(drawn, decoder="unetr_plus"), "unetr_plus")):
        lesions = pretrain_plan.plan_config(each, Path("store"), Path("out")).lesions
        assert lesions is not None and lesions.decoder == decoder
        assert isinstance(finetune_plan.plan_config(each, Path("store"), Path("out"), None).model, UNETRPlusConfig) is (decoder is not None)
    for each, muon in ((plan, True), (old, False), (make_plan(recipe, minutes=1, seed=0, objective="lesions"), False)):
        assert pretrain_plan.plan_config(each, Path("store"), Path("out")).optim.muon is muon
        assert finetune_plan.plan_config(each, Path("store"), Path("out"), None).optim.muon is muon


@pytest.mark.slow
def test_a_job_from_before_a_setting_existed_goes_on(job, summary):
    path = job.out / "job.json"
    whole = path.read_text()
    path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name != "objective"}))
    assert run_main_job(job, _trainers())["cases"] == summary["cases"]
    with pytest.raises(ConfigError, match="objective: mae then, lesions now"):
        run_main_job(dataclasses.replace(job, objective="lesions"), _trainers())
    path.write_text(whole)


@pytest.mark.slow
def test_the_same_command_again_keeps_everything_and_a_changed_one_is_refused(job, summary):
    kept = [path for path in job.out.rglob("*") if path.suffix in (".safetensors", ".npy", ".gz")]
    before = {path: path.stat().st_mtime_ns for path in kept if "models" not in path.parts}
    again = run_main_job(job, _trainers())
    assert again["pretrained"] == summary["pretrained"]
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time and path.parent.name != "model"]
    assert not changed
    with pytest.raises(ConfigError, match=r"seed: 0 then, 7 now"):
        run_main_job(dataclasses.replace(job, seed=7), _trainers())


class Reached(Exception):
    """Where a job would train."""


def job_up_to_training(folder: Path, *, labels: int) -> tuple[MainJob, Trainers, list[Any]]:
    """A job on two unlabelled and three labelled cases, trainers that end it with `Reached`, and the plans that these were handed."""

    def train(plan, *_):
        plans.append(plan)
        raise Reached

    plans: list[Any] = []
    job = MainJob(
        unlabelled=write_scans(folder / "unlabelled", count=2, labelled=False, seed=1),
        labelled=write_scans(folder / "labelled", count=3),
        out=folder / "out",
        labels=labels,
        minutes=0.01,
    )
    return job, Trainers(pretrain=train, finetune=train), plans


def test_settings_may_be_set_right_until_something_was_trained(tmp_path):
    """A mistyped number of labels is found out after preparing; the folder is not lost to it, and the plan is that of the settings of now."""
    job, trainers, plans = job_up_to_training(tmp_path, labels=9)
    with pytest.raises(ConfigError, match="--labels 9: 3 labelled cases"):
        run_main_job(job, trainers)
    for right in (dataclasses.replace(job, labels=2), dataclasses.replace(job, labels=2, seed=5, spacing=(3.0, 3.0, 3.0))):
        with pytest.raises(Reached):
            run_main_job(right, trainers)
        assert json.loads((job.out / "job.json").read_text())["seed"] == plans[-1].seed == right.seed
    assert plans[-1].recipe.spacing == open_store(job.out / "store" / "unlabelled").recipe.spacing == (3.0, 3.0, 3.0)
    write_json(job.out / "pretrain" / "checkpoints" / "000000005" / "manifest.json", {})
    with pytest.raises(ConfigError, match="labels: 2 then, 1 now"):
        run_main_job(dataclasses.replace(right, labels=1), trainers)
    with pytest.raises(Reached):
        run_main_job(right, trainers)


def test_scans_may_be_set_right_until_something_was_trained(tmp_path):
    """The same command after a contour has changed: the labels are those of the scans that are there now."""
    job, trainers, plans = job_up_to_training(tmp_path, labels=2)
    for values in ({"label_1": 1}, {"label_1": 1, "label_2": 2}):
        with pytest.raises(Reached):
            run_main_job(job, trainers)
        assert plans[-1].recipe.labels == values and len(open_store(job.out / "store" / "labelled").names) == 3
        label = load_volume(tmp_path / "labelled/case_0/seg.nii.gz", channels=["label"])
        label.array[:2] = 2
        save_volume(dataclasses.replace(label, array=label.array.astype(np.uint8)), tmp_path / "labelled/case_0/seg.nii.gz")


def test_the_grid_follows_from_the_labels_that_are_trained_on_alone(tmp_path):
    """Of two cases the second, whose tumour is larger than a crop, is kept to test on, or is trained on as well."""
    image = np.random.default_rng(0).normal(100, 10, (96, 96, 96, 1)).astype(np.float32)
    for number, size in enumerate((12, 90)):
        label = np.zeros((96, 96, 96, 1), np.uint8)
        label[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = 1
        save_volume(Volume(image, np.eye(4), ("T1",)), tmp_path / "labelled" / f"case_{number}" / "T1.nii.gz")
        save_volume(Volume(label, np.eye(4), ("label",)), tmp_path / "labelled" / f"case_{number}" / "seg.nii.gz")
    labelled = find_cases(tmp_path / "labelled")
    grids = []
    for labels in (1, 2):
        job = MainJob(tmp_path, tmp_path / "labelled", tmp_path / f"out_{labels}", labels=labels)
        grids.append(_plan(job, Inputs(labelled, labelled, None, [], 0)).recipe.spacing)
    assert grids[0] == guess_recipe(labelled, max_voxels=600_000).spacing and min(grids[1]) > max(grids[0])


@pytest.mark.slow
def test_a_label_that_was_mended_is_not_answered_with_the_old_weights(job, summary, tmp_path):
    """Nothing may be taken for the answer to the same command; once the two runs are removed it is done anew."""
    labelled, out = shutil.copytree(job.labelled, tmp_path / "labelled"), shutil.copytree(job.out, tmp_path / "out")
    own = dataclasses.replace(job, labelled=labelled, out=out)
    (out / "job.json").write_text((out / "job.json").read_text().replace(str(job.labelled.resolve()), str(labelled.resolve())))
    # Runs know their folders by path.
    for run in ("pretrain", "finetune/pretrained", "finetune/scratch"):
        config = out / run / "config.json"
        config.write_text(config.read_text().replace(str(job.out), str(out)))
    run_main_job(own, _trainers())
    weights = (out / "models" / "scratch" / "weights.safetensors").read_bytes()
    shutil.copy2(labelled / "case_0" / "seg.nii.gz", labelled / "case_1" / "seg.nii.gz")
    with pytest.raises(ConfigError, match=r"finetune/pretrained: .*scans or labels of case_1 have changed since.*remove this one"):
        run_main_job(own, _trainers())
    shutil.rmtree(out / "finetune")
    run_main_job(own, _trainers())
    assert (out / "models" / "scratch" / "weights.safetensors").read_bytes() != weights


@pytest.mark.slow
def test_the_report_can_be_drawn_again(job, summary, tmp_path):
    copy = shutil.copytree(job.out, tmp_path / "out")
    (copy / "report.html").unlink()
    assert draw_report(copy).read_text() == (job.out / "report.html").read_text()


def test_channels_are_matched_by_name_and_others_left_aside(tmp_path):
    cases = find_cases(write_scans(tmp_path, count=2, labelled=False, channels=("t2", "T1", "PD")))
    matched = _same_channels(cases, ("T1", "T2"), tmp_path)
    assert [set(case.images) for case in matched] == [{"T1", "t2"}] * 2


def test_a_lone_channel_needs_no_name_and_strangers_are_refused(tmp_path):
    cases = find_cases(write_scans(tmp_path, count=2, labelled=False, channels=("MR",)))
    assert _same_channels(cases, ("T1",), tmp_path) == cases
    with pytest.raises(InputError, match="none in common"):
        _same_channels(cases, ("T1", "T2"), tmp_path)


def test_replaced_names_can_be_looked_up_by_their_owner_alone(tmp_path, capsys):
    job = small(tmp_path)
    for number, name in ((3, "Anna"), (4, "Bert")):
        (job.test / f"case_{number}").rename(job.test / name)
    inputs = read_inputs(job)
    names = json.loads((job.out / "names.json").read_text())
    assert [names[case.id] for case in sorted(inputs.test, key=lambda case: names[case.id])] == ["Anna", "Bert"]
    assert [case.id for case in inputs.labelled] == ["case_0", "case_1"]
    assert (job.out / "names.json").stat().st_mode & 0o777 == 0o600
    shown = capsys.readouterr().err
    assert "names.json" in shown and "--keep-names" in shown and "Anna" not in shown
    kept = read_inputs(dataclasses.replace(job, out=tmp_path / "kept", keep_names=True))
    assert [case.id for case in kept.test] == ["Anna", "Bert"] and not (tmp_path / "kept" / "names.json").exists()


def test_contours_may_be_dicom_objects(tmp_path):
    """The values of the training cases' structures hold for test cases, whatever else is contoured there; contours that cannot be used are listed."""
    for name in ("labelled/P001", "labelled/P002", "test/P003", "test/P004", "archive/P005"):
        scan(tmp_path / name, name)
    for name in ("labelled/P001", "labelled/P002"):
        drawn_in_seg(tmp_path / name, name, {"Tumour": box(1, 1, slice(1, 4)), "Vessel": box(2, 2, 2)})
    drawn_in_seg(tmp_path / "test/P003", "test/P003", {"Brain": box(0, 0, 0), "tumour": box(1, 1, 1)})
    drawn_in_seg(tmp_path / "test/P004", "test/P004", {"tumour": box(1, 1, 1)})
    drawn_in_seg(tmp_path / "test/P004/again", "test/P004", {"tumour": box(1, 1, 1)})
    folders = {name: tmp_path / folder for name, folder in (("unlabelled", "archive"), ("labelled", "labelled"), ("test", "test"))}
    inputs = read_inputs(MainJob(**folders, out=tmp_path / "out"))
    assert inputs.labelled.labels == {"Tumour": 1, "Vessel": 2} and len(inputs.labelled.labelled) == 2 and inputs.test is not None
    case, unclear = inputs.test
    assert unclear.label is None
    assert set(np.unique(load_label(case.label).array)) == {0, 1}
    assert [(item["path"], item["reason"].split(":")[0]) for item in inputs.left_out] == [
        ("P004/contours", "two of its DICOM objects hold contours called tumour; leave the one that counts in the folder")
    ]
    (tmp_path / "test/P003").rename(tmp_path / "test/Anna")
    (tmp_path / "test/P004").rename(tmp_path / "test/Berta")
    (lost,) = read_inputs(MainJob(**folders, out=tmp_path / "again")).left_out
    assert "Berta" not in lost["path"] and lost["path"].endswith("/contours")
    for name in ("labelled/P001", "labelled/P002"):
        drawn_in_seg(tmp_path / name / "again", name, {"Tumour": box(1, 1, 1)})
    with pytest.raises(InputError, match=r"none with a label; .*P001/contours: two of its DICOM objects hold contours called Tumour"):
        read_inputs(MainJob(**folders, out=tmp_path / "third"))


def test_a_lone_channel_of_another_modality_is_refused(tmp_path):
    cases = find_cases(write_scans(tmp_path, count=2, labelled=False, channels=("FLAIR",)))
    with pytest.raises(InputError, match=r"its scans are FLAIR, those of the labelled cases T1; "):
        _same_channels(cases, ("T1",), tmp_path)
    assert _same_channels(cases, ("image",), tmp_path) == cases


def test_labels_that_are_all_empty_are_refused_before_training(tmp_path):
    scans = write_scans(tmp_path / "scans", count=3)
    for path in scans.glob("*/seg.nii.gz"):
        label = jaxseg.load_volume(path)
        save_volume(dataclasses.replace(label, array=np.zeros(label.array.shape, np.uint8)), path)
    job = MainJob(unlabelled=write_scans(tmp_path / "archive", labelled=False, seed=1), labelled=scans, out=tmp_path / "out", labels=1)
    with pytest.raises(InputError, match="labels of all 3 labelled cases are empty"):
        run_main_job(job, Trainers(pretrain=None, finetune=None))


def test_stray_labels_among_the_unlabelled_scans_do_not_stop_a_job(tmp_path):
    archive = write_scans(tmp_path / "archive", count=2)
    label = (archive / "case_0" / "seg.nii.gz").read_bytes()
    (archive / "case_0" / "lesion.nii.gz").write_bytes(label)
    (archive / "case_9").mkdir()
    (archive / "case_9" / "mask.nii.gz").write_bytes(label)
    job = MainJob(unlabelled=archive, labelled=write_scans(tmp_path / "labelled", seed=1), out=tmp_path / "out", labels=1)
    assert [case.id for case in read_inputs(job).unlabelled] == ["case_0", "case_1"]
