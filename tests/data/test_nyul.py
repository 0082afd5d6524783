"""Histogram matching: scanners' curves are undone, landmarks are learnt once and kept, and what cannot be matched is said."""

import numpy as np
import pytest

from jaxseg.data.cases import find_cases
from jaxseg.data.intensity import normalise
from jaxseg.data.nyul import PERCENTILES, landmarks, match_histogram, standard_scale
from jaxseg.data.preprocess import apply_recipe, learn_scales, load_case
from jaxseg.data.recipe import Recipe
from jaxseg.errors import ConfigError, InputError
from tests.tiny_store import write_scans


def test_scans_of_different_scanners_land_on_one_scale():
    anatomy = np.random.default_rng(0).gamma(3, size=(16, 16, 16))
    scans = [anatomy, 500 * anatomy + 40, 100 * anatomy**0.7]
    scale = standard_scale([landmarks(scan.ravel()) for scan in scans])
    assert scale[0] == 0 and scale[-1] == 1 and all(b > a for a, b in zip(scale, scale[1:]))
    mask = np.ones(anatomy.shape, bool)
    matched = [normalise(scan, mask, "nyul", scale)[0] for scan in scans]
    np.testing.assert_allclose(matched[0], matched[1], atol=1e-4)
    # A power law bends between the landmarks: matching leaves a tenth of the difference that stretching to 0..1 leaves.
    stretched = [(scan - np.percentile(scan, 1)) / np.ptp(np.percentile(scan, (1, 99))) for scan in scans]
    middle = (anatomy > np.percentile(anatomy, 2)) & (anatomy < np.percentile(anatomy, 98))
    assert np.abs(matched[0] - matched[2])[middle].max() < 0.25 * np.abs(stretched[0] - stretched[2])[middle].max()


def test_landmarks_map_onto_the_scale_and_the_ends_go_on():
    marks, scale = np.arange(11.0) * 10, np.linspace(0, 1, 11) ** 2
    np.testing.assert_allclose(match_histogram(marks.reshape(11, 1, 1), marks, scale).ravel(), scale, atol=1e-6)
    beyond = match_histogram(np.array([[[-10.0, 110.0]]]), marks, scale).ravel()
    np.testing.assert_allclose(beyond, [-0.01, 1.19], atol=1e-6)


def test_equal_landmarks_of_a_quantised_scan_are_no_harm():
    plane = np.repeat([0.0, 1.0, 2.0], 100).reshape(10, 10, 3)
    found = match_histogram(plane, landmarks(plane.ravel()), np.linspace(0, 1, len(PERCENTILES)))
    assert np.isfinite(found).all() and found.min() == 0 and found.max() <= 1.2
    with pytest.raises(InputError, match="not constant"):
        standard_scale([np.full(11, 3.0)])


def test_a_recipe_learns_and_keeps_its_landmarks(tmp_path):
    cases = find_cases(write_scans(tmp_path, count=3))
    recipe = Recipe(("T1", "T2"), (2.0, 2.0, 2.5), ("zscore", "zscore"), labels={"ball": 1})
    learnt = learn_scales(cases.cases, recipe, ["T2"])
    assert learnt.intensity == ("zscore", "nyul") and set(learnt.landmarks) == {"T2"}
    from jaxseg.data.stacking import stack_case

    image, mask, *_ = apply_recipe(stack_case(cases.cases[0], learnt), learnt)
    np.testing.assert_allclose(np.percentile(image[..., 1][mask], (1, 50, 99)), np.array(learnt.landmarks["T2"])[[0, 5, 10]], atol=0.05)
    assert len(load_case(cases.cases[0], ["T1"])) == 1
    with pytest.raises(ConfigError, match="T2 needs 11 increasing landmarks"):
        Recipe(("T1", "T2"), (2.0, 2.0, 2.5), ("zscore", "nyul"))
