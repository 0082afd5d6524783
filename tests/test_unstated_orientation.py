"""Files that state no orientation, or two: refused by every verb, until the user says which holds; then every step goes by that."""

import dataclasses
import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.cases import find_cases
from jaxseg.data.catalog import open_store
from jaxseg.data.io import load_label, load_volume
from jaxseg.data.io.decoded import Rules
from jaxseg.data.store import build_store
from jaxseg.errors import InputError
from jaxseg.job_inputs import MainJob
from jaxseg.pipeline import Trainers, run_main_job
from jaxseg.prepare import prepare_folder
from tests.infer.test_folder import make_model
from tests.tiny_store import write_scans

QFORM_CODE, SFORM_CODE, SROW_X = 252, 254, 280  # bytes of a NIfTI header


def patched(folder: Path, *changes: tuple[int, bytes], names: str = "*") -> Path:
    for path in folder.glob(f"*/{names}.nii.gz"):
        raw = bytearray(gzip.decompress(path.read_bytes()))
        for place, data in changes:
            raw[place : place + len(data)] = data
        path.write_bytes(gzip.compress(bytes(raw)))
    return folder


def unstated(folder: Path) -> Path:
    return patched(folder, (QFORM_CODE, b"\0\0"), (SFORM_CODE, b"\0\0"))


def mirrored(folder: Path) -> Path:
    """The sform says that x runs to the left, the qform what is true; the labels have the sform alone."""
    patched(folder, (SROW_X, struct.pack("<4f", -2, 0, 0, 38)))
    return patched(folder, (QFORM_CODE, b"\0\0"), (SROW_X, struct.pack("<4f", 2, 0, 0, 0)), names="seg")


def test_prepare_segment_and_evaluate_go_by_an_assumed_orientation(tmp_path, capsys):
    whole, bare = write_scans(tmp_path / "whole", count=2), unstated(write_scans(tmp_path / "bare", count=2))
    model, say = make_model(tmp_path / "model", 0), ["--assume-orientation", "RAS"]
    assert main(["prepare", str(bare), "--out", str(tmp_path / "no"), "--processes", "1"]) == 2
    assert "--assume-orientation" in capsys.readouterr().err
    assert main(["prepare", str(bare), "--out", str(tmp_path / "store"), "--processes", "1", *say]) == 0
    store, as_stated = open_store(tmp_path / "store"), prepare_folder(whole, tmp_path / "stated", processes=1)
    assert store.rules == Rules(assume_orientation="RAS") and as_stated.rules == Rules()
    assert store.recipe.content() == as_stated.recipe.content()
    for name in store.names:
        np.testing.assert_array_equal(store.arrays(name).image, as_stated.arrays(name).image)
        np.testing.assert_array_equal(store.arrays(name).label, as_stated.arrays(name).label)
    assert main(["segment", str(model), str(bare), "--out", str(tmp_path / "lost")]) == 2
    assert main(["segment", str(model), str(bare), "--out", str(tmp_path / "pred"), *say]) == 0
    assert (
        main(["segment", str(model), str(bare / "case_0/T1.nii.gz"), str(bare / "case_0/T2.nii.gz"), "--out", str(tmp_path / "one"), *say])
        == 0
    )
    assert main(["segment", str(model), str(whole), "--out", str(tmp_path / "plain")]) == 0
    made, plain = load_label(tmp_path / "pred/case_0.nii.gz"), load_label(tmp_path / "plain/case_0.nii.gz")
    np.testing.assert_array_equal(made.array, plain.array)
    np.testing.assert_array_equal(load_label(tmp_path / "one/T1.nii.gz").array, plain.array)
    assert main(["evaluate", str(tmp_path / "pred"), str(bare), "--out", str(tmp_path / "none")]) == 2
    assert main(["evaluate", str(tmp_path / "pred"), str(bare), "--out", str(tmp_path / "scores"), *say]) == 0
    assert main(["evaluate", str(tmp_path / "plain"), str(whole), "--out", str(tmp_path / "expected")]) == 0
    scores, expected = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("scores", "expected"))
    assert scores["per_case"] == expected["per_case"]


