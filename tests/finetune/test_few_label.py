"""The few-label study: nested subsets that anybody can make again, cells that are filled in, kept and reported, and what is said of them."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from finetune.few_label import __main__ as few_label
from finetune.few_label.arms import SEMI, arms_of, describe, pairs_of, settings_of
from finetune.few_label.cells import choose_cells, grid_of
from finetune.few_label.page import write_report
from finetune.few_label.program import run_program
from finetune.few_label.spacing.study import resampled
from finetune.few_label.study import _test_cases, run_study
from finetune.few_label.subsets import labelled_cases, make_split
from jaxseg.data import duplicates
from jaxseg.data.archive import index_archive
from jaxseg.data.augment import Augment
from jaxseg.data.catalog import open_store
from jaxseg.data.io import load_label, load_volume, save_volume
from jaxseg.errors import ConfigError, Preempted, TrainingError
from jaxseg.files import read_json, write_json
from jaxseg.models import MAEConfig, UNETRConfig, ViTConfig
from jaxseg.prepare import Wishes, prepare_folder
from jaxseg.train import LoopConfig, OptimConfig, QuietProgress, read_arrays
from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from tests.dicom_archive import box, drawn_in_seg, scan
from tests.mini_datasets import decathlon
from tests.tiny_store import write_scans

SPLITS = Path(__file__).resolve().parents[2] / "configs" / "splits"
ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of a third kind: `images/ID.nii.gz` and `labels/ID.nii.gz`, eight cases of one channel, prepared."""
    folder = tmp_path_factory.mktemp("few_label")
    for case in sorted(write_scans(folder / "made", 8, channels=("T1",)).iterdir()):
        for name, kind in (("T1", "images"), ("seg", "labels")):
            (folder / "scans" / kind).mkdir(parents=True, exist_ok=True)
            (case / f"{name}.nii.gz").rename(folder / "scans" / kind / f"{case.name}.nii.gz")
    prepare_folder(folder / "scans", folder / "store")
    return folder


@pytest.fixture(scope="module")
def untrained(data):
    """A pretraining of no steps on two of the cases."""
    model = MAEConfig(encoder=ENCODER, decoder_width=12, decoder_depth=1, decoder_heads=1)
    (data / "pool.json").write_text(json.dumps(make_split({f"case_{n}": f"case_{n}" for n in range(8)}, test=3, seed=1)))
    settings = PretrainConfig(
        store=str(data / "store"),
        out=str(data / "untrained"),
        split=f"{data / 'pool.json'}:pretrain",
        model=model,
        batch=8,
        optim=OptimConfig(warmup=0),
        loop=LoopConfig(steps=0),
    )
    return pretrain(settings, progress=QuietProgress())


def study(data, out, **changes):
    base = FewLabelConfig(
        scans=str(data / "scans"),
        store=str(data / "store"),
        out=str(out),
        labels=(1, 2),
        draws=(0, 1),
        arms=("scratch", "scratch_x4"),
        test_cases=3,
        split_seed=1,
        allow_overlap=True,  # the balls are as like as copies
        finetune=FinetuneConfig(
            model=UNETRConfig(encoder=ENCODER, feature=4, stride=2),
            batch=8,
            augment=Augment.none(),
            optim=OptimConfig(lr=1e-2, warmup=1, weight_decay=0.0),
            loop=LoopConfig(steps=2, save_every=0),
        ),
    )
    return dataclasses.replace(base, **changes)


class Pretended:
    """In the place of training: Dice 0.5 with one label and 0.1 more with each doubling; four times the steps are worth a doubling."""

    def __init__(self, fail=(), stop_at=None):
        self.fail, self.stop_at, self.calls = fail, stop_at, []

    def __call__(self, settings, names, tests, recipe, *, overlap):
        if len(self.calls) == self.stop_at:
            raise Preempted("told to stop")
        self.calls.append((Path(settings.out).relative_to(Path(settings.out).parents[1]).as_posix(), names))
        if any(part in settings.out for part in self.fail):
            raise TrainingError("the loss stayed non-finite")
        dice = 0.5 + 0.1 * math.log2(len(names)) + 0.1 * (settings.loop.steps == 8)
        budget = {"steps": settings.loop.steps, "crops": 8 * settings.loop.steps, "seconds": 1.5, "parameters": 9, "trained_parameters": 9}
        return {
            "dice": dice,
            "per_case": {case.id: dice + 0.01 * place for place, case in enumerate(tests)},
            "per_label": {
                "core": {"dice": dice, "hd95_mm": 8.0 if len(names) == 1 else 4.0, "surface_dice": 0.25},
                "rim": {"dice": 0.0, "hd95_mm": None, "surface_dice": None},
            },
            "budget": {**budget, "flops": 10**12},
        }


