"""Statistics over draws and cases: against normal theory, a simulation of coverage, Holm's own example by hand, and curves with known answers."""

import math

import numpy as np
import pytest

from jaxseg.metrics import bootstrap_interval
from jaxseg.metrics.label_efficiency import hierarchical_interval, holm, label_equivalence, labels_needed


def test_without_variance_between_draws_it_is_the_interval_over_cases():
    cases = np.random.default_rng(0).beta(5, 2, 60)
    many = hierarchical_interval(np.tile(cases, (5, 1)))
    plain = bootstrap_interval(cases)
    assert many.mean == pytest.approx(plain.mean)
    assert many.low == pytest.approx(plain.low, abs=3e-3)
    assert many.high == pytest.approx(plain.high, abs=3e-3)


def test_the_interval_is_that_of_normal_theory_where_draws_and_cases_add_up():
    """Var of the mean = var(draws) / D + var(cases) / C, of the sample, where there are no residuals."""
    rng = np.random.default_rng(1)
    draws, cases = rng.normal(0, 0.1, 40), rng.normal(0, 0.2, 50)
    half = 1.96 * math.sqrt(draws.var() / 40 + cases.var() / 50)
    found = hierarchical_interval(draws[:, None] + cases)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.04)


def test_it_covers_the_true_mean_where_an_interval_over_cases_alone_does_not():
    rng = np.random.default_rng(2)
    both = alone = 0
    for trial in range(200):
        scores = 0.7 + rng.normal(0, 0.05, (10, 1)) + rng.normal(0, 0.05, 20) + rng.normal(0, 0.02, (10, 20))
        found = hierarchical_interval(scores, seed=trial, n=400)
        both += found.low <= 0.7 <= found.high
        plain = bootstrap_interval(scores.mean(0), seed=trial, n=400)
        alone += plain.low <= 0.7 <= plain.high
    assert 0.86 < both / 200 < 0.99
    assert alone < both - 20


def test_one_cell_is_a_point_and_scores_that_are_not_a_table_are_refused():
    assert hierarchical_interval(np.array([[0.5]])) == (0.5, 0.5, 0.5)
    for wrong in (np.zeros(3), np.zeros((0, 2)), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="one finite number a draw and case"):
            hierarchical_interval(wrong)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_labels_are_interpolated_in_their_logarithm():
    assert labels_needed([1, 4, 16], [0.2, 0.4, 0.6], 0.5) == pytest.approx(8)
    assert labels_needed([1, 4, 16], [0.2, 0.4, 0.6], 0.4) == pytest.approx(4)
    assert labels_needed([1, 4, 16], [0.2, 0.4, 0.6], 0.1) == 1
    assert labels_needed([1, 4, 16], [0.2, 0.4, 0.6], 0.61) == math.inf
    assert labels_needed([1, 2, 4, 8], [0.2, 0.5, 0.3, 0.6], 0.45) < 2  # the first time counts


def scores(mean, spread=0.0, seed=0):
    return mean + spread * np.random.default_rng(seed).normal(size=(5, 12))


def test_the_factor_of_a_curve_that_is_known():
    curve = [scores(mean) for mean in (0.2, 0.4, 0.6)]
    assert label_equivalence([1, 4, 16], curve, scores(0.5), 4) == pytest.approx((8, 2, "", 2, 2)[:2] + ("", 2, 2))
    never = label_equivalence([1, 4, 16], curve, scores(0.7), 4)
    assert (never.bound, never.labels, never.factor, never.high) == (">", 16, 4, math.inf)
    worse = label_equivalence([1, 4, 16], curve, scores(0.1), 4)
    assert (worse.bound, worse.factor) == ("<", 0.25)


def test_its_interval_holds_the_truth_and_narrows_with_less_noise():
    noisy, quiet = (
        label_equivalence(
            [1, 4, 16],
            [scores(mean, spread, seed) for seed, mean in enumerate((0.2, 0.4, 0.6))],
            scores(0.5, spread, 9),
            4,
        )
        for spread in (0.1, 0.02)
    )
    for found in (noisy, quiet):
        assert found.low <= 2 <= found.high
    assert quiet.high - quiet.low < (noisy.high - noisy.low) / 2


def test_curves_of_other_cases_or_in_another_order_are_refused():
    with pytest.raises(ValueError, match="same draws and cases"):
        label_equivalence([1], [scores(0.1)], scores(0.1)[:2], 1)
    with pytest.raises(ValueError, match="increasing"):
        label_equivalence([4, 1], [scores(0.1), scores(0.2)], scores(0.1), 1)