@pytest.mark.parametrize("verb", ["index", "prepare"])
def test_axes_that_are_none_are_refused_before_anything_is_read(tmp_path, capsys, verb):
    bare = unstated(write_scans(tmp_path / "bare", count=1))
    assert main([verb, str(bare), "--out", str(tmp_path / "out"), "--assume-orientation", "RAX"]) == 2
    assert "'RAX': expected three letters" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_assumption_prepares_the_cases_again(tmp_path):
    bare = unstated(write_scans(tmp_path / "bare", count=1))
    images = [
        np.array(prepare_folder(bare, tmp_path / "store", rules=Rules(assume_orientation=axes), processes=1).arrays("case_0").image)
        for axes in ("RAS", "LAS", "RAS")
    ]
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[0][::-1], images[1])


def test_prepare_goes_by_what_the_index_was_told(tmp_path, capsys):
    bare = unstated(write_scans(tmp_path / "bare", count=2))
    index, store = str(tmp_path / "index"), str(tmp_path / "store")
    assert main(["index", str(bare), "--out", index, "--assume-orientation", "las"]) == 0
    assert main(["prepare", index, "--out", store, "--processes", "1", "--assume-orientation", "RAS"]) == 2
    assert "jaxseg index" in capsys.readouterr().err
    assert main(["prepare", index, "--out", store, "--processes", "1"]) == 0
    direct = prepare_folder(bare, tmp_path / "direct", rules=Rules(assume_orientation="LAS"), processes=1)
    np.testing.assert_array_equal(open_store(store).arrays("case_0").image, direct.arrays("case_0").image)
    assert open_store(store).rules == direct.rules


def test_the_form_that_was_chosen_holds_for_files_that_state_two_and_no_others(tmp_path):
    whole, torn = write_scans(tmp_path / "whole", count=1), mirrored(write_scans(tmp_path / "torn", count=1))
    with pytest.raises(InputError, match=r"mirror image.*--qform-sform"):
        prepare_folder(torn, tmp_path / "store", processes=1)
    store = prepare_folder(torn, tmp_path / "store", rules=Rules(policy="qform"), processes=1)
    expected = prepare_folder(whole, tmp_path / "expected", processes=1)
    for part in ("image", "label"):
        np.testing.assert_array_equal(getattr(store.arrays("case_0"), part), getattr(expected.arrays("case_0"), part))
    flipped = load_volume(torn / "case_0/T1.nii.gz", policy="sform")
    np.testing.assert_array_equal(flipped.array[::-1], load_volume(torn / "case_0/T1.nii.gz", policy="qform").array)


def test_the_main_job_goes_by_it_from_the_index_to_the_stores(tmp_path):
    class Reached(Exception):
        pass

    def train(*_):
        raise Reached

    folders = {
        name: unstated(write_scans(tmp_path / name, count=3, labelled=name == "labelled", seed=len(name)))
        for name in ("labelled", "archive")
    }
    job = MainJob(unlabelled=folders["archive"], labelled=folders["labelled"], out=tmp_path / "out", labels=2, minutes=0.01)
    with pytest.raises(InputError, match="states no orientation"):
        run_main_job(job, Trainers(train, train))
    with pytest.raises(Reached):
        run_main_job(dataclasses.replace(job, assume_orientation="RAS"), Trainers(train, train))
    stores = [open_store(tmp_path / "out/store" / name) for name in ("labelled", "unlabelled")]
    assert [(len(store.names), store.left_out) for store in stores] == [(3, []), (3, [])]


def test_a_store_is_read_by_one_set_of_rules(tmp_path):
    cases = find_cases(write_scans(tmp_path / "scans", count=2))
    first, second = cases
    recipe = prepare_folder(tmp_path / "scans", tmp_path / "store", processes=1).recipe
    with pytest.raises(InputError, match="one set of rules"):
        build_store([first, dataclasses.replace(second, rules=Rules(policy="qform"))], recipe, tmp_path / "other", processes=1)