@pytest.mark.parametrize("name", ["brain", "sarcoma"])
def test_a_shipped_study_says_what_it_still_needs(name):
    done = subprocess.run([sys.executable, "-m", "finetune.few_label", name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "needs --scans, --store, --out, --pretrained" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_takes_a_config_file_and_prints_the_table(data, tmp_path):
    """With no minutes nothing is measured, and everything says so."""
    (tmp_path / "third.py").write_text(
        "from finetune.few_label import FewLabelConfig\n"
        f"config = FewLabelConfig(scans={str(data / 'scans')!r}, store={str(data / 'store')!r}, test_cases=3, allow_overlap=True)\n"
    )
    given = ["--out", str(tmp_path / "out"), "--labels", "1", "all", "--draws", "0", "--arms", "scratch", "resenc", "--max-minutes", "0"]
    command = [sys.executable, "-m", "finetune.few_label", str(tmp_path / "third.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| N = 1 | N = all |" in done.stdout and "not measured" in done.stdout and "index.html" in done.stdout
    assert [cell["labels"] for cell in read_json(tmp_path / "out" / "results.json")["cells"]] == [1, 1, "all", "all"]


@pytest.mark.parametrize("name", ["brain", "sarcoma"])
def test_anybody_can_make_the_shipped_splits_again(name):
    shipped = read_json(SPLITS / f"{name}.json")
    cases = [*shipped["pretrain"], *shipped["test"]]
    made = make_split({case: case for case in cases}, test=len(shipped["test"]), seed=2026)
    assert made["test"] == sorted(shipped["test"])
    assert made["pretrain"] == sorted(shipped["pretrain"])
    assert [draw[: len(kept)] for draw, kept in zip(made["draws"], shipped["draws"])] == shipped["draws"]


def test_the_split_to_choose_by_holds_no_case_to_report_on():
    develop, report = (read_json(SPLITS / f"brain_{name}.json") for name in ("develop", "restored"))
    used = {*develop["test"], *develop["pretrain"], *develop["draws"][0]}
    assert len(develop["test"]) == 16 and used == set(report["pretrain"]) and not used & set(report["test"])
    assert not set(develop["test"]) & {*develop["pretrain"], *develop["draws"][0]}


def test_the_sarcomas_to_choose_by_are_of_the_pool_alone():
    develop, report = (read_json(SPLITS / f"sarcoma{name}.json") for name in ("_develop", ""))
    assert {*develop["pretrain"], *develop["test"]} == set(report["pretrain"]) and not {*develop["pretrain"]} & {*develop["test"]}
    assert all(set(draw) == set(develop["pretrain"]) for draw in develop["draws"])


def test_all_cases_of_a_patient_are_on_one_side_and_a_split_depends_on_seed_and_names_alone():
    patients = {f"{owner}_{visit}": owner for owner in "abcdef" for visit in range(2)}
    split = make_split(patients, test=3, seed=5)
    assert len(split["test"]) == 4  # a whole patient more than asked for
    assert not {patients[name] for name in split["test"]} & {patients[name] for name in split["pretrain"]}
    assert make_split(dict(reversed(patients.items())), test=3, seed=5) == split
    assert make_split(patients, test=3, seed=6) != split
    with pytest.raises(ConfigError, match="must leave cases"):
        make_split(patients, test=12, seed=5)


def test_a_pretrained_arm_says_what_of_the_pretraining_it_takes():
    [arm] = arms_of(("pretrained",), ("mae",))
    assert "its encoder" in describe(arm, FewLabelConfig())
    assert "all of it" in describe(arm, FewLabelConfig(finetune=FinetuneConfig(take="network")))


def test_arms_differ_in_what_they_say_and_in_nothing_else():
    arms = {arm.name: arm for arm in arms_of(("scratch", "pretrained", "frozen", "scratch_x4"), ("mae=a/b", "ijepa=c"))}
    assert list(arms) == ["scratch", "pretrained_mae", "pretrained_ijepa", "frozen_mae", "frozen_ijepa", "scratch_x4"]
    base = FinetuneConfig(keep="best", seed=3)
    made = {name: settings_of(arm, FewLabelConfig(finetune=base), labels=10, seed=1, spacing=(1, 1, 1)) for name, arm in arms.items()}
    assert dataclasses.replace(made["pretrained_mae"], init="") == made["scratch"]
    assert made["pretrained_mae"].init == "a/b"
    assert made["frozen_ijepa"].optim.freeze == ("encoder",)
    assert made["scratch_x4"].loop.steps == 4 * base.loop.steps
    assert (made["scratch"].keep, made["scratch"].seed) == ("best", 4)
    assert (
        settings_of(arms["scratch"], FewLabelConfig(finetune=base), labels=5, seed=0, spacing=(1, 1, 1)).keep == "last"
    )  # no peeking with few labels
    with pytest.raises(ConfigError, match="needs --pretrained"):
        arms_of(("frozen",), ())
    with pytest.raises(ConfigError, match="one name"):
        arms_of(("pretrained",), ("a", "b"))


def test_only_pretrained_encoders_learn_more_slowly_towards_their_input():
    """Layer decay is no handicap of scratch; what a pretraining of no steps is compared with has the pretrained arm's recipe."""
    study = FewLabelConfig(finetune=FinetuneConfig(optim=OptimConfig(layer_decay=0.75)))
    kinds = ("scratch", "scratch_x4", "no_transformer", "resenc", "equal_time", "untrained", "pretrained", "partial", "mean_teacher")
    arms = {arm.name: arm for arm in arms_of(kinds, ("a",))}
    made = {
        name: settings_of(arm, study, labels=1, seed=0, spacing=(1, 1, 1), pool="split.json:pretrain", steps=7 if arm.given else None)
        for name, arm in arms.items()
    }
    assert {name for name, settings in made.items() if settings.optim.layer_decay == 0.75} == set(kinds[5:])
    assert dataclasses.replace(made["pretrained"], init="") == made["untrained"]
    assert (made["equal_time"].loop.steps, made["mean_teacher"].semi.method) == (7, "mean_teacher")
    assert made["no_transformer"].model.encoder.depth == 0
    again = dataclasses.replace(study, scratch_layer_decay=0.75)
    assert settings_of(arms["scratch"], again, labels=1, seed=0, spacing=(1, 1, 1)).optim.layer_decay == 0.75


def test_pretrainings_of_one_study_may_give_an_encoder_or_the_whole_network():
    study = FewLabelConfig(finetune=FinetuneConfig(take="encoder"))
    arms = arms_of(("scratch", "pretrained", "frozen"), ("mae=a", "lesions=b/c=d:network", "C:odd:encoder"))
    made = {arm.name: settings_of(arm, study, labels=1, seed=0, spacing=(1, 1, 1)) for arm in arms}
    found = {name: (settings.init, settings.take) for name, settings in made.items()}
    assert found["pretrained_mae"] == ("a", "encoder") and found["scratch"] == ("", "encoder")
    assert found["pretrained_lesions"] == found["frozen_lesions"] == ("b/c=d", "network") and found["pretrained"] == ("C:odd", "encoder")
    assert [describe(arm, study).split()[3] for arm in arms if arm.kind == "pretrained"] == ["its", "all", "its"]


def test_arms_with_fewer_contours_differ_from_their_counterparts_in_nothing_else():
    study = FewLabelConfig(partial_every=4, partial_axis=1, partial_cube=8)
    arms = {arm.name: arm for arm in arms_of(("scratch", "pretrained", "partial", "partial_scratch", "regions", "regions_scratch"), ("a",))}
    made = {name: settings_of(arm, study, labels=1, seed=0, spacing=(1, 1, 1)) for name, arm in arms.items()}
    slices, cubes = {"label_every": 4, "label_axis": 1}, {"label_every": 4, "label_cube": 8}
    for name, part in (("partial", slices), ("regions", cubes)):
        assert made[name] == dataclasses.replace(made["pretrained"], **part)
        assert made[f"{name}_scratch"] == dataclasses.replace(made["scratch"], **part)
    pairs = pairs_of(tuple(arms.values()))
    assert {
        ("partial", "partial_scratch"),
        ("partial", "pretrained"),
        ("partial_scratch", "scratch"),
        ("regions", "regions_scratch"),
    } <= set(pairs)
    assert len(set(pairs)) == len(pairs)
    assert describe(arms["regions"], study) == "the pretrained arm with only every 4th cube of a labelled case contoured, the rest ignored"
    with pytest.raises(ConfigError, match="side of a cube"):
        FewLabelConfig(partial_cube=0)


def test_only_pretrained_encoders_are_held_back(untrained):
    """What spares an encoder that knows something would handicap one that does not: a pretraining of no steps is scratch to the bit."""
    study = FewLabelConfig(finetune=FinetuneConfig(optim=OptimConfig(decoder_first=5, freeze=("encoder.embed",))))
    spared = ("untrained", "pretrained_mae", "partial_mae", "frozen_mae")
    arms = arms_of(("scratch", "no_transformer", "resenc", "untrained", "pretrained", "partial", "frozen"), ("mae=a", f"none={untrained}"))
    made = {arm.name: settings_of(arm, study, labels=1, seed=0, spacing=(1, 1, 1)) for arm in arms}
    assert {name: settings.optim.decoder_first for name, settings in made.items()} == {name: 5 * (name in spared) for name in made}
    assert {name for name, settings in made.items() if "encoder.embed" in settings.optim.freeze} == set(spared)
    assert made["frozen_mae"].optim.freeze == ("encoder.embed", "encoder") and made["frozen_none"].optim.freeze == ("encoder",)
    assert dataclasses.replace(made["pretrained_none"], init="") == made["scratch"]
    assert dataclasses.replace(made["pretrained_mae"], init="") == made["untrained"]


def test_cells_of_before_there_were_these_settings_are_gone_on_with(data, tmp_path):
    """What a younger version knows in addition is not in the settings that a cell was measured with."""
    config = study(data, tmp_path, cells="N=1 draws=0 arms=scratch")
    run_study(config, measure=Pretended())
    kept = read_json(tmp_path / "cells" / "scratch" / "n001-draw0-seed0" / "cell.json")["settings"]
    assert not {"label_every", "label_axis", "semi"} & set(kept)
    other = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, label_every=2))
    with pytest.raises(ConfigError, match=r"other settings \(label_every\)"):
        run_study(other, measure=Pretended())


def test_test_cases_of_dicom_series_have_the_labels_that_their_store_was_made_with(tmp_path):
    for name in ("P001", "P002"):
        scan(tmp_path / "scans" / name, name)
        drawn_in_seg(tmp_path / "scans" / name, name, {"GTV 1": box(1, 1, slice(1, 4)), "Vessel": box(1, 1, 1)})
    store = prepare_folder(tmp_path / "scans", tmp_path / "store", label_name="gtv*", processes=1)
    write_json(tmp_path / "split.json", {"pretrain": ["P001"], "test": ["P002"], "draws": [["P001"]]})
    config = FewLabelConfig(scans=str(tmp_path / "scans"), store=str(tmp_path / "store"), label_name="gtv*")
    (case,) = _test_cases(config, store, str(tmp_path / "split.json"))
    assert store.recipe.labels == {"gtv": 1} and load_label(case.label).array.sum() == 3
    with pytest.raises(
        ConfigError, match=r"no scan with a label here: P002; none of its DICOM contours is called gtv; there are GTV 1, Vessel"
    ):
        _test_cases(dataclasses.replace(config, label_name=None), store, str(tmp_path / "split.json"))


def test_cells_are_chosen_by_axis():
    cells = grid_of(arms_of(("scratch", "scratch_x4"), ()), (1, 5, "all"), (0, 1), (0,))
    assert [cell.name for cell in choose_cells(cells, "N=5,all draws=1 arms=scratch")] == [
        "scratch/n005-draw1-seed0",
    ]
    # All labels are the same in every draw.
    assert [cell.name for cell in choose_cells(cells, "N=all arms=scratch")] == ["scratch/nall-draw0-seed0"]
    assert choose_cells(cells, "") == cells
    for wrong, said in (
        ("N=7", "no N=7"),
        ("n=1", "cannot read 'n=1'"),
        ("N", "cannot read 'N'"),
        ("N=all draws=1", "names no cell.*draw 0 alone"),
    ):
        with pytest.raises(ConfigError, match=said):
            choose_cells(cells, wrong)


def test_a_study_that_was_stopped_goes_on_and_measures_no_cell_twice(data, tmp_path):
    first, second = Pretended(stop_at=3), Pretended()
    with pytest.raises(Preempted):
        run_study(study(data, tmp_path), measure=first)
    assert sum(cell["status"] == "done" for cell in read_json(tmp_path / "results.json")["cells"]) == 3
    content = run_study(study(data, tmp_path), measure=second).content
    assert len(first.calls) == 3 and len(second.calls) == 5
    assert len({name for name, _ in first.calls + second.calls}) == 8
    assert all(cell["status"] == "done" for cell in content["cells"])
    names = dict(first.calls + second.calls)
    for draw in range(2):
        one, two = (names[f"scratch/n00{count}-draw{draw}-seed0"] for count in (1, 2))
        assert two[:1] == one
        assert names[f"scratch_x4/n001-draw{draw}-seed0"] == one
    assert not set(read_json(tmp_path / "split.json")["test"]) & {name for used in names.values() for name in used}


def test_results_say_what_the_scores_are_worth(data, tmp_path):
    content = run_study(study(data, tmp_path), measure=Pretended()).content
    assert read_json(tmp_path / "results.json") == content
    curve = content["curves"]["scratch"]
    assert [(point["labels"], point["number"], point["runs"], point["cases"]) for point in curve] == [(1, 1, 2, 3), (2, 2, 2, 3)]
    assert [point["mean"] for point in curve] == pytest.approx([0.51, 0.61])
    for row in content["comparisons"]:
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.1, 0.1, 0.1))
        assert row["p_holm"] == pytest.approx(min(1.0, 2 * row["p"]))
    at_one, at_two = content["equivalence"]
    assert at_one["against"] == "scratch"
    assert (at_one["scratch_labels"], at_one["factor"], at_one["bound"]) == (pytest.approx(2), pytest.approx(2), "")
    assert (at_two["bound"], at_two["scratch_labels"], at_two["high"]) == (">", 2, None)
    assert all(0 < floor["dice"] < 1 for floor in content["floors"])
    page, table = (tmp_path / "index.html").read_text(), (tmp_path / "table.md").read_text()
    assert "data:image/png;base64" in page and "position-only floor" in table and "> 2" in table
    assert (
        "| core | scratch | 0.500, 8.0 mm, 0.250 | 0.600, 4.0 mm, 0.250 |" in table
        and "| rim | scratch_x4 | 0.000, –, – | 0.000, –, – |" in table
    )
    assert "<h2>Each label</h2>" in page and "Few labels: scans" in page
    for cell in content["cells"]:
        del cell["per_label"]  # of a study from before labels were told apart
    write_report(tmp_path, content)
    assert "Each label" not in (tmp_path / "index.html").read_text() and "| core |" not in (tmp_path / "table.md").read_text()
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_arms_of_equal_time_come_when_the_others_are_done_and_keep_their_steps(data, untrained, tmp_path):
    """Pretended cells take 1.5 s for 2 steps; with a pretraining of 6 s that makes 10 steps. The pool is a part of what a cell was measured with."""
    kinds = ("equal_time", "scratch", "pretrained", "mean_teacher")
    config = study(data, tmp_path, pretrained=(str(untrained),), labels=(1,), draws=(0,), arms=kinds, pretraining_seconds=(6.0,))
    early, late, again = Pretended(), Pretended(), Pretended()
    run_study(dataclasses.replace(config, cells="arms=equal_time"), measure=early)
    assert early.calls == []  # it waits
    content = run_study(config, measure=late).content
    assert [name.split("/")[0] for name, _ in late.calls] == ["scratch", "pretrained", "mean_teacher", "equal_time"]
    (cell,) = [cell for cell in content["cells"] if cell["arm"] == "equal_time"]
    assert (cell["given"]["steps"], cell["budget"]["steps"], cell["given"]["seconds"]) == (10, 10, 7.5)
    kept = read_json(tmp_path / "cells" / "mean_teacher" / "n001-draw0-seed0" / "cell.json")["settings"]["semi"]
    assert kept["method"] == "mean_teacher" and len(kept["pool"]) == 64
    assert run_study(config, measure=again).content == content and again.calls == []
    assert {(row["arm"], row["against"]) for row in content["comparisons"]} >= {
        ("pretrained", "equal_time"),
        ("mean_teacher", "pretrained"),
    }
    assert "| pretrained | 2 | 16 | 0 | 1.5 | 6 | 9e-06 (9e-06) | 1 | 0 |" in (tmp_path / "table.md").read_text()
    assert {arm["name"]: arm["pretraining_flops"] for arm in content["arms"]} == dict.fromkeys(kinds) | {"pretrained": 0, "mean_teacher": 0}


