"""`prepare`: from an index as from a folder, added scans alone are prepared, and every wish reaches the arrays and the recipe."""

import dataclasses
import shutil

import numpy as np
import pytest

from jaxseg.data import staging
from jaxseg.data.archive import index_archive
from jaxseg.data.cases import find_cases
from jaxseg.data.io import load_volume, save_volume
from jaxseg.data.preprocess import apply_recipe, prepare_case
from jaxseg.data.recipe import Recipe
from jaxseg.data.stacking import stack_case
from jaxseg.data.volume import Volume
from jaxseg.errors import ConfigError, InputError
from jaxseg.job_inputs import MainJob, read_inputs
from jaxseg.prepare import Wishes, prepare_folder
from jaxseg.zoo import create_model, save_model
from tests.tiny_store import write_scans


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans", count=3)


def prepared(monkeypatch) -> list[str]:
    names: list[str] = []
    original = staging.prepare_case
    monkeypatch.setattr(staging, "prepare_case", lambda case, recipe: (names.append(case.id), original(case, recipe))[1])
    return names


def test_an_index_gives_the_folders_store_without_what_is_not_ok(scans, tmp_path):
    flat = load_volume(scans / "case_2/T2.nii.gz", channels=["T2"])
    save_volume(dataclasses.replace(flat, array=np.zeros_like(flat.array)), scans / "case_2/T2.nii.gz")  # constant: not ok
    (scans / "case_1/T1.nii.gz").write_bytes(b"broken")
    (scans / "case_1/T2.nii.gz").write_bytes(b"broken")
    index_archive(scans, tmp_path / "index")
    store = prepare_folder(tmp_path / "index", tmp_path / "store", processes=1)
    assert store.names == ("case_0", "case_2") and store.entry("case_2").present == (True, False)
    reasons = {item["name"]: item["reason"] for item in store.left_out}
    assert set(reasons) == {"case_1", "case_2/T2"} and str(scans) not in str(reasons)
    (scans / "case_2/T2.nii.gz").unlink()
    whole = prepare_folder(scans, tmp_path / "whole", like=store.path, processes=1)
    assert whole.entry("case_0").files == store.entry("case_0").files


def test_a_root_without_the_label_that_is_named_stays_in_the_store_unlabelled(scans, tmp_path):
    """An archive beside the labelled cases, with labels of another structure: its scans are kept, and their labels are none."""
    write_scans(tmp_path / "archive", count=2, seed=5)
    for case in scans.iterdir():
        (case / "seg.nii.gz").rename(case / "tumour_seg.nii.gz")
    index_archive([scans, tmp_path / "archive"], tmp_path / "index")
    store = prepare_folder(tmp_path / "index", tmp_path / "store", label_name="tumour_seg", processes=1)
    assert len(store.names) == 5 and len(store.labelled) == 3
    with pytest.raises(InputError, match="no case has a label called tumor; there are"):
        prepare_folder(tmp_path / "index", tmp_path / "other", label_name="tumor", processes=1)


def test_added_scans_alone_are_prepared_though_the_median_spacing_moves(scans, tmp_path, monkeypatch):
    first = prepare_folder(scans, tmp_path / "store", processes=1)
    names = prepared(monkeypatch)
    for number in range(3, 8):
        extra = write_scans(tmp_path / f"more{number}", count=1, seed=number)
        for path in (extra / "case_0").iterdir():
            coarse = load_volume(path, channels=["a"])
            affine = coarse.affine @ np.diag([1.5, 1.5, 1.5, 1.0])
            array = coarse.array.astype(np.uint8) if path.name.startswith("seg") else coarse.array
            save_volume(Volume(array, affine, ("a",)), scans / f"case_{number}" / path.name)
    second = prepare_folder(scans, tmp_path / "store", processes=1)
    assert sorted(names) == [f"case_{number}" for number in range(3, 8)] and second.recipe == first.recipe
    assert prepare_folder(scans, tmp_path / "fresh", processes=1).recipe.spacing != first.recipe.spacing


def test_wishes_reach_the_recipe_and_inference_does_the_same(scans, tmp_path):
    wishes = Wishes((1.5, 1.5, 1.5), ("nyul",), "nnunet")
    store = prepare_folder(scans, tmp_path / "store", wishes=wishes, processes=1)
    assert (
        store.recipe.intensity == ("nyul", "nyul") and store.recipe.resampling == "nnunet" and set(store.recipe.landmarks) == {"T1", "T2"}
    )
    case = find_cases(scans).cases[0]
    uncut = dataclasses.replace(store.recipe, crop=False)  # labels may widen the box by a voxel
    image, _, grid, _ = apply_recipe(stack_case(case, uncut), uncut)
    # nnU-Net cuts the field of view into a whole number of voxels.
    whole = stack_case(case, uncut).grid
    assert np.multiply(grid.spacing, grid.shape) == pytest.approx(np.multiply(whole.spacing, whole.shape))
    for spacing in (grid.spacing, store.entry("case_0").spacing):
        assert spacing == pytest.approx((1.5, 1.5, 1.5), rel=0.05)
    np.testing.assert_array_equal(image, prepare_case(case, uncut).image)
    label = store.entry("case_0")
    assert label.info["label_ml_prepared"]["1"] == pytest.approx(label.info["label_ml"]["1"], rel=0.05)
    with pytest.raises(ConfigError, match="3 intensity rules for the channels T1, T2"):
        prepare_folder(scans, tmp_path / "other", wishes=Wishes(intensity=("zscore",) * 3))


