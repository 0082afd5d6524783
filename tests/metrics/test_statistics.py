"""Bootstrap intervals: against normal theory, coverage, and what must not change them."""

import numpy as np
import pytest

from jaxseg.metrics import bootstrap_interval, paired_interval, wilcoxon


def test_the_interval_of_many_cases_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=5e-4)
    assert interval.high == pytest.approx(values.mean() + half, abs=5e-4)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.beta(5, 2, 30), n=500) for _ in range(300)]
    covered = np.mean([i.low <= 5 / 7 <= i.high for i in intervals])
    assert 0.89 < covered < 0.98


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(2).random(50)
    first = bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) == first != bootstrap_interval(values, seed=4)
    monkeypatch.setattr("jaxseg.metrics.statistics._CHUNK", 50 * 64)
    assert bootstrap_interval(values, seed=3) == first


def test_equal_values_and_a_single_case_give_a_point():
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25, 0.25)
    assert bootstrap_interval([0.25]) == (0.25, 0.25, 0.25)


def test_pairing_removes_what_cases_share():
    rng = np.random.default_rng(5)
    hard = rng.normal(0.6, 0.2, 40)
    a, b = hard + rng.normal(0.02, 0.01, 40), hard
    paired = paired_interval(a, b)
    assert 0 < paired.low < paired.mean < paired.high < 0.04
    assert bootstrap_interval(a).low < bootstrap_interval(b).high  # unpaired, nothing could be said
    assert wilcoxon(a, b) < 1e-6
    assert wilcoxon(b, b) == 1


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [[0.5]]])
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="one finite number a case"):
        bootstrap_interval(values)


def test_unequal_cases_cannot_be_paired():
    with pytest.raises(ValueError, match="same cases"):
        paired_interval([1, 2], [1, 2, 3])