def test_cells_beside_arms_of_equal_time_can_be_stacked_and_their_seconds_are_then_not_used(data, untrained, tmp_path, monkeypatch):
    class Shared(Pretended):
        def __call__(self, settings, *args, **kwargs):
            scores = super().__call__(settings, *args, **kwargs)
            return scores if "equal_time" in settings.out else {**scores, "budget": {**scores["budget"], "side_by_side": 2}}

    monkeypatch.setattr("finetune.few_label.stacks.finetune_side_by_side", lambda runs, folder: None)
    kinds = ("scratch", "pretrained", "equal_time")
    config = study(data, tmp_path, pretrained=(str(untrained),), labels=(1,), draws=(0,), arms=kinds, pretraining_seconds=(6.0,))
    with pytest.raises(ConfigError, match="choose cells of other arms"):
        run_study(dataclasses.replace(config, stack=2), measure=Shared())
    run_study(dataclasses.replace(config, stack=2, cells="arms=scratch,pretrained"), measure=Shared())
    content = run_study(config, measure=Shared()).content
    assert [cell["status"] for cell in content["cells"]] == ["done", "done", "failed"]
    assert "2 cells were trained side by side" in content["failures"][0]["reason"]
    assert run_study(config, measure=Pretended(stop_at=0)).content == content  # a failed cell stays one
    for arm in kinds[:2]:
        shutil.rmtree(tmp_path / "cells" / arm)
    content = run_study(dataclasses.replace(config, retry_failed=True), measure=Pretended()).content
    assert content["cells"][2]["given"]["steps"] == 10


def test_a_cell_that_fails_is_reported_and_the_others_go_on(data, tmp_path):
    failing = Pretended(fail=("scratch/n002-draw1",))
    content = run_study(study(data, tmp_path), measure=failing).content
    assert len(failing.calls) == 8
    (failure,) = content["failures"]
    assert (failure["arm"], failure["labels"], failure["draw"]) == ("scratch", 2, 1)
    assert "non-finite" in failure["reason"] and "non-finite" in (tmp_path / "index.html").read_text()
    assert "1 failed" in (tmp_path / "table.md").read_text()
    assert [row["runs"] for row in content["comparisons"]] == [2, 1]  # only pairs that both have
    kept, again = Pretended(), Pretended()
    run_study(study(data, tmp_path), measure=kept)
    assert kept.calls == []
    assert run_study(study(data, tmp_path, retry_failed=True), measure=again).content["failures"] == []
    assert len(again.calls) == 1


def test_what_is_not_asked_for_or_has_no_time_is_not_measured(data, tmp_path):
    some = Pretended()
    content = run_study(study(data, tmp_path, cells="N=1 arms=scratch draws=1"), measure=some).content
    assert [name for name, _ in some.calls] == ["scratch/n001-draw1-seed0"]
    assert sum(cell["status"] == "not measured" for cell in content["cells"]) == 7
    assert content["comparisons"] == content["equivalence"] == []
    assert "not measured" in (tmp_path / "table.md").read_text()
    none = Pretended()
    run_study(study(data, tmp_path, max_minutes=0.0), measure=none)
    assert none.calls == []


