"""Copies are found whatever became of the file, and different heads are not taken for copies; audits of indexes, stores and cards."""

import itertools
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from jaxseg.audit import audit, refuse_overlap
from jaxseg.cli import main
from jaxseg.data.archive import index_archive, read_index
from jaxseg.data.cases import find_cases
from jaxseg.data.duplicates import EXTENT, LIKENESS, find_overlaps, scans_of_card, scans_of_cases, scans_of_index, scans_of_store
from jaxseg.data.fingerprint import BYTES, fingerprint, unpack
from jaxseg.data.io import save_volume
from jaxseg.data.phantom.case import make_case
from jaxseg.data.volume import Volume
from jaxseg.errors import ConfigError, InputError
from jaxseg.prepare import Wishes, prepare_folder
from tests.tiny_store import write_scans

SPACING = (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def heads():
    """Five phantoms of one scanner, one contrast: as alike as different patients can be."""
    made = (make_case((7, 0, number), spacing=(3, 3, 3), channels=("T1",), scanner="alpha", working_mm=3.0) for number in range(5))
    return [phantom.images["T1"] for phantom in made]


def alike(one, other, spacing=SPACING, other_spacing=SPACING):
    """(likeness, largest relative difference of extents) of two arrays."""
    prints = [fingerprint(np.asarray(array), mm) for array, mm in ((one, spacing), (other, other_spacing))]
    assert all(found is not None and len(found) == BYTES for found in prints)
    vectors, extents = unpack([found for found in prints if found is not None])
    return float(vectors[0] @ vectors[1]), float(np.abs(np.log(extents[0] / extents[1])).max())


@pytest.mark.parametrize(
    "change", ["itself", "scaled", "eight bits", "float64", "noise", "one side cropped", "all sides cropped", "padded"]
)
def test_a_changed_copy_is_still_alike(heads, change):
    head = heads[0].astype(np.float32)
    copies = {
        "itself": head,
        "scaled": 1.2 * head - 30,
        "eight bits": np.round(255 * head / head.max()).astype(np.uint8),
        "float64": head.astype(np.float64),
        "noise": head + np.random.default_rng(0).normal(0, 0.03 * head.std(), head.shape),
        "one side cropped": head[1:],
        "all sides cropped": head[1:-1, 1:-1, 1:-1],
        "padded": np.pad(head, 3, constant_values=float(np.median(head[0]))),
    }
    likeness, apart = alike(head, copies[change])
    assert likeness > LIKENESS and apart < EXTENT / 2


def test_different_heads_are_not_alike(heads):
    found = [alike(one, other) for one, other in itertools.combinations(heads, 2)]
    assert not any(likeness > LIKENESS and apart < EXTENT for likeness, apart in found), found


def test_a_constant_scan_has_no_look():
    assert fingerprint(np.full((8, 8, 8), 3.0), SPACING) is None
    assert fingerprint(np.full((8, 8, 8), np.nan), SPACING) is None


@pytest.mark.realdata
def test_no_two_real_patients_are_taken_for_one(real_scans, tmp_path):
    index = index_archive(real_scans / "brain", tmp_path, processes=1)
    scans = [scan for scan in scans_of_index(index)][:60]
    assert len(scans) > 20
    found = find_overlaps(scans, scans).contents
    assert {(overlap.first, overlap.second) for overlap in found} == {(scan.name, scan.name) for scan in scans}


# Audits


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two folders of cases that share one scan (re-saved, on another grid origin and in another type) and one patient's name."""
    root = tmp_path_factory.mktemp("audit")
    write_scans(root / "one", count=3, labelled=False, seed=5, shape=(30, 28, 26))
    write_scans(root / "two", count=2, seed=6, shape=(30, 28, 26))
    (root / "two/case_0").rename(root / "two/case_8")
    for name in ("T1", "T2"):
        [case] = [case for case in find_cases(root / "one") if case.id == "case_2"]
        values = np.asarray(nib.load(case.images[name]).dataobj, np.float32)
        save_volume(Volume(1.1 * values[1:, ..., None], np.diag([2.0, 2, 2.5, 1]), (name,)), root / "two/case_9" / f"{name}.nii.gz")
    return root


def kinds(overlaps):
    return sorted({overlap.kind for overlap in overlaps.found})


def test_two_indexes_with_different_salts_are_compared_by_content_and_patient(two, tmp_path, capsys):
    for name in ("one", "two"):
        index_archive(two / name, tmp_path / name, salt=name)
    found = audit(tmp_path / "one", tmp_path / "two")
    assert kinds(found) == ["near copy", "same patient"] and found
    assert not any(str(two) in line or "case_" in line for line in found.lines())
    assert main(["audit", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "found.json")]) == 2
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["near copy"] >= 2 and counts["same content"] == 0 and json.loads((tmp_path / "found.json").read_text())["overlaps"]


