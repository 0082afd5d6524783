"""Prepared cases: on the recipe's grid, intensities on scale, labels in place, and what does not fit refused with numbers."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to

from jaxseg.data.cases import Case, CaseSet, find_cases
from jaxseg.data.intensity import body_mask, normalise, own_foreground, tracer_foreground
from jaxseg.data.io import load_volume, save_volume
from jaxseg.data.preprocess import Recipe, apply_recipe, guess_recipe, load_case, prepare_case
from jaxseg.data.staging import inputs_hash
from jaxseg.data.volume import Grid, Volume, reorient_like, to_grid
from jaxseg.errors import ConfigError, GeometryError, InputError, ShapeError

CENTRE, LESION = np.array([4.0, -6.0, 10.0]), np.array([12.0, -2.0, 8.0])


def grid_of(spacing, shape, codes_like=None):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = CENTRE - np.multiply(spacing, np.subtract(shape, 1)) / 2
    return Grid(tuple(shape), affine)


def world(grid):
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def head(grid, air=0.0, noise=0.0, scale=1.0):
    """A ball of tissue with a brighter lesion, in air."""
    place, rng = world(grid), np.random.default_rng(0)
    body = np.linalg.norm(place - CENTRE, axis=-1) < 26
    array = np.where(body, 100.0 * scale + 10 * scale * rng.normal(size=grid.shape), air)
    array = np.where(np.linalg.norm(place - LESION, axis=-1) < 8, 200.0 * scale, array) + noise * np.abs(rng.normal(size=grid.shape))
    return Volume(array.astype(np.float32)[..., None], grid.affine, ("T1",))


def lesion(grid, value=1):
    return Volume(((np.linalg.norm(world(grid) - LESION, axis=-1) < 8) * value).astype(np.uint8)[..., None], grid.affine, ("label",))


GRID = grid_of((1.5, 1.5, 2.0), (46, 44, 36))


@pytest.fixture
def case(tmp_path):
    """T1 stored in another axis order, PET on a coarse grid, a lesion drawn on T1."""
    psr = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    files = {
        "T1": reorient_like(head(GRID), psr),
        "PET": head(grid_of((4, 4, 3), (20, 20, 26)), noise=0.02, scale=0.01),
        "seg": reorient_like(lesion(GRID), psr),
    }
    paths = {name: save_volume(volume, tmp_path / f"p1/{name}.nii.gz") for name, volume in files.items()}
    return Case("p1", {"PET": paths["PET"], "T1": paths["T1"]}, paths["seg"])


def recipe(**changes):
    facts = {"channels": ("T1", "PET"), "spacing": (2.0, 2.0, 2.0), "intensity": ("zscore", "percentile"), "labels": {"lesion": 1}}
    return Recipe(**(facts | changes))


def test_a_case_arrives_whole_and_in_place(case):
    done = prepare_case(case, recipe())
    assert done.image.dtype == np.float32 and done.label.dtype == np.uint8 and done.mask.dtype == bool
    assert done.image.shape == (*done.grid.shape, 2) and done.label.shape == done.mask.shape == done.grid.shape
    np.testing.assert_allclose(done.grid.spacing, (2, 2, 2))
    where = world(done.grid)
    np.testing.assert_allclose(where[done.label == 1].mean(0), LESION, atol=0.2)
    np.testing.assert_allclose(where[done.mask].mean(0), CENTRE, atol=0.2)
    assert done.mask.sum() * 0.008 == pytest.approx(4 / 3 * np.pi * 2.6**3, rel=0.12)  # PET voxels of 4 mm widen the union by under 1 mm
    assert (done.label == 1).sum() * 0.008 == pytest.approx(done.info["label_ml"]["1"], rel=0.03)
    for channel in (0, 1):
        bright = done.image[..., channel]
        assert bright[done.label == 1].mean() > 1.5 * bright[done.mask].std() + bright[done.mask].mean()
    assert done.present.tolist() == [True, True]


def test_zscore_and_percentile_hold_over_the_body(case):
    done = prepare_case(case, recipe())
    t1, pet = done.image[done.mask].T
    assert t1.mean() == pytest.approx(0, abs=1e-4) and t1.std() == pytest.approx(1, abs=1e-4)
    assert pet.min() == 0 and pet.max() == 1
    assert (done.image[~done.mask] == 0).all()


def test_cropping_ends_near_the_body_and_goes_back_to_the_scan(case):
    cropped, whole = prepare_case(case, recipe()), prepare_case(case, recipe(crop=False))
    assert np.prod(cropped.grid.shape) < np.prod(whole.grid.shape)
    for axis in range(3):
        where = np.flatnonzero(cropped.mask.any(axis=tuple({0, 1, 2} - {axis})))
        assert where[0] <= 3 and where[-1] >= cropped.grid.shape[axis] - 4
    scan = load_volume(case.images["T1"])
    label = Volume(cropped.label[..., None], cropped.grid.affine, ("label",))
    back = to_grid(label, scan.grid, labels=True).array[..., 0] > 0
    truth = lesion(GRID).array[..., 0] > 0
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.9


def test_segmenting_sees_the_same_array_as_training(case):
    volume = load_volume({"T1": case.images["T1"], "PET": case.images["PET"]})
    image, mask, grid, present = apply_recipe(volume, recipe())
    done = prepare_case(case, recipe())
    np.testing.assert_array_equal(image, done.image)
    np.testing.assert_array_equal(mask, done.mask)
    assert grid.same_as(done.grid, tol=1e-6) and present.tolist() == done.present.tolist()


def test_a_missing_channel_is_zero_and_flagged(case):
    alone = Case("p1", {"t1": case.images["T1"]}, case.label)
    done = prepare_case(alone, recipe())
    assert done.present.tolist() == [True, False] and (done.image[..., 1] == 0).all() and done.image[..., 0].any()
    with pytest.raises(InputError, match="case p1: has FLAIR, none of the recipe's channels T1, PET"):
        prepare_case(Case("p1", {"FLAIR": case.images["T1"]}), recipe())


def test_channels_that_do_not_fit_are_refused_by_name():
    volume = head(GRID)
    with pytest.raises(ShapeError, match="1 channels called T1, expected 2 called FLAIR, CT"):
        apply_recipe(volume, recipe(channels=("FLAIR", "CT")))
    image, *_ = apply_recipe(volume, recipe(channels=("scan",), intensity=("zscore",)))
    assert image.shape[-1] == 1


def test_channels_of_a_4d_file_are_taken_by_name_in_any_order(tmp_path):
    both = Volume(np.concatenate([head(GRID).array, 50 + head(GRID).array], -1), GRID.affine, ("T2", "T1"))
    path = save_volume(both, tmp_path / "both.nii.gz")
    (volume,) = load_case(Case("p", {"T1": path, "T2": path}, packed=("T2", "T1")), ("T1", "T2"))
    assert volume.channels == ("T1", "T2")
    np.testing.assert_array_equal(volume.array, both.array[..., ::-1])
    (volume,) = load_case(Case("p", {"T1": path}, packed=("T2", "T1")), ("t1",))
    np.testing.assert_array_equal(volume.array, both.array[..., 1:])


def test_a_label_on_another_grid_is_refused_with_numbers(case, tmp_path):
    moved = lesion(grid_of((1.5, 1.5, 2.0), (46, 44, 35)))
    odd = Case("p1", case.images, save_volume(moved, tmp_path / "moved.nii.gz"))
    with pytest.raises(GeometryError, match=r"case p1: the label .*moved.nii.gz lies on 46×44×35 voxels .* T1 on 46×44×36"):
        prepare_case(odd, recipe())
    shifted = GRID.affine.copy()
    shifted[0, 3] += 3
    shift = Volume(lesion(GRID).array, shifted, ("label",))
    with pytest.raises(GeometryError, match=r"corners 2\.0 voxels away"):
        prepare_case(Case("p1", case.images, save_volume(shift, tmp_path / "s.nii.gz")), recipe())


def test_label_values_are_numbered_and_strangers_counted(case, tmp_path):
    array = lesion(GRID).array.copy()
    array[array > 0] = np.tile([2, 5, 9], array.sum() // 3 + 1)[: array.sum()]
    path = save_volume(Volume(array, GRID.affine, ("label",)), tmp_path / "l.nii.gz")
    odd, same = Case("p1", case.images, path), {"spacing": (1.5, 1.5, 2.0), "crop": False}
    schema = recipe(labels={"all": [2, 5], "core": [5], "ignore": 9}, regions=True, **same)
    done = prepare_case(odd, schema)
    for old, new in ((2, 1), (5, 2), (9, 255), (0, 0)):
        np.testing.assert_array_equal(done.label == new, array[..., 0] == old)
    assert schema.values == (2, 5) and schema.classes == {"all": (1, 2), "core": (2,)}
    count = int((array == 5).sum())
    with pytest.raises(InputError, match=rf"values that the recipe does not name: 5 \({count:,} voxels\), 9"):
        prepare_case(odd, recipe(labels={"a": 2}, **same))
    assert prepare_case(odd, recipe(labels={})).label is None


def test_an_empty_label_is_allowed_and_flagged(case, tmp_path):
    empty = save_volume(Volume(np.zeros_like(lesion(GRID).array), GRID.affine, ("label",)), tmp_path / "e.nii.gz")
    done = prepare_case(Case("p1", case.images, empty), recipe())
    assert done.info["label_empty"] and not done.label.any()


def test_a_constant_scan_becomes_zero_with_a_warning():
    flat = Volume(np.full((*GRID.shape, 1), 7, np.float32), GRID.affine, ("T1",))
    with pytest.warns(UserWarning, match="channel T1 is constant"):
        image, mask, *_ = apply_recipe(flat, recipe(channels=("T1",), intensity=("zscore",)))
    assert (image == 0).all() and mask.all()


def test_a_constant_channel_is_named_with_its_case_and_a_case_of_nothing_else_is_left_out(case, tmp_path):
    flat = save_volume(Volume(np.full((*GRID.shape, 1), 7, np.float32), GRID.affine, ("T2",)), tmp_path / "flat.nii.gz")
    sound = next(iter(case.images.values()))
    both = recipe(channels=("T1", "T2"), intensity=("zscore", "zscore"))
    with pytest.warns(UserWarning, match="case p1: channel T2 is constant"):
        assert prepare_case(Case("p1", {"T1": sound, "T2": flat}, None), both).info["constant"] == ["T2"]
    with pytest.raises(InputError, match=r"case p1: every voxel has the same value \(T2\)"):
        prepare_case(Case("p1", {"T2": flat}, None), both)
    with pytest.warns(UserWarning, match="channel T2 is constant"):
        prepare_case(Case("p1", {"T2": flat}, case.label), both)


@pytest.mark.parametrize(("air", "noise"), [(0.0, 0.0), (-355.0, 0.0), (900.0, 0.0), (0.0, 4.0)])
def test_the_body_is_found_whatever_the_air_is(air, noise):
    plane = head(GRID, air=air, noise=noise).array[..., 0]
    mask = body_mask([own_foreground(plane, "zscore")])
    truth = np.linalg.norm(world(GRID) - CENTRE, axis=-1) < 26
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95


def uptake(unit=1.0):
    """SUV: scatter, a body at about 0.7, a cold column through it at 0.25, which is no hole to fill, and a tumour around 12."""
    rng, place = np.random.default_rng(0), world(GRID)
    away = np.linalg.norm(place - CENTRE, axis=-1)
    suv = rng.gamma(0.5, 0.06, GRID.shape)
    suv[away < 26] += 0.7 * np.exp(0.3 * rng.normal(size=GRID.shape))[away < 26]
    cold = np.hypot(*np.moveaxis(place - CENTRE, -1, 0)[:2]) < 8
    suv[cold & (away < 26)] *= 0.35
    suv[np.linalg.norm(place - LESION, axis=-1) < 11] = (
        12 * np.exp(0.5 * rng.normal(size=GRID.shape))[np.linalg.norm(place - LESION, axis=-1) < 11]
    )
    return suv * unit, away < 26, cold & (away < 26)


@pytest.mark.parametrize("unit", [1.0, 8e4, 1e-3])
def test_of_pet_alone_cold_tissue_is_body_in_any_unit(unit):
    plane, body, cold = uptake(unit)
    brightest = body_mask([own_foreground(plane, "zscore")])
    mask = body_mask([tracer_foreground(plane)])
    assert (brightest & body).sum() < 0.5 * body.sum()  # what looking for the farthest apart would give: the hot organ
    assert mask[body].mean() > 0.98 and mask[cold].mean() > 0.9 and mask[~body].mean() < 0.15
    masked = np.where(body, plane, 0)
    assert (body_mask([tracer_foreground(masked)]) & body).sum() > 0.98 * body.sum()


def test_pet_that_is_flat_but_for_a_spot_or_below_zero_is_no_error():
    spot = np.full((12, 12, 12), 5.0, np.float32)
    assert not tracer_foreground(spot).any() and not tracer_foreground(np.zeros_like(spot)).any()
    spot[6, 6, 6] = 50.0
    assert 0 < tracer_foreground(spot).sum() < 60
    assert not tracer_foreground(-spot).any() and body_mask([tracer_foreground(-spot)]).all()


def test_a_case_of_pet_alone_keeps_its_body_and_beside_mr_the_mr_says_where_it_is(tmp_path):
    plane, body, _ = uptake()
    files = {"PET": Volume(plane.astype(np.float32)[..., None], GRID.affine, ("PET",)), "T1": head(GRID, noise=4.0), "seg": lesion(GRID)}
    paths = {name: save_volume(volume, tmp_path / f"{name}.nii.gz") for name, volume in files.items()}
    grid = {"spacing": tuple(GRID.spacing), "labels": {"lesion": 1}}
    alone = prepare_case(Case("p", {"PET": paths["PET"]}, paths["seg"]), Recipe(channels=("PET",), intensity=("zscore",), **grid))
    assert alone.info["body_ml"] == pytest.approx(body.sum() * 0.0045, rel=0.3) and "label_outside_body" not in alone.info
    both = Recipe(channels=("PET", "T1"), intensity=("zscore", "zscore"), **grid)
    beside = prepare_case(Case("p", {"PET": paths["PET"], "T1": paths["T1"]}, paths["seg"]), both)
    brightest = body_mask(own_foreground(volume.array[..., 0], "zscore") for volume in (files["PET"], files["T1"]))
    assert (
        beside.info["body_ml"] == pytest.approx(brightest.sum() * 0.0045, rel=0.02)
        and beside.info["body_ml"] < 0.95 * alone.info["body_ml"]
    )
    missing = prepare_case(Case("p", {"PET": paths["PET"]}, paths["seg"]), both)
    assert missing.info["body_ml"] == alone.info["body_ml"]


def test_stores_of_pet_alone_from_before_its_rule_are_prepared_again_and_no_others(case, monkeypatch):
    alone, both = replace(case, images={"PET": case.images["PET"]}), recipe()
    unnamed = replace(case, images={"scan": case.images["PET"]})
    asked = [
        (alone, both),
        (unnamed, recipe(channels=("PET",), intensity=("zscore",))),
        (case, both),
        (unnamed, recipe(channels=("T1",), intensity=("zscore",))),
    ]
    now = [inputs_hash(*each) for each in asked]
    monkeypatch.setattr("jaxseg.data.staging.only_pet", lambda names: False)
    assert [hashed != inputs_hash(*each) for hashed, each in zip(now, asked)] == [True, True, False, False]


def test_real_pet_alone_keeps_the_body_that_its_ct_shows(real_scans):
    """38 sarcomas: at most 8.2 % of a body and none of a contour is called air; up to 84 % and 34 % by `own_foreground`."""
    for name in ("STS_006", "STS_029"):  # the worst by either
        pet, ct, tumour = (nib.load(real_scans / "sarcoma" / name / f"{kind}.nii.gz") for kind in ("PET", "CT", "T1_tumour"))
        body = body_mask([resample_from_to(ct, pet, order=1, cval=-1000).get_fdata() > -500])
        drawn = resample_from_to(tumour, pet, order=0).get_fdata() > 0
        mask = body_mask([tracer_foreground(pet.get_fdata(dtype=np.float32))])
        assert mask[body].mean() > 0.9 and mask[drawn].all()


def test_ct_is_windowed_in_hounsfield_and_lungs_are_body():
    place = np.linalg.norm(world(GRID) - CENTRE, axis=-1)
    plane = np.where(place < 26, 40.0, -1000.0)
    plane[place < 10] = -800.0
    mask = body_mask([own_foreground(plane, "ct")])
    assert mask[place < 10].all() and not mask[place > 27].any()
    scaled, _ = normalise(plane, mask, "ct")
    assert scaled[place < 10] == pytest.approx(-1.6) and scaled[place > 27] == pytest.approx(-2) and scaled.max() == pytest.approx(0.08)
    assert normalise(plane, mask, "ct:-160:240")[0][place < 10] == pytest.approx(-2)


def test_scale_and_offset_of_a_scanner_do_not_matter():
    plane = head(GRID).array[..., 0]
    for rule in ("zscore", "percentile"):
        results = [normalise(x, body_mask([own_foreground(x, rule)]), rule)[0] for x in (plane, plane * 37 + 1200)]
        np.testing.assert_allclose(*results, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"intensity": ("zscore",)}, "1 intensity rules for 2 channels"),
        ({"intensity": ("zscore", "ztscore")}, "choose zscore, percentile, nyul, ct"),
        ({"intensity": ("zscore", "ct:5:1")}, "choose zscore, percentile, nyul, ct"),
        ({"spacing": (1, 0, 1)}, "three positive numbers"),
        ({"channels": ("a", "a")}, "different names"),
        ({"labels": {"a": [1, 2]}}, "regions=True"),
        ({"orientation": "LPS"}, "always RAS"),
    ],
)
def test_recipes_that_make_no_sense(changes, match):
    with pytest.raises(ConfigError, match=match):
        recipe(**changes)


def test_a_guessed_recipe_fits_the_cases(case, tmp_path):
    guess = guess_recipe(CaseSet((case,), ("PET", "T1"), None, "x"))
    assert guess.channels == ("T1", "PET")  # the label was drawn on T1
    assert guess.spacing == (1.5, 1.5, 2.0) and guess.intensity == ("zscore", "zscore") and guess.labels == {"label_1": 1}
    coarse = guess_recipe([case], max_voxels=5000)
    voxels = np.prod(np.multiply(GRID.shape, (1.5, 1.5, 2.0)) / coarse.spacing)
    assert 4500 < voxels <= 5000 and len(set(coarse.spacing)) == 1
    thick = guess_recipe([case], max_voxels=int(np.prod(GRID.shape) * 0.8))
    assert thick.spacing[0] == thick.spacing[1] < thick.spacing[2] == 2.0
    with pytest.raises(InputError, match="no cases were found"):
        guess_recipe([])


def test_a_guess_survives_broken_scans_and_knows_ct_by_its_values(tmp_path):
    hounsfield = Volume(head(GRID).array - 1000, GRID.affine, ("a",))
    save_volume(hounsfield, tmp_path / "b.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(b"broken")
    found = find_cases(tmp_path)
    assert guess_recipe(found).intensity == ("ct",)
    (tmp_path / "b.nii.gz").write_bytes(b"broken too")
    with pytest.raises(InputError, match=r"none of 2 scans can be read; the first says: .*a.nii.gz"):
        guess_recipe(found)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "case_id", "present"), [("brain", "IXI012", [1]), ("sarcoma", "STS_002", [1, 1, 1]), ("sarcoma", "STS_019", [1, 0, 1])]
)
def test_real_cases_keep_their_labels(real_scans, name, case_id, present):
    cases = find_cases(real_scans / name)
    guess = guess_recipe(CaseSet(cases.cases[:9], cases.channels, None, ""))
    done = prepare_case(next(case for case in cases if case.id == case_id), guess)
    assert done.present.tolist() == [bool(value) for value in present] and np.isfinite(done.image).all() and np.abs(done.image).max() < 20
    for value, before in done.info["label_ml"].items():
        assert done.info["label_ml_prepared"][value] == pytest.approx(before, rel=0.03)
    assert done.mask[done.label > 0].mean() > 0.97


@pytest.mark.realdata
def test_real_glioma_with_an_odd_background(real_scans):
    case = find_cases(real_scans / "glioma").cases[0]
    done = prepare_case(case, Recipe(("FLAIR", "T1c"), (2.5, 2.5, 2.5), ("zscore", "zscore"), labels={"n": 1, "o": 2, "x": 3, "e": 4}))
    brain = load_volume(real_scans / "glioma" / case.id / "brainmask.nii.gz")
    assert done.info["body_ml"] == pytest.approx(float((brain.array > 0.5).sum() * brain.grid.voxel_volume_ml), rel=0.05)
    assert sum(done.info["label_ml_prepared"].values()) == pytest.approx(sum(done.info["label_ml"].values()), rel=0.03)