def test_cells_of_other_settings_are_never_mixed(data, tmp_path):
    run_study(study(data, tmp_path, cells="N=1 draws=0 arms=scratch"), measure=Pretended())
    changed = dataclasses.replace(study(data, tmp_path).finetune, batch=16)
    with pytest.raises(ConfigError, match=r"measured with other settings \(batch\)"):
        run_study(study(data, tmp_path, finetune=changed), measure=Pretended())


def test_cells_that_are_done_by_other_settings_are_refused_before_others_are_filled_in(data, tmp_path):
    """Whatever is asked for now: all that are done stand in one table."""
    config = study(data, tmp_path, labels=(2,), draws=(0,), arms=("scratch", "scratch_x4"))
    run_study(dataclasses.replace(config, cells="arms=scratch"), measure=Pretended())
    before = (tmp_path / "results.json").read_bytes()
    changed = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, batch=16))
    for other in (dataclasses.replace(changed, cells="arms=scratch_x4"), dataclasses.replace(changed, labels=(1, 2), max_minutes=0.0)):
        with pytest.raises(ConfigError, match=r"n002-draw0-seed0.cell.json: measured with other settings \(batch\)"):
            run_study(other, measure=Pretended())
    assert (tmp_path / "results.json").read_bytes() == before
    assert not (tmp_path / "cells" / "scratch_x4").exists() and not (tmp_path / "cells" / "scratch" / "n001-draw0-seed0").exists()


def test_a_study_without_test_cases_or_with_windows_that_never_move_is_refused(data, tmp_path):
    made = read_json(run_study(study(data, tmp_path / "one", cells="N=1 draws=0 arms=scratch"), measure=Pretended()).folder / "split.json")
    (tmp_path / "split.json").write_text(json.dumps({**made, "test": []}))
    with pytest.raises(ConfigError, match="test set is empty"):
        run_study(study(data, tmp_path / "out", split=str(tmp_path / "split.json"), test_cases=0), measure=Pretended())
    with pytest.raises(ConfigError, match="overlap is 1.0; expected a share of a window"):
        study(data, tmp_path, overlap=1.0)


@pytest.mark.parametrize("content", [[{"train": ["case_0"], "val": ["case_1"]}], {"train": ["case_0"], "test": ["case_1"]}])
def test_a_split_file_of_another_kind_is_told_what_it_must_look_like(data, tmp_path, content):
    """That of nnU-Net (splits_final.json), and what one writes by hand."""
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r'split file looks like \{"pretrain": .*"test": .*"draws": '):
        run_study(study(data, tmp_path / "out", split=str(tmp_path / "split.json"), test_cases=0), measure=Pretended())


def test_few_test_cases_are_said_to_be_few(data, tmp_path):
    run_study(study(data, tmp_path, cells="N=1 draws=0", test_cases=1), measure=Pretended())
    assert "There is one test case: intervals say nothing of other cases." in (tmp_path / "index.html").read_text()


def test_a_failed_cell_is_tried_again_with_mended_settings_and_the_others_stay(data, tmp_path):
    """A batch that was too large, say: there is no score that could be mixed."""
    config = study(data, tmp_path, labels=(1,), draws=(0, 1), arms=("scratch",))
    run_study(dataclasses.replace(config, cells="draws=0"), measure=Pretended(fail=("draw0",)))
    begun = tmp_path / "cells" / "scratch" / "n001-draw0-seed0" / "config.json"
    begun.write_text("of the run that failed")
    (begun.parent / "steps.json").write_text("worked out once")
    run_study(dataclasses.replace(config, overlap=0.75, cells="draws=0", retry_failed=True), measure=Pretended(fail=("draw0",)))
    assert begun.exists()  # the training is what it was
    mended = dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, batch=4))
    content = run_study(dataclasses.replace(mended, cells="draws=1"), measure=Pretended()).content
    assert [cell["status"] for cell in content["cells"]] == ["failed", "done"] and begun.exists()
    content = run_study(dataclasses.replace(mended, retry_failed=True), measure=Pretended()).content
    assert [cell["status"] for cell in content["cells"]] == ["done", "done"] and not begun.exists()
    assert (begun.parent / "steps.json").exists()


def test_no_checkpoint_is_chosen_where_all_labels_are_five(data, tmp_path):
    kept = []

    class Watched(Pretended):
        def __call__(self, settings, *args, **kwargs):
            kept.append(settings.keep)
            return super().__call__(settings, *args, **kwargs)

    config = study(data, tmp_path, labels=("all",), draws=(0,), arms=("scratch",))
    run_study(dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, keep="best")), measure=Watched())
    assert kept == ["last"]


def test_the_floor_is_that_of_the_cells_asked_for_and_kept_one_by_one(data, tmp_path, monkeypatch):
    asked = []

    def floor(store, training, tests):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(training))
        return {"dice": 0.1 * len(training)}

    monkeypatch.setattr("finetune.few_label.study.position_floor", floor)
    config = study(data, tmp_path, labels=(1, 2, "all"), draws=(0,), arms=("scratch",))
    content = run_study(dataclasses.replace(config, cells="N=2"), measure=Pretended()).content
    assert asked == [2] and [each["labels"] for each in content["floors"]] == [2]
    with pytest.raises(KeyboardInterrupt):
        run_study(config, measure=Pretended())
    assert asked == [2, 1] and {each["labels"] for each in read_json(tmp_path / "floor.json")} == {1, 2}


def test_floors_are_those_of_the_labels_that_are_there_now(data, tmp_path):
    """Nothing was measured yet that would forbid other labels under the same names."""
    shutil.copytree(data / "scans", tmp_path / "scans")
    store = tmp_path / "store"
    prepare_folder(tmp_path / "scans", store, processes=1)
    config = study(data, tmp_path / "out", scans=str(tmp_path / "scans"), store=str(store), labels=(2,), draws=(0,), max_minutes=0.0)
    before = run_study(config, measure=Pretended()).content["floors"]
    for path in (tmp_path / "scans" / "labels").iterdir():
        label = load_label(path)
        cube = np.zeros_like(label.array)
        cube[6:14, 6:12, 5:11] = 1
        save_volume(dataclasses.replace(label, array=cube), path)
    prepare_folder(tmp_path / "scans", store, processes=1)
    after = run_study(config, measure=Pretended()).content["floors"]
    assert before[0]["dice"] < 0.9 < after[0]["dice"]


def test_what_lies_in_further_stores_is_part_of_a_cell(data, tmp_path):
    also = tmp_path / "also"
    prepare_folder(write_scans(tmp_path / "four", 4, channels=("T1",), first=20), also, processes=1)
    settings = dataclasses.replace(study(data, tmp_path).finetune, also={str(also): 1.0})
    config = study(data, tmp_path / "out", labels=(1,), draws=(0,), finetune=settings)
    run_study(dataclasses.replace(config, cells="arms=scratch"), measure=Pretended())
    run_study(config, measure=Pretended())
    prepare_folder(write_scans(tmp_path / "two", 2, channels=("T1",), first=30), also, processes=1)
    with pytest.raises(ConfigError, match=r"other settings \(also_cases\)"):
        run_study(config, measure=Pretended())


def test_cells_of_other_test_cases_or_another_store_stand_in_no_table(data, tmp_path):
    """Also where other cells are asked for: they would be compared with those that are there."""
    made = read_json(run_study(study(data, tmp_path / "one", cells="N=1 draws=0 arms=scratch"), measure=Pretended()).folder / "split.json")
    (tmp_path / "split.json").write_text(json.dumps(made))
    config = study(data, tmp_path / "out", split=str(tmp_path / "split.json"), test_cases=0)
    run_study(dataclasses.replace(config, cells="N=1 draws=0 arms=scratch"), measure=Pretended())
    other = dataclasses.replace(config, cells="N=1 draws=0 arms=scratch_x4")
    (tmp_path / "split.json").write_text(json.dumps({**made, "test": made["test"][:2]}))
    with pytest.raises(ConfigError, match="other test cases"):
        run_study(other, measure=Pretended())
    (tmp_path / "split.json").write_text(json.dumps(made))
    prepare_folder(data / "scans", tmp_path / "coarse", wishes=Wishes(spacing=(2.5, 2.5, 2.5)))
    with pytest.raises(ConfigError, match="another store"):
        run_study(dataclasses.replace(other, store=str(tmp_path / "coarse")), measure=Pretended())
    run_study(other, measure=Pretended())