def test_a_channel_of_a_4d_file_is_known_where_it_is_a_file_of_its_own(heads, tmp_path):
    affine, shape = np.diag([3.0, 3, 3, 1]), np.max([head.shape for head in heads], 0)
    heads = [np.pad(head, [(0, most - n) for n, most in zip(head.shape, shape)]) for head in heads]
    for name, pair in (("a", heads[0:2]), ("b", heads[2:4])):
        save_volume(Volume(np.stack(pair, -1).astype(np.float32), affine, ("FLAIR", "T1")), tmp_path / f"four/imagesTr/{name}.nii.gz")
        save_volume(Volume(np.ones((*shape, 1), np.uint8), affine, ("label",)), tmp_path / f"four/labelsTr/{name}.nii.gz")
    told = {"modality": {"0": "FLAIR", "1": "T1"}, "labels": {"0": "background", "1": "head"}, "numTraining": 2}
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
    (tmp_path / "four/dataset.json").write_text(json.dumps({**told, "training": listed, "test": []}))
    for name, head in (("known", heads[3]), ("stranger", heads[4])):
        save_volume(Volume(head[..., None].astype(np.float32), affine, ("T1",)), tmp_path / f"one/{name}/T1.nii.gz")
    for name in ("four", "one"):
        index_archive(tmp_path / name, tmp_path / f"index {name}")
    for one, other in (("four", "one"), ("one", "four")):
        found = audit(tmp_path / f"index {one}", tmp_path / f"index {other}")
        assert found.counts()["near copy"] == 1 and found.found[0].likeness == pytest.approx(1, abs=1e-3)
    seen = scans_of_store(prepare_folder(tmp_path / "four", tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"has seen 1 of the 2 test cases \(known\)"):
        refuse_overlap(seen, scans_of_cases(find_cases(tmp_path / "one")), "test cases")


def test_an_index_and_itself_share_every_image(two, tmp_path):
    index_archive(two / "one", tmp_path / "one")
    assert audit(tmp_path / "one", tmp_path / "one").counts()["same content"] == 6


def test_patients_whose_names_end_in_four_digits_are_not_taken_for_one(two, tmp_path):
    for first, name in ((1, "one"), (11, "two")):
        for number, file in enumerate(sorted((two / name).rglob("T*.nii.gz"))[:2]):
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / name / f"PANCREAS_{first + number:04d}.nii.gz")
        index_archive(tmp_path / name, tmp_path / f"index {name}", salt=None)
    found = audit(tmp_path / "index one", tmp_path / "index two")
    assert "same patient" not in kinds(found)
    assert audit(tmp_path / "index one", tmp_path / "index one").counts()["same content"] == 2
    index_archive(tmp_path / "one", tmp_path / "again", salt=None)
    assert (
        len(
            [
                scan
                for scan in scans_of_index(read_index(tmp_path / "again"))
                if any(name.startswith("PANCREAS_000") for name in scan.patients)
            ]
        )
        == 2
    )


def test_strangers_share_nothing(two, tmp_path, capsys):
    write_scans(tmp_path / "other", count=2, labelled=False, seed=77, shape=(22, 30, 20))
    (tmp_path / "other/case_0").rename(tmp_path / "other/case_70")
    (tmp_path / "other/case_1").rename(tmp_path / "other/case_71")
    for name, folder in (("one", two / "one"), ("three", tmp_path / "other")):
        index_archive(folder, tmp_path / name, salt=None)
    assert main(["audit", str(tmp_path / "one"), str(tmp_path / "three")]) == 0
    with pytest.raises(InputError, match="neither an index .*`jaxseg index FOLDER --out INDEX`"):
        audit(tmp_path / "one", tmp_path)


def test_a_store_a_card_and_raw_cases_know_the_copy_whatever_the_recipe(two, tmp_path):
    one = prepare_folder(two / "one", tmp_path / "store one", wishes=Wishes(spacing=(3.0, 3.0, 3.0)))
    store = prepare_folder(two / "two", tmp_path / "store two")
    card = {"training": {"data": one.hashes(one.names), "scans": one.contents(one.names)}}
    assert "case_" not in json.dumps(card)
    for seen in (scans_of_store(one), scans_of_card(card)):
        shared = {overlap.second for overlap in find_overlaps(seen, scans_of_store(store)).contents}
        assert shared == {"case_9"}
        assert {overlap.second for overlap in find_overlaps(seen, scans_of_cases(find_cases(two / "two"))).contents} == {"case_9"}
    with pytest.raises(ConfigError, match=r"has seen 1 of the 3 test cases \(case_9\)"):
        refuse_overlap(scans_of_card(card), scans_of_store(store), "test cases")
    refuse_overlap(scans_of_card(card), scans_of_store(store, ["case_8"]), "test cases")
