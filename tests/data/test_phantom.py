"""Phantom heads: determinism, tumours, mass effect, geometry, and that no shortcut solves the task."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data.phantom import make_case
from jaxseg.data.phantom.anatomy import INDEX, TISSUES, cerebrum, draw_subject
from jaxseg.data.phantom.lesion import Tumour, push
from jaxseg.data.phantom.shapes import Labyrinth, Lattice, ellipsoid, membership, separable, smooth_noise, tube
from jaxseg.errors import ConfigError

COARSE = {"spacing": (4.0, 4.0, 4.0), "working_mm": 3.0}
BRAIN = [INDEX[name] for name in "csf grey white deep pallidum stem choroid hyperintensity necrosis oedema enhancing".split()]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="module")
def cohort():
    return [make_case(seed, spacing=(4, 4, 4), working_mm=3.0) for seed in range(10)]


def test_the_same_seed_is_the_same_patient_and_another_seed_is_not():
    first, again, other = make_case(5, **COARSE), make_case(5, **COARSE), make_case(6, **COARSE)
    assert all(first.images[name].tobytes() == again.images[name].tobytes() for name in first.images)
    assert first.label.tobytes() == again.label.tobytes()
    assert first.images["T1"].shape != other.images["T1"].shape or not np.allclose(first.images["T1"], other.images["T1"], rtol=0.1)


def test_leaving_out_channels_does_not_change_the_others():
    full, some = make_case(5, **COARSE), make_case(5, channels=("FLAIR", "T1"), **COARSE)
    assert list(some.images) == ["FLAIR", "T1"]
    np.testing.assert_array_equal(full.images["FLAIR"], some.images["FLAIR"])


def test_volumes_and_parts(cohort):
    for case in cohort:
        voxel_ml = abs(np.linalg.det(case.affine)) / 1000
        whole = np.count_nonzero(case.label) * voxel_ml
        assert 0.25 <= whole <= 66
        assert whole == pytest.approx(case.tumour.volume_ml, rel=0.4, abs=2 * voxel_ml)
        assert set(np.unique(case.label)) <= {0, 1, 2, 3}
    kinds = {case.tumour.kind for case in cohort}
    assert len(kinds) >= 3


def test_a_tumour_is_one_piece_inside_the_brain_and_its_core_lies_within_oedema(cohort):
    for case in cohort:
        pieces, _ = ndimage.label(case.label > 0, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() >= 0.9 * sizes.sum()
        assert np.isin(case.tissue[case.label > 0], BRAIN).mean() > 0.9
    large = max(cohort, key=lambda case: case.tumour.volume_ml)
    oedema_or_brain = ndimage.binary_dilation(np.isin(large.label, (1, 3))) & ~np.isin(large.label, (1, 3))
    assert (large.label[oedema_or_brain] == 2).mean() > 0.4


def test_enhancing_tumour_is_bright_in_t1c_only_and_oedema_in_flair():
    seed = next(
        s for s in range(40) if (case := make_case(s, scanner="alpha", **COARSE)).tumour.volume_ml > 20 and (case.label == 3).sum() > 40
    )
    case = make_case(seed, spacing=(2, 2, 2), scanner="alpha")
    white = (case.tissue == INDEX["white"]) & (case.label == 0)

    def ratio(channel: str, value: int) -> float:
        inside = (case.label == value) & (case.tissue == INDEX[{2: "oedema", 3: "enhancing"}[value]])
        return float(case.images[channel][inside].mean() / case.images[channel][white].mean())

    assert ratio("T1c", 3) > 1.15 * ratio("T1", 3)
    assert ratio("FLAIR", 2) > 1.3 and ratio("T2", 2) > 1.3 and ratio("T1", 2) < 1


def test_mass_effect_changes_what_is_near_and_leaves_the_skull():
    seed = next(s for s in range(60) if (t := make_case(s, **COARSE).tumour).volume_ml > 30 and t.core * t.volume_ml > 10)
    ill, healthy = make_case(seed, **COARSE), make_case(seed, tumour=False, **COARSE)
    assert healthy.tumour is None and not healthy.label.any()
    assert ill.label.shape == healthy.label.shape
    bone = [case.tissue == INDEX["bone"] for case in (ill, healthy)]
    assert dice(*bone) > 0.97
    fluid = [case.tissue == INDEX["csf"] for case in (ill, healthy)]
    near = ndimage.binary_dilation(ill.label > 0, iterations=3)
    assert dice(fluid[0] & near, fluid[1] & near) < 0.7 < 0.85 < dice(fluid[0] & ~near, fluid[1] & ~near)


def test_mass_effect_moves_tissue_outwards_by_millimetres_without_folding():
    lattice = Lattice((-90, -104, -76), (2, 2, 2), (90, 106, 85))
    x, y, z = (axis.reshape([-1 if k == a else 1 for k in range(3)]) for a, axis in enumerate(lattice.axes()))
    whole = np.broadcast_arrays(x, y, z)
    subject = replace(draw_subject(np.random.default_rng(0)), scale=(1, 1, 1), tilt=(0, 0, 0))
    tumour = Tumour("solid", (30, 0, 20), 40, 0.6, 0, 0.2, 1, (1, 1, 1))
    source = push(tumour, subject, tuple(whole), lattice)
    ray = source[0][:, 52, 48]  # through the centre, from left to right
    assert (np.diff(ray) > 0).all()
    midline = 45
    assert lattice.axes()[0][midline] == 0
    assert 3 < ray[midline] < 15  # what lies in the middle was to the right: the midline has shifted to the left
    outside = cerebrum(tuple(whole)) > 0
    assert max(np.abs(s - w)[outside].max() for s, w in zip(source, whole, strict=True)) == 0


def test_the_grid_that_was_asked_for():
    case = make_case(3, spacing=(1.5, 2.5, 5), channels=("T1",), working_mm=3.0)
    np.testing.assert_allclose(np.diag(case.affine), [1.5, 2.5, 5, 1])
    extent = np.array(case.label.shape) * [1.5, 2.5, 5]
    assert (extent > [140, 170, 130]).all() and (extent < [185, 215, 175]).all()
    centre = (case.affine @ [*(np.argwhere(np.isin(case.tissue, BRAIN)).mean(axis=0)), 1])[:3]
    assert np.abs(centre).max() < 25  # the brain lies about the origin, in millimetres


def test_thick_slices_average_thin_ones():
    thin = make_case(3, spacing=(2, 2, 1), channels=("T1",), scanner="gamma", tumour=False)
    thick = make_case(3, spacing=(2, 2, 6), channels=("T1",), scanner="gamma", tumour=False)
    low = [case.affine[2, 3] - case.affine[2, 2] / 2 for case in (thin, thick)]
    assert low[0] == pytest.approx(low[1], abs=1)
    averaged = thin.images["T1"][:, :, : thin.images["T1"].shape[2] // 6 * 6].reshape(*thin.label.shape[:2], -1, 6).mean(axis=-1)
    depth = min(averaged.shape[2], thick.label.shape[2])
    assert np.corrcoef(averaged[..., :depth].ravel(), thick.images["T1"][..., :depth].ravel())[0, 1] > 0.98


def test_anatomy_has_the_proportions_of_a_head():
    case = make_case(11, tumour=False)
    ml = {name: np.count_nonzero(case.tissue == INDEX[name]) * 0.008 for name in TISSUES}
    assert 300 < ml["white"] < 800 and 350 < ml["grey"] < 900  # adults: about 450 and 650 ml
    assert 900 < sum(ml[name] for name in ("white", "grey", "deep", "stem", "pallidum")) < 1700
    t1, t2 = case.images["T1"], case.images["T2"]
    mean = {
        name: (t1[case.tissue == INDEX[name]].mean(), t2[case.tissue == INDEX[name]].mean()) for name in ("csf", "grey", "white", "bone")
    }
    assert mean["csf"][0] < mean["grey"][0] < mean["white"][0]
    assert mean["csf"][1] > mean["grey"][1] > mean["white"][1] > mean["bone"][1]


def normalised(image: np.ndarray) -> np.ndarray:
    head = image > 0.1 * np.percentile(image, 99)
    return (image - image[head].mean()) / image[head].std()


@pytest.mark.parametrize("where", ["head", "brain"])
def test_no_threshold_on_one_channel_finds_the_tumour(cohort, where):
    truth = [case.label > 0 for case in cohort]
    for channel in cohort[0].images:
        scans = [normalised(case.images[channel]) for case in cohort]
        inside = [np.isin(case.tissue, BRAIN) if where == "brain" else np.ones_like(t) for case, t in zip(cohort, truth, strict=True)]
        for cut in np.linspace(-1.5, 5, 27):
            above = np.mean([dice((s > cut) & i, t) for s, i, t in zip(scans, inside, truth, strict=True)])
            below = np.mean([dice((s < cut) & i, t) for s, i, t in zip(scans, inside, truth, strict=True)])
            assert max(above, below) < 0.5, f"{channel} cut at {cut}"


def test_position_alone_does_not_find_the_tumour(cohort):
    scores = []
    shape = tuple(max(case.label.shape[axis] for case in cohort) for axis in range(3))
    truth = np.stack([np.pad(case.label > 0, [(0, big - n) for big, n in zip(shape, case.label.shape, strict=True)]) for case in cohort])
    votes = truth.sum(axis=0)
    for least in range(1, 5):
        scores.append(np.mean([dice(votes - own >= least, own) for own in truth]))
    assert max(scores) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"channels": ("T1", "CT")}, "CT"), ({"spacing": (1, 1, 0)}, "positive"), ({"scanner": "omega"}, "alpha")],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_case(0, **arguments)


def test_level_functions_are_distances_on_their_surface():
    x = np.array([10.0, 12.0, 8.0])
    line = (x, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(ellipsoid(line, (0, 0, 0), (10, 20, 30)), [0, 2, -2], atol=1e-6)
    np.testing.assert_allclose(tube(line, [(0, 0, -5, 10), (0, 0, 5, 10)]), [0, 2, -2], atol=1e-6)
    np.testing.assert_allclose(membership(np.array([-2.0, 0, 0.5, 2.0]), 2.0), [1, 0.5, 0.25, 0])


def test_random_fields_are_smooth_and_of_unit_size():
    lattice = Lattice((0, 0, 0), (2, 2, 2), (60, 50, 40))
    field = smooth_noise(np.random.default_rng(0), lattice, 12)
    assert field.shape == lattice.shape and 0.7 < field.std() < 1.4
    assert np.abs(np.diff(field, axis=0)).max() < 1.5
    sheets = Labyrinth(np.random.default_rng(0), 20.0)
    assert 0.45 < (sheets.distance > 0).mean() < 0.55
    np.testing.assert_allclose(separable(field, [np.eye(n) for n in field.shape]), field)
