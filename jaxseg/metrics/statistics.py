"""Bootstrap intervals over cases and a paired test. Evaluation, the demo and `docs/results.md` take their intervals from here."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CHUNK = 1_000_000


class Interval(NamedTuple):
    """A mean over cases and the two ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | Float[np.ndarray, "n"], *, seed: int = 0, n: int = 10_000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean over cases (Efron and Tibshirani 1993, ch. 13).

    `values` holds one finite number a case; `n` resamples. The same values and seed give the same interval. With one case the interval is a
    point: it says nothing about other cases. ValueError on no values, or non-finite ones.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"a bootstrap needs one finite number a case, got an array of shape {data.shape}: {data.ravel()[:5]} …")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // data.size)
    means = [data[generator.integers(0, data.size, (min(rows, n - start), data.size))].mean(axis=1) for start in range(0, n, rows)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return interval_around(float(data.mean()), float(low), float(high))


def interval_around(mean: float, low: float, high: float) -> Interval:
    """The interval of a mean and two quantiles of resampled means, which of equal scores may lie on its wrong side by rounding."""
    return Interval(mean, min(low, mean), max(high, mean))


def paired_interval(
    a: Sequence[float] | Float[np.ndarray, "n"],
    b: Sequence[float] | Float[np.ndarray, "n"],
    *,
    seed: int = 0,
    n: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of the mean of `a - b`, the same cases in the same order. An interval above 0 says that `a` is better on such
    cases."""
    return bootstrap_interval(_differences(a, b), seed=seed, n=n, level=level)


def wilcoxon(a: Sequence[float] | Float[np.ndarray, "n"], b: Sequence[float] | Float[np.ndarray, "n"]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on paired cases; 1 where no case differs."""
    from scipy import stats  # a third of a second, which fine-tuning need not wait for

    differences = _differences(a, b)
    return float(np.asarray(stats.wilcoxon(differences))[1]) if differences.any() else 1.0


def _differences(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired comparison needs the same cases on both sides, got {first.shape} and {second.shape} values")
    return first - second
