"""Voxels that anonymisation took away leave the loss: from mask files, and found where a phantom's face became a constant."""

from functools import cache

import numpy as np
import pytest

from jaxseg.data.anonymised import ANONYMISED, blanked
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.intensity import body_mask, own_foreground
from jaxseg.data.io import save_volume
from jaxseg.data.loader import CropLoader
from jaxseg.data.phantom.case import make_case
from jaxseg.data.preprocess import prepare_case
from jaxseg.data.recipe import Recipe
from jaxseg.data.staging import inputs_hash, without_paths
from jaxseg.data.store import build_store
from jaxseg.data.volume import Volume
from jaxseg.errors import GeometryError

SPACING = (3.0, 3.0, 3.0)


@cache
def head():
    """(T1 of a phantom, its body, the box of its face), axes in RAS order."""
    phantom = make_case(7, spacing=SPACING, channels=("T1",), tumour=False, working_mm=4.0)
    plane = phantom.images["T1"]
    body = body_mask([own_foreground(plane, "zscore")])
    face = np.zeros(plane.shape, bool)
    rows = np.flatnonzero(body.any((0, 2)))
    face[:, rows[-1] - 10 :, : plane.shape[2] // 2] = True
    return plane, body, face


def volume(array, name="T1", shift=0.0):
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = shift
    return Volume(np.asarray(array)[..., None], affine, (name,))


def recipe(**changes):
    return Recipe(**{"channels": ("T1",), "spacing": SPACING, "intensity": ("zscore",), "crop": False, **changes})


def test_a_face_replaced_by_a_constant_is_found():
    plane, body, face = head()
    for value in (plane.max(), np.median(plane[body])):
        found = blanked(np.where(face, value, plane), "zscore", SPACING)
        assert found[face & body].all()
        assert not (found & ~face).any()


def test_a_blanked_face_in_a_ct_is_found_although_it_holds_no_air():
    """Defacing writes 0, which is water in Hounsfield units."""
    plane, body, face = head()
    ct = np.where(body, 40 + plane / plane.std(), -1000 + plane / plane.std()).astype(np.float32)
    found = blanked(np.where(face, 0, ct).astype(np.float32), "ct", SPACING)
    assert found[face].all() and not (found & ~face).any()


def test_a_face_blanked_with_the_value_of_air_leaves_no_body_behind():
    """A constant background is air already; in noisy air a layer at the cut would count as body, and the rest is found with it."""
    plane, body, face = head()
    for air in (plane, np.where(body, plane, 0)):
        blank = np.where(face, 0, air)
        left = body_mask([own_foreground(blank, "zscore")]) & ~blanked(blank, "zscore", SPACING)
        assert not left[face].any() and left.sum() > 0.95 * (body & ~face).sum()


def test_heads_as_they_come_hold_nothing_blanked():
    plane, body, _ = head()
    assert not blanked(plane, "zscore", SPACING).any()
    inside = np.zeros(plane.shape, bool)
    centre = [int(np.mean(where)) for where in np.nonzero(body)]
    inside[tuple(slice(c - 4, c + 4) for c in centre)] = True  # constant, but deep inside: no defacing
    assert not blanked(np.where(inside, plane.max(), plane), "zscore", SPACING).any()
    back = np.zeros(plane.shape, bool)
    back[:, : plane.shape[1] // 4, : plane.shape[2] // 2] = True
    assert not blanked(np.where(back, plane.max(), plane), "zscore", SPACING).any()


def cases_in(folder, *, supplied):
    plane, _, face = head()
    array = plane if supplied else np.where(face, plane.max(), plane)
    save_volume(volume(array.astype(np.float32)), folder / "p1" / "T1.nii.gz")
    if supplied:
        save_volume(volume(face.astype(np.uint8)), folder / "p1" / "T1_anon_mask.nii.gz")
    return find_cases(folder)


@pytest.mark.parametrize("supplied", [True, False])
def test_what_was_anonymised_reaches_the_loss_as_air(tmp_path, supplied):
    plane, body, face = head()
    (case,) = cases_in(tmp_path / "scans", supplied=supplied).cases
    plain, marked = prepare_case(case, recipe()), prepare_case(case, recipe(defaced=True))
    assert marked.anonymised is not None and marked.info["anonymised_ml"] > 1
    assert (plain.anonymised is not None) == supplied
    np.testing.assert_array_equal(plain.image, marked.image)  # images are those that segmenting will see
    store = build_store([case], recipe(defaced=True), tmp_path / "store", processes=1)
    mask = store.arrays("p1").mask
    assert (mask[face & body] == ANONYMISED).all() and (mask[~face] != ANONYMISED).all()
    assert (mask[tuple(store.arrays("p1").body.T)] == 1).all()
    (shape,) = {array.shape for array in (plane, mask)}
    batch = next(CropLoader(store, ["p1"], crop=shape, batch=1, seed=0, threads=0))
    assert set(np.unique(batch["mask"])) == {0, 1} and not batch["mask"][0][face].any()
    # A bright constant moves the threshold between air and body a little.
    assert batch["mask"][0][body & ~face].mean() > (0.999 if supplied else 0.95)


def test_a_mask_on_a_finer_grid_takes_the_voxels_that_it_touches(tmp_path):
    face = head()[2]
    (case,) = cases_in(tmp_path, supplied=True).cases
    done = prepare_case(case, recipe(spacing=(6.0, 6.0, 6.0)))
    assert done.anonymised is not None
    # The same field of view in half as many voxels: one that holds an anonymised voxel at all is marked.
    whole = face[: 2 * done.mask.shape[0], : 2 * done.mask.shape[1], : 2 * done.mask.shape[2]]
    assert done.anonymised.sum() * 8 >= whole.sum()


def test_masks_belong_to_their_case_and_to_its_hash(tmp_path):
    (case,) = cases_in(tmp_path, supplied=True).cases
    assert case.anonymised == (tmp_path / "p1" / "T1_anon_mask.nii.gz",)
    assert set(case.images) == {"T1"} and case.label is None and case.mask is None
    bare = Case(case.id, case.images)
    assert inputs_hash(case, recipe()) != inputs_hash(bare, recipe())
    assert inputs_hash(bare, recipe()) == inputs_hash(bare, recipe(defaced=False))
    assert "T1_anon" not in without_paths(f"{case.anonymised[0]}: broken", case)
    alike = Case("a", {"T1": tmp_path / "images/Jane.nii.gz"}, tmp_path / "labels/Jane.nii.gz")
    assert without_paths(f"the label {alike.label} lies on {alike.images['T1']}", alike) == "the label label.nii.gz lies on T1.nii.gz"


def test_a_mask_beside_the_scan_is_refused(tmp_path):
    (case,) = cases_in(tmp_path, supplied=True).cases
    _, _, face = head()
    save_volume(volume(face.astype(np.uint8), shift=5000.0), case.anonymised[0])
    with pytest.raises(GeometryError, match="beside its scan"):
        prepare_case(case, recipe())


def test_names_of_masks(tmp_path):
    for name in ("a_T1", "a_T1_anonymization_mask", "a_seg", "b_T1", "b_defacing-mask", "b_brain_mask"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    found = {case.id: case for case in find_cases(tmp_path)}
    assert [path.name for path in found["a"].anonymised] == ["a_T1_anonymization_mask.nii.gz"] and found["a"].label is not None
    assert [path.name for path in found["b"].anonymised] == ["b_defacing-mask.nii.gz"]
    assert found["b"].mask == tmp_path / "b_brain_mask.nii.gz" and found["b"].label is None