def test_more_labels_than_a_draw_has_are_not_possible_and_the_others_go_on(data, tmp_path, capsys):
    content = run_study(study(data, tmp_path, labels=(1, 20), draws=(0,)), measure=Pretended()).content
    assert [cell["status"] for cell in content["cells"]] == ["done", "done", "not possible", "not possible"]
    assert "has 5 labelled cases" in capsys.readouterr().err and "not possible: too few" in (tmp_path / "table.md").read_text()
    with pytest.raises(ConfigError, match="no cell of this study is possible"):
        run_study(study(data, tmp_path / "none", labels=(20,), draws=(0,)), measure=Pretended())


def test_a_split_with_fewer_draws_than_the_study_asks_for_is_measured_on_those_it_has(data, tmp_path, capsys):
    made = read_json(run_study(study(data, tmp_path / "one", labels=(1,), draws=(0,)), measure=Pretended()).folder / "split.json")
    split = tmp_path / "split.json"
    split.write_text(json.dumps({**made, "draws": made["draws"][:2]}))
    config = study(data, tmp_path / "out", labels=(1,), draws=(0, 1, 2), arms=("scratch",), split=str(split), test_cases=0)
    content = run_study(config, measure=Pretended()).content
    assert [cell["status"] for cell in content["cells"]] == ["done", "done", "not possible"]
    assert f"not possible: draw 2, and {split} has draws 0 to 1" in capsys.readouterr().err
    row = next(line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if line.startswith("| scratch"))
    assert row.rstrip(" |").endswith("], 2") and "not measured" not in row
    split.write_text(json.dumps(made["draws"]))
    with pytest.raises(ConfigError, match="split.json: a study's split file looks like .*holds a list"):
        run_study(dataclasses.replace(config, out=str(tmp_path / "list")), measure=Pretended())


def test_arms_without_a_pretraining_need_none_and_the_others_say_how_to_do_without(data, tmp_path):
    config = study(data, tmp_path, labels=(1,), draws=(0,), arms=("scratch",))
    assert run_study(dataclasses.replace(config, pretrained=()), measure=Pretended()).content["failures"] == []
    with pytest.raises(ConfigError, match=r"needs --pretrained; the arms pretrained, frozen need a pretraining: --arms scratch"):
        run_study(dataclasses.replace(config, pretrained=(), arms=("scratch", "pretrained", "frozen")), measure=Pretended())


def test_all_labels_are_measured_once_and_stand_beside_every_draw(data, tmp_path):
    counted = Pretended()
    content = run_study(study(data, tmp_path, labels=(1, "all")), measure=counted).content
    assert len(counted.calls) == 6
    assert [(point["labels"], point["draws"]) for point in content["curves"]["scratch"]] == [(1, 2), ("all", 1)]
    at_one, _ = content["equivalence"]
    assert (at_one["scratch_labels"], at_one["bound"]) == (pytest.approx(2), "")  # between one label and all five


def test_settings_that_some_cells_cannot_have_stop_these_alone(data, tmp_path):
    """Nothing is kept of them: the same command, with the settings mended, fills them in."""

    class Wrong(Pretended):
        def __call__(self, settings, names, *args, **kwargs):
            if "scratch_x4" in settings.out:
                raise ConfigError("crops cannot be balanced")
            if len(names) == 1 and "draw1" in settings.out:
                raise ConfigError("one label is too few")
            return super().__call__(settings, names, *args, **kwargs)

    wrong, mended = Wrong(), Pretended()
    told = "^4 cells of scratch_x4: crops cannot be balanced; scratch/n001-draw1-seed0: one label is too few$"
    with pytest.raises(ConfigError, match=told):
        run_study(study(data, tmp_path, arms=("scratch_x4", "scratch")), measure=wrong)
    assert len(wrong.calls) == 3
    cells = read_json(tmp_path / "results.json")["cells"]
    assert sorted((cell["arm"], cell["status"]) for cell in cells if cell["status"] == "done") == 3 * [("scratch", "done")]
    assert {cell["status"] for cell in cells} == {"done", "not measured"}
    run_study(study(data, tmp_path, arms=("scratch_x4", "scratch")), measure=mended)
    assert len(mended.calls) == 5


def test_a_study_with_its_own_split_can_be_given_more_draws_later(data, tmp_path):
    """A draw follows from the seed and its number, so that those measured already stay what they were."""
    draws = (0, 1, 2, 3, 4, 5)
    run_study(study(data, tmp_path, draws=draws[:1], labels=(1,)), measure=Pretended())
    first = read_json(tmp_path / "split.json")
    more = Pretended()
    run_study(study(data, tmp_path, draws=draws, labels=(1,)), measure=more)
    second = read_json(tmp_path / "split.json")
    assert (len(first["draws"]), len(second["draws"]), len(more.calls)) == (5, 6, 10)
    assert {**second, "draws": second["draws"][:5]} == first
    run_study(study(data, tmp_path, draws=draws[:1], labels=(1,)), measure=Pretended(stop_at=0))
    assert read_json(tmp_path / "split.json") == second
    with pytest.raises(ConfigError, match="made of other cases or settings"):
        run_study(study(data, tmp_path, split_seed=7), measure=Pretended())


@pytest.mark.parametrize(
    "axis", [{"draws": (-1, 4)}, {"labels": (1, 1, 2)}, {"labels": (0,)}, {"seeds": (0, 0)}, {"arms": ("scratch", "scratch")}]
)
def test_an_axis_with_a_value_twice_or_none_that_counts_is_refused(axis):
    for name, values in (*axis.items(), *((name, ()) for name in axis)):
        with pytest.raises(ConfigError, match=f"{name} is .*expected"):
            dataclasses.replace(FewLabelConfig(), **{name: values})