def test_fields_that_came_later_leave_old_hashes_alone():
    recipe = Recipe(("T1",), (1.0, 1.0, 1.0), ("zscore",))
    assert set(recipe.content()) == {"channels", "spacing", "intensity", "orientation", "crop", "labels", "regions"}
    assert dataclasses.replace(recipe, n4=True, resampling="nnunet").content().keys() - recipe.content().keys() == {"n4", "resampling"}
    for wrong in ({"strip": "hair"}, {"resampling": "cubic"}, {"register": "elastic"}):
        with pytest.raises(ConfigError, match="choose among"):
            dataclasses.replace(recipe, **wrong)


def test_a_supplied_brain_mask_cuts_the_scan_and_a_missing_one_is_said(scans):
    cases = find_cases(scans)
    scan = load_volume(scans / "case_0/T1.nii.gz", channels=["T1"])
    brain = np.zeros(scan.array.shape, np.uint8)
    brain[5:15, 5:13, 4:12] = 1
    save_volume(Volume(brain, scan.affine, ("mask",)), scans / "case_0/brainmask.nii.gz")
    found = find_cases(scans)
    assert found.channels == cases.channels and found.cases[0].mask is not None and found.cases[1].mask is None
    recipe = Recipe(("T1", "T2"), (2.0, 2.0, 2.5), ("zscore", "zscore"), crop=False, strip="mask")
    done = prepare_case(found.cases[0], recipe)
    np.testing.assert_array_equal(done.mask, brain[..., 0] > 0)
    assert (done.image[~done.mask] == 0).all() and done.image[done.mask].mean() == pytest.approx(0, abs=1e-3)
    with pytest.raises(InputError, match=r"case case_1: .*brain mask.*has none"):
        prepare_case(found.cases[1], recipe)


def test_a_model_whose_card_says_no_recipe_is_no_example(scans, tmp_path):
    network = create_model("unetr_tiny", in_channels=2, crop=8, token=4, width=24, depth=2, heads=2, feature=4)
    save_model(tmp_path / "model", network, {"channels": ["T1", "T2"]})
    with pytest.raises(InputError, match=r"model: the card .* names no recipe"):
        prepare_folder(scans, tmp_path / "store", like=tmp_path / "model")


def test_4_d_files_are_read_by_the_channels_that_the_user_names(scans, tmp_path):
    """Without a dataset.json nobody knows them: said to the index, or to prepare; the main job knows them from what is labelled."""
    packed = tmp_path / "packed"
    for case in find_cases(scans):
        one, two = (load_volume(case.images[name], channels=[name]) for name in ("T1", "T2"))
        save_volume(
            dataclasses.replace(one, array=np.concatenate([one.array, two.array], -1), channels=("T1", "T2")), packed / f"{case.id}.nii.gz"
        )
    with pytest.raises(InputError, match="name its channels"):
        prepare_folder(packed, tmp_path / "no", processes=1)
    with pytest.raises(
        InputError, match=r"no case has the channel T1, T2, T3; there is: image; .*nii.gz holds 2 volumes, and 3 channels are named"
    ):
        prepare_folder(packed, tmp_path / "no", channels=("T1", "T2", "T3"), processes=1)
    mixed = tmp_path / "mixed"
    shutil.copytree(packed, mixed)
    one = load_volume(next(iter(find_cases(scans))).images["T1"], channels=["T1"])
    save_volume(dataclasses.replace(one, array=np.concatenate([one.array] * 3, -1), channels=("a", "b", "c")), mixed / "odd.nii.gz")
    with pytest.raises(
        InputError, match=r"case odd has none of the channels T1, T2; it has image; .*odd.nii.gz holds 3 volumes, and 2 channels"
    ):
        prepare_folder(mixed, tmp_path / "no", channels=("T1", "T2"), processes=1)
    plain = prepare_folder(scans, tmp_path / "plain", processes=1)
    named = prepare_folder(packed, tmp_path / "named", channels=("T1", "T2"), processes=1)
    index_archive(packed, tmp_path / "index", channels=("T1", "T2"))
    indexed = prepare_folder(tmp_path / "index", tmp_path / "indexed", processes=1)
    for store in (named, indexed):
        assert store.recipe.channels == ("T1", "T2") and store.names == plain.names
        np.testing.assert_array_equal(store.arrays("case_1").image, plain.arrays("case_1").image)
    inputs = read_inputs(MainJob(unlabelled=packed, labelled=scans, out=tmp_path / "job"))
    assert not inputs.left_out and [case.packed for case in inputs.unlabelled] == 3 * [("T1", "T2")]