def test_a_test_case_that_was_labelled_after_the_store_was_made_is_refused(data, tmp_path):
    shutil.copytree(data / "scans", tmp_path / "scans")
    label = tmp_path / "scans" / "labels" / "case_0.nii.gz"
    label.rename(tmp_path / label.name)
    prepare_folder(tmp_path / "scans", tmp_path / "store")
    (tmp_path / label.name).rename(label)
    split = {"pretrain": ["case_1"], "test": ["case_0", "case_2"], "draws": [["case_1"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    config = study(data, tmp_path / "out", scans=str(tmp_path / "scans"), store=str(tmp_path / "store"), split=str(tmp_path / "split.json"))
    with pytest.raises(ConfigError, match=r"1 of 2 test cases were labelled after .*case_0.*prepare the scans again"):
        run_study(dataclasses.replace(config, labels=(1,), draws=(0,)), measure=Pretended())


def test_a_store_of_a_public_dataset_is_studied_by_that_dataset_s_names(data, tmp_path):
    """Its reader knows the channel's name, which the files do not tell; the same at another spacing."""
    decathlon(tmp_path / "scans", "Task09_Spleen", "spleen", ["CT"], ["spleen"])
    store = prepare_folder(tmp_path / "scans", tmp_path / "store", dataset="msd09_spleen", processes=1)
    train, test = store.labelled
    (tmp_path / "split.json").write_text(json.dumps({"pretrain": [train], "test": [test], "draws": [[train]]}))
    config = study(data, tmp_path / "out", scans=str(tmp_path / "scans"), store=str(store.path), split=str(tmp_path / "split.json"))
    config = dataclasses.replace(config, labels=(1,), draws=(0,), arms=("scratch",))
    assert [cell["status"] for cell in run_study(config, measure=Pretended()).content["cells"]] == ["done"]
    coarse = open_store(resampled(config, 2.0, tmp_path / "coarse"))
    assert (coarse.names, coarse.recipe.channels) == (store.names, ("CT",))


def test_an_interrupted_study_says_so_and_ends_with_the_exit_code_of_one_to_go_on_with(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    assert run_program("few_label", ["brain"], interrupted) == 75
    assert capsys.readouterr().err == "few_label: interrupted; the same command goes on where it was\n"


def test_an_unforeseen_error_fails_its_cell_alone(data, tmp_path):
    class Broken(Pretended):
        def __call__(self, settings, names, tests, recipe, *, overlap):
            if "x4/n002-draw0" in settings.out:
                raise ValueError("not thought of")
            return super().__call__(settings, names, tests, recipe, overlap=overlap)

    content = run_study(study(data, tmp_path), measure=Broken()).content
    assert [cell["reason"] for cell in content["failures"]] == ["ValueError: not thought of"]
    assert sum(cell["status"] == "done" for cell in content["cells"]) == 7


def test_a_pretrained_arm_is_held_against_scratch_with_four_times_the_steps(data, untrained, tmp_path):
    """Pretended: pretraining is worth nothing at equal steps, four times the steps are worth a doubling of labels."""
    config = study(data, tmp_path, pretrained=(str(untrained),), arms=("scratch", "pretrained", "scratch_x4"))
    content = run_study(config, measure=Pretended()).content
    assert ("pretrained", "scratch_x4") in {(row["arm"], row["against"]) for row in content["comparisons"]}
    rows = {(row["arm"], row["against"], row["labels"]): row for row in content["equivalence"]}
    assert set(rows) == {(arm, "scratch", n) for arm in ("pretrained", "scratch_x4") for n in (1, 2)} | {
        ("pretrained", "scratch_x4", n) for n in (1, 2)
    }
    assert rows["pretrained", "scratch", 2]["factor"] == pytest.approx(1)
    assert rows["pretrained", "scratch_x4", 2]["factor"] == pytest.approx(0.5)
    assert rows["pretrained", "scratch_x4", 1]["bound"] == "<" and "≤ 1.00 to ≤ 1.00" in (tmp_path / "table.md").read_text()


def test_label_equivalence_takes_the_draws_that_scratch_has_and_says_how_many(data, untrained, tmp_path):
    """A grid that is being filled in: the pretrained arm is ahead of scratch by draws."""
    config = study(data, tmp_path, pretrained=(str(untrained),), arms=("scratch", "pretrained"), labels=(1, 2), draws=(0, 1, 2))
    run_study(dataclasses.replace(config, cells="arms=pretrained N=1"), measure=Pretended())
    content = run_study(dataclasses.replace(config, cells="arms=scratch N=1 draws=0,1"), measure=Pretended()).content
    (row,) = content["equivalence"]
    assert (row["runs"], row["runs_of_arm"], row["points"], row["factor"]) == (2, 3, [1], pytest.approx(1))
    content = run_study(dataclasses.replace(config, cells="arms=scratch N=2 draws=1"), measure=Pretended()).content
    assert content["equivalence"][0]["points"] == [1]  # two draws rather than two points
    content = run_study(dataclasses.replace(config, cells="arms=scratch N=2 draws=0"), measure=Pretended()).content
    (row,) = content["equivalence"]
    assert (row["runs"], row["points"]) == (2, [1, 2]) and "| 2 of 3 | 1, 2 |" in (tmp_path / "table.md").read_text()


def test_scans_without_a_label_are_in_the_pool_of_a_split_that_is_made():
    patients = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d", "e": "e"}
    split = make_split(patients, test=1, seed=0, labelled=["a1", "b", "c"])
    assert set(split["pretrain"]) >= {"d", "e"} and len(split["test"]) == 1
    assert sorted(split["draws"][0]) == sorted({"a1", "b", "c"} - set(split["test"]))
    assert ("a2" in split["pretrain"]) == ("a1" not in split["test"])  # never beside its patient's test case


def test_a_test_label_that_cannot_be_scored_is_refused_before_training(data, tmp_path):
    shutil.copytree(data / "scans", tmp_path / "scans")
    config = study(data, tmp_path / "out", scans=str(tmp_path / "scans"))
    tests = read_json(run_study(dataclasses.replace(config, max_minutes=0.0), measure=Pretended()).folder / "split.json")["test"]
    (tmp_path / "scans" / "labels" / f"{tests[0]}.nii.gz").write_bytes(b"damaged")
    none = Pretended()
    with pytest.raises(ConfigError, match=f"1 of 3 test cases cannot be scored.*{tests[0]}"):
        run_study(config, measure=none)
    assert none.calls == []


def test_an_index_of_the_scans_is_as_good_as_their_folder(data, tmp_path):
    index_archive([data / "scans"], tmp_path / "index")
    config = study(data, tmp_path / "out", scans=str(tmp_path / "index"), cells="N=1 draws=0 arms=scratch")
    assert [cell["status"] for cell in run_study(config, measure=Pretended()).content["cells"]].count("done") == 1


def test_test_cases_are_neither_monitored_nor_in_another_store(data, tmp_path):
    made = read_json(run_study(study(data, tmp_path / "one", max_minutes=0.0), measure=Pretended()).folder / "split.json")
    (tmp_path / "split.json").write_text(json.dumps(made))
    config = study(data, tmp_path / "out", split=str(tmp_path / "split.json"), test_cases=0)
    watching = dataclasses.replace(config.finetune, monitor=f"{tmp_path / 'split.json'}:test")
    with pytest.raises(ConfigError, match="finetune.monitor=.*monitored cases that are test cases"):
        run_study(dataclasses.replace(config, finetune=watching), measure=Pretended())
    also = dataclasses.replace(config.finetune, also={str(data / "store"): 1.0})
    with pytest.raises(ConfigError, match="finetune.also=.* has seen"):
        run_study(dataclasses.replace(config, finetune=also, draws=(0,), allow_overlap=False, labels=(1,)), measure=Pretended())


def test_a_pretraining_that_does_not_say_what_it_saw_is_unknown(data, untrained, tmp_path, capsys):
    shutil.copytree(untrained, tmp_path / "model")
    card = read_json(tmp_path / "model" / "model.json")
    card["training"] = {key: value for key, value in card["training"].items() if key not in ("data", "scans")}
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    config = study(data, tmp_path / "out", pretrained=(str(tmp_path / "model"),), arms=("scratch", "pretrained"), max_minutes=0.0)
    content = run_study(config, measure=Pretended()).content
    assert content["audit"]["pretrained"] is None and "nobody knows" in capsys.readouterr().err
    assert "pretrained: its card does not say" in (tmp_path / "out" / "index.html").read_text()


def test_a_labelled_test_case_is_refused(data, tmp_path):
    split = {"pretrain": ["case_0"], "test": ["case_0"], "draws": [["case_0"], ["case_0"]]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(ConfigError, match="test cases: case_0"):
        run_study(study(data, tmp_path / "out", split=str(tmp_path / "split.json"), labels=("all",)), measure=Pretended())


def test_a_pretraining_that_saw_test_cases_is_refused(data, untrained, tmp_path):
    split = {"pretrain": ["case_0"], "test": read_json(data / "pool.json")["pretrain"][:1], "draws": [["case_0"]]}
    split["pretrain"] = split["draws"][0] = [name for name in read_json(data / "pool.json")["test"]][:1]
    (tmp_path / "split.json").write_text(json.dumps(split))
    config = study(data, tmp_path / "out", split=str(tmp_path / "split.json"), labels=(1,), draws=(0,), arms=("pretrained",))
    with pytest.raises(ConfigError, match="alike|has seen"):
        run_study(dataclasses.replace(config, pretrained=(str(untrained.parent),), allow_overlap=False), measure=Pretended())


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """A store of three subjects, the first with two sessions, and a study of it that is given a split."""
    folder = tmp_path_factory.mktemp("sessions")
    for case, name in zip(
        sorted(write_scans(folder / "made", 4, channels=("T1",)).iterdir()), ("01_ses-1", "01_ses-2", "02_ses-1", "03_ses-1")
    ):
        subject, session = name.split("_")
        for kind, suffix in (("T1", "T1w"), ("seg", "dseg")):
            file = folder / "scans" / f"sub-{subject}" / session / "anat" / f"sub-{name}_{suffix}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            (case / f"{kind}.nii.gz").rename(file)
    prepare_folder(folder / "scans", folder / "store", keep_names=True)
    return folder


def split_of_sessions(path, pretrain):
    path.write_text(json.dumps({"pretrain": pretrain, "test": ["sub-01_ses-1"], "draws": [["sub-03_ses-1"]]}))
    return str(path)


def test_a_split_that_pretrains_on_a_test_patient_is_refused_whoever_uses_it(sessions, tmp_path):
    """Also a patient's scan that this store does not have: pretraining may be done on another one."""
    for other in ("sub-01_ses-2", "sub-01_ses-9"):
        split = split_of_sessions(tmp_path / "split.json", [other, "sub-03_ses-1"])
        config = study(sessions, tmp_path / "out", split=split, labels=(1,), draws=(0,), arms=("scratch",))
        with pytest.raises(ConfigError, match=f"share 1 patients .{other} and sub-01_ses-1"):
            run_study(config, measure=Pretended())


def test_a_pretraining_on_another_scan_of_a_test_patient_is_found_by_its_hashes(sessions, untrained, tmp_path, monkeypatch):
    """The card names nobody, but the study's own store has the scan, and so its patient; cases count once, though a card lists them twice."""
    store = open_store(sessions / "store")
    split = split_of_sessions(tmp_path / "split.json", ["sub-03_ses-1"])
    config = study(sessions, tmp_path / "out", split=split, labels=(1,), draws=(0,), arms=("scratch", "pretrained"), max_minutes=0.0)
    shutil.copytree(untrained, tmp_path / "model")
    card = read_json(tmp_path / "model" / "model.json")
    strangers = {16 * digit: 64 * digit for digit in "01"}

    def audit(names, others, **changes):
        card["training"] |= {"data": store.hashes(names) | others, "scans": store.contents(names)}
        (tmp_path / "model" / "model.json").write_text(json.dumps(card))
        found = run_study(dataclasses.replace(config, pretrained=(str(tmp_path / "model"),), **changes), measure=Pretended())
        return found.content["audit"]["pretrained"], (found.folder / "index.html").read_text()

    counts, page = audit(["sub-01_ses-2", "sub-02_ses-1"], {})
    assert (counts["pretrain"], counts["same patient"], counts["patients unknown"]) == (2, 1, 0) and "1 of the same patient" in page
    counts, page = audit(["sub-02_ses-1"], strangers)
    assert (counts["pretrain"], counts["patients unknown"]) == (3, 2) and "of 2 cases the patient is unknown" in page
    counts, page = audit([], strangers)
    assert counts["patients unknown"] == 2 and "patients unknown" in page
    monkeypatch.setattr(duplicates, "_alike", lambda *_: {})  # the balls are as like as copies
    with pytest.raises(ConfigError, match=r"trained on and the test cases share 1 patients .sub-01_ses-2 and sub-01_ses-1"):
        audit(["sub-01_ses-2"], {}, allow_overlap=False)
    card["training"]["probed"] = {"data": store.hashes(["sub-01_ses-1"]), "scans": store.contents(["sub-01_ses-1"])}
    with pytest.raises(ConfigError, match=r"the probe of .*model has seen 1 of the 1 test cases .sub-01_ses-1"):
        audit(["sub-02_ses-1"], {}, allow_overlap=False)


@pytest.mark.slow
def test_zero_pretraining_steps_give_scratch_and_a_frozen_encoder_trains_less(data, untrained, tmp_path):
    """The whole way: three arms trained for two steps, segmented, scored. A layer decay is for encoders that have learnt something."""
    config = study(data, tmp_path, pretrained=(str(untrained),), labels=(2,), draws=(0,), arms=("scratch", "pretrained", "frozen"))
    decayed = dataclasses.replace(config.finetune, optim=dataclasses.replace(config.finetune.optim, layer_decay=0.5))
    content = run_study(dataclasses.replace(config, finetune=decayed)).content
    control, pretrained, frozen = content["cells"]
    assert [cell["status"] for cell in content["cells"]] == ["done"] * 3
    assert pretrained["per_case"] == control["per_case"]
    weights = [read_arrays(tmp_path / "cells" / arm / "n002-draw0-seed0", "params.") for arm in ("scratch", "pretrained")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert frozen["budget"]["trained_parameters"] < frozen["budget"]["parameters"] == control["budget"]["parameters"]
    assert control["per_label"].keys() == {"label_1"} and control["per_label"]["label_1"]["hd95_mm"] > 0
    assert control["budget"]["crops"] == 16 and control["budget"]["flops"] > 0 and control["left_out"] == []


@pytest.mark.slow
def test_every_arm_fills_in_its_cell_and_shows_what_it_was_given(data, untrained, tmp_path):
    """The whole way for the arms that change more than where the weights come from, one step each."""
    kinds = ("scratch", "pretrained", "equal_time", "no_transformer", "partial", "regions", "mean_teacher", "pseudo_labels")
    config = study(
        data,
        tmp_path,
        pretrained=(str(untrained),),
        labels=(1,),
        draws=(0,),
        arms=kinds,
        pretraining_seconds=(0.0,),
        partial_every=2,
        partial_cube=4,
    )
    short = dataclasses.replace(config.finetune, loop=LoopConfig(steps=1, save_every=0))
    content = run_study(dataclasses.replace(config, finetune=short)).content
    cells = {cell["arm"]: cell for cell in content["cells"]}
    assert {name: cell["status"] for name, cell in cells.items()} == dict.fromkeys(kinds, "done")
    budgets = {name: cell["budget"] for name, cell in cells.items()}
    assert cells["equal_time"]["given"]["steps"] == budgets["equal_time"]["steps"]
    assert budgets["no_transformer"]["parameters"] < budgets["scratch"]["parameters"]
    assert {name: (budget["crops"], budget["unlabelled_crops"]) for name, budget in budgets.items() if name in SEMI} == {
        "mean_teacher": (8, 8),
        "pseudo_labels": (16, 8),
    }
    assert budgets["scratch"]["flops"] < budgets["mean_teacher"]["flops"] < budgets["pseudo_labels"]["flops"]
    page = (tmp_path / "index.html").read_text()
    assert "only every 2nd slice" in page and "only every 2nd cube" in page and "unlabelled crops" in page
    assert run_study(dataclasses.replace(config, finetune=short), measure=Pretended(stop_at=0)).content == content


@pytest.mark.slow
def test_a_planned_unet_is_an_arm_like_any_other(data, tmp_path):
    config = study(data, tmp_path, labels=(2,), draws=(0,), arms=("resenc",))
    short = dataclasses.replace(config.finetune, loop=LoopConfig(steps=1, save_every=0))
    (cell,) = run_study(dataclasses.replace(config, finetune=short)).content["cells"]
    assert cell["status"] == "done" and set(cell["per_case"]) == set(read_json(tmp_path / "split.json")["test"])
    assert read_json(tmp_path / "cells" / cell["arm"] / "n002-draw0-seed0" / "model" / "model.json")["architecture"]["name"] == "unet"


def test_scores_are_of_the_scans_that_the_store_was_made_of(data, tmp_path):
    """The leakage audit looks at the store: scans of other content under the same names would be scored unseen by it."""
    shutil.copytree(data / "scans", tmp_path / "scans")
    config = study(data, tmp_path / "out", scans=str(tmp_path / "scans"))
    run_study(dataclasses.replace(config, cells="N=1 draws=0 arms=scratch"), measure=Pretended())
    test = read_json(tmp_path / "out" / "split.json")["test"][0]
    label = tmp_path / "scans" / "labels" / f"{test}.nii.gz"
    changed = load_label(label)
    changed = dataclasses.replace(changed, array=1 - changed.array)
    save_volume(changed, label)
    with pytest.raises(ConfigError, match=rf"1 of 3 test cases are not those that .*: {test}; prepare the scans again"):
        run_study(config, measure=Pretended())


def test_the_page_shows_test_cases_with_what_the_arms_drew(data, tmp_path):
    class Drawn(Pretended):
        """Scratch draws the truth and its longer training nothing, but for the gains that are told apart by case."""

        def __call__(self, settings, names, tests, recipe, *, overlap):
            scores = super().__call__(settings, names, tests, recipe, overlap=overlap)
            for place, case in enumerate(tests):
                truth = load_label(case.label)
                longer = "scratch_x4" in settings.out
                (Path(settings.out) / "predictions").mkdir(parents=True, exist_ok=True)
                save_volume(
                    dataclasses.replace(truth, array=truth.array * (not longer)), Path(settings.out) / "predictions" / f"{case.id}.nii.gz"
                )
                scores["per_case"][case.id] += 0.02 * place * longer
            return scores

    config = study(data, tmp_path, draws=(0,), labels=(1,))
    run_study(dataclasses.replace(config, cells="arms=scratch"), measure=Drawn())
    page, (low, middle, high) = tmp_path / "index.html", read_json(tmp_path / "split.json")["test"]
    alone = page.read_text()
    assert "<h2>Test cases</h2>" in alone and f"best: {high}, Dice scratch 0.520" in alone and f"worst: {low}, Dice scratch 0.500" in alone
    run_study(config, measure=Drawn())
    both = page.read_text()
    assert "Gains are of scratch_x4 over scratch" in both and "N = 1, draw 0, seed 0" in both
    for word, case, place in (("largest", high, 2), ("median", middle, 1), ("smallest", low, 0)):
        assert f"{word} gain: {case}, Dice scratch {0.5 + 0.01 * place:.3f}, scratch_x4 {0.6 + 0.03 * place:.3f}" in both
    shutil.rmtree(tmp_path / "cells" / "scratch" / "n001-draw0-seed0" / "predictions")
    shutil.rmtree(tmp_path / "cells" / "scratch_x4" / "n001-draw0-seed0" / "predictions")
    run_study(config, measure=Drawn())
    assert "<h2>Test cases</h2>" not in page.read_text()


def test_a_store_may_name_the_channels_in_another_order_than_they_were_found_in(tmp_path):
    """The channel that the labels are drawn on comes first in a store, and by their names it was the last."""
    for case in write_scans(tmp_path / "scans", 5, channels=("ADC", "T2")).iterdir():
        image = load_volume(case / "ADC.nii.gz")
        save_volume(dataclasses.replace(image, affine=image.affine + np.diag([0, 0, 0.5, 0])), case / "ADC.nii.gz")
    store = prepare_folder(tmp_path / "scans", tmp_path / "store")
    assert store.recipe.channels == ("T2", "ADC")
    content = run_study(study(tmp_path, tmp_path / "out", labels=(1,), arms=("scratch",)), measure=Pretended()).content
    assert {cell["status"] for cell in content["cells"]} == {"done"}


def test_all_labels_are_equivalent_to_what_every_draw_of_scratch_needs(data, tmp_path):
    """The arm's one run on all labels stands beside each draw: with draw 0 alone, an unlucky one, the factor would contradict the curve."""

    class Unlucky(Pretended):
        def __call__(self, settings, names, tests, recipe, *, overlap):
            scores = super().__call__(settings, names, tests, recipe, overlap=overlap)
            few = "scratch/" in settings.out and "draw0" in settings.out and "nall" not in settings.out
            shift = -0.2 * few - 0.12 * ("x4" in settings.out)
            return scores | {"per_case": {case: value + shift for case, value in scores["per_case"].items()}}

    content = run_study(study(data, tmp_path, labels=(1, 2, 4, "all"), draws=(0, 1, 2)), measure=Unlucky()).content
    row = next(row for row in content["equivalence"] if row["labels"] == "all" and row["against"] == "scratch")
    assert (row["runs"], row["runs_of_arm"]) == (3, 3)
    scratch = {point["number"]: point["mean"] for point in content["curves"]["scratch"]}
    target = content["curves"]["scratch_x4"][-1]["mean"]
    assert scratch[4] < target < scratch[5]
    share = (target - scratch[4]) / (scratch[5] - scratch[4])
    assert row["scratch_labels"] == pytest.approx(4 * (5 / 4) ** share)


def test_equal_scores_have_an_interval_that_can_be_drawn(data, tmp_path):
    """A third in every case: the means of resamples are off by rounding, on either side."""

    class Third(Pretended):
        def __call__(self, settings, names, tests, recipe, *, overlap):
            return super().__call__(settings, names, tests, recipe, overlap=overlap) | {"per_case": {case.id: 1 / 3 for case in tests}}

    content = run_study(study(data, tmp_path, draws=(0, 1, 2)), measure=Third()).content
    assert all(point["low"] <= point["mean"] <= point["high"] for point in content["curves"]["scratch"])
    assert (tmp_path / "learning_curve.png").is_file()


def test_a_test_case_that_could_not_be_segmented_is_said(data, tmp_path, capsys, monkeypatch):
    class Left(Pretended):
        def __call__(self, settings, names, tests, recipe, *, overlap):
            scores = super().__call__(settings, names, tests, recipe, overlap=overlap)
            return scores | {"left_out": [{"case": tests[0].id, "reason": "T1: truncated"}]}

    results = run_study(study(data, tmp_path, cells="N=1"), measure=Left())
    case = read_json(tmp_path / "split.json")["test"][0]
    page, table = (tmp_path / "index.html").read_text(), (tmp_path / "table.md").read_text()
    assert f"| {case} | T1: truncated | 4 |" in table and "Test cases left out" in page and "T1: truncated" in page
    monkeypatch.setattr("finetune.few_label.study.run_study", lambda config: results)
    assert few_label._study(study(data, tmp_path))
    results.content["cells"] = [{**cell, "left_out": []} for cell in results.content["cells"]]
    assert not few_label._study(study(data, tmp_path))
    capsys.readouterr()


def test_draws_that_label_the_same_case_are_told_apart_from_different_ones(data, tmp_path):
    names = [f"case_{n}" for n in range(8)]
    split = {"pretrain": names[:5], "test": names[5:], "draws": [["case_0", "case_1"], ["case_0", "case_2"], ["case_3", "case_0"]]}
    write_json(tmp_path / "split.json", split)
    content = run_study(study(data, tmp_path / "out", split=str(tmp_path / "split.json"), draws=(0, 1, 2)), measure=Pretended()).content
    assert [(point["draws"], point["subsets"]) for point in content["curves"]["scratch"]] == [(3, 2), (3, 3)]
    assert (tmp_path / "out" / "table.md").read_text().count("only 2 different subsets in 3 draws") == 2


def test_a_config_file_of_wrong_types_is_told_what_was_expected():
    for wrong, said in (
        ({"labels": (1, "2")}, "labels is .*found '2'"),
        ({"labels": (1, 1.5)}, "found 1.5"),
        ({"labels": (True,)}, "found True"),
        ({"draws": 0}, r"draws is 0; expected several values, .*\(0,\)"),
        ({"pretrained": "runs/mae"}, r"pretrained is 'runs/mae'; .*\('runs/mae',\)"),
        ({"seeds": ("0",)}, "found '0'"),
    ):
        with pytest.raises(ConfigError, match=said):
            FewLabelConfig(**wrong)
    assert FewLabelConfig(labels=[1, "all"], spacings=(2,)).labels == [1, "all"]


def test_a_name_of_a_pretraining_that_is_none_says_what_one_is(tmp_path):
    with pytest.raises(
        ConfigError, match="--pretrained my-mae=.*: expected FOLDER or NAME=FOLDER, where NAME has letters, digits and _ alone"
    ):
        arms_of(("pretrained",), (f"my-mae={tmp_path}",))
    # A path may hold the sign, and need not be there yet.
    assert arms_of(("pretrained",), ("runs/lr=0.1/mae",))[0].init == "runs/lr=0.1/mae"
    (tmp_path / "a=b").mkdir()
    assert arms_of(("pretrained",), (str(tmp_path / "a=b"),))[0].init == str(tmp_path / "a=b")


def test_a_draw_that_names_a_case_without_a_label_says_so(tmp_path):
    scans = write_scans(tmp_path / "scans", 3, channels=("T1",))
    (scans / "case_1" / "seg.nii.gz").unlink()
    store = prepare_folder(scans, tmp_path / "store", processes=1)
    write_json(tmp_path / "split.json", {"pretrain": ["case_0", "case_1"], "test": ["case_2"], "draws": [["case_1", "case_0"]]})
    with pytest.raises(ConfigError, match="1 of the first 2 cases of draw 0 have no label in the store: case_1"):
        labelled_cases(store, str(tmp_path / "split.json"), 2, 0)
