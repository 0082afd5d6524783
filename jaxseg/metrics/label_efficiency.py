"""Statistics of scores under several draws of labelled cases: intervals over (draw, case), many tests at once, and what labels are worth.

The few-label study takes them from here. Scores are `(draws, cases)`: the same test cases under every draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxseg.metrics.statistics import Interval, interval_around

_CHUNK = 500  # resamples at a time


class LabelEquivalence(NamedTuple):
    """How many labels scratch needs for a Dice, as a multiple of the labels that the other arm had.

    Attributes:
        labels, factor: of the interpolated curve; where it does not tell, the end of the curve that bounds them.
        bound: "" if `factor` is a number, ">" where scratch never gets there, "<" where it is there with its fewest labels.
        low, high: ends of the bootstrap interval of the factor. `inf` as `high` says that scratch may never get there; a `low` of the fewest labels
            over `at` may lie lower still.
    """

    labels: float
    factor: float
    bound: str
    low: float
    high: float


def hierarchical_interval(scores: Float[np.ndarray, "draws cases"], *, seed: int = 0, n: int = 10_000, level: float = 0.95) -> Interval:
    """Mean over cases, then draws, with its bootstrap interval over both.

    Draws and cases are resampled independently (they are crossed: every draw is scored on the same cases), which is Owen's pigeonhole
    bootstrap (2007, doi 10.1214/07-AOAS122): it counts the residuals more than once, which errs on the wide side, and like every bootstrap
    sees only (D - 1) / D of the variance between D draws, which errs on the narrow side where D is small. With one draw the interval says
    nothing of other draws. For the difference of two arms give the difference of their scores, case by case and draw by draw.
    ValueError for other shapes, no scores or non-finite ones.
    """
    data = _checked(scores)
    low, high = np.quantile(_resampled_means(data[None], seed, n)[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return interval_around(float(data.mean()), float(low), float(high))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (1979), in the order given: below α they reject at a family-wise error of α."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1.0)
    return result.tolist()


def labels_needed(counts: Sequence[float], curve: Sequence[float], target: float) -> float:
    """The fewest labels at which a learning curve, linear in log N between its points, reaches `target`.

    The first of `counts` if it is there already; `inf` if it never is. `counts` increase and are positive.
    """
    if curve[0] >= target:
        return float(counts[0])
    for place in range(1, len(curve)):
        below, above = curve[place - 1], curve[place]
        if above >= target:
            share = (target - below) / (above - below)
            return float(np.exp(np.log(counts[place - 1]) + share * np.log(counts[place] / counts[place - 1])))
    return float("inf")


def label_equivalence(
    counts: Sequence[float],
    scratch: Sequence[Float[np.ndarray, "draws cases"]],
    other: Float[np.ndarray, "draws cases"],
    at: float,
    *,
    seed: int = 0,
    n: int = 2000,
    level: float = 0.95,
) -> LabelEquivalence:
    """How many labels scratch needs for the mean Dice that another arm has with `at` of them.

    Args:
        counts: numbers of labels of scratch's curve, increasing.
        scratch: its scores at each of them; one array of test cases, and of draws, for all and for `other`.
        other: the other arm's scores at `at` labels.
        n: resamples of (draw, case), the same ones for every point of the curve and for the other arm.

    Raises ValueError if counts do not increase or shapes differ.
    """
    if not counts or len(counts) != len(scratch) or any(b <= a for a, b in zip(counts, counts[1:])) or counts[0] <= 0:
        raise ValueError(f"a learning curve needs increasing numbers of labels, one for each array of scores; got {list(counts)}")
    arrays = [_checked(array) for array in (*scratch, other)]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"all scores must be of the same draws and cases; got shapes {[array.shape for array in arrays]}")
    stacked = np.stack(arrays)
    means = stacked.mean((1, 2))
    needed = labels_needed(counts, means[:-1].tolist(), float(means[-1]))
    factors = [labels_needed(counts, row[:-1].tolist(), float(row[-1])) / at for row in _resampled_means(stacked, seed, n)]
    # Not interpolated: between a number and "never" there is nothing.
    low, high = np.quantile(factors, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    never = np.isinf(needed)
    bound = ">" if never else "<" if means[0] > means[-1] else ""
    labels = float(counts[-1]) if never else needed
    return LabelEquivalence(labels, labels / at, bound, float(low), float(high))


def _resampled_means(data: Float[np.ndarray, "arms draws cases"], seed: int, n: int) -> Float[np.ndarray, "n arms"]:
    """Means over resampled draws and cases, the same ones for all arms. Resampling is by multinomial weights: the mean needs no more."""
    rng = np.random.default_rng(seed)
    _, draws, cases = data.shape
    found = []
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        of_draws = rng.multinomial(draws, np.full(draws, 1 / draws), size) / draws
        of_cases = rng.multinomial(cases, np.full(cases, 1 / cases), size) / cases
        found.append(np.einsum("nd,adc,nc->na", of_draws, data, of_cases, optimize=True))
    return np.concatenate(found)


def _checked(scores: Float[np.ndarray, "draws cases"]) -> Float[np.ndarray, "draws cases"]:
    data = np.asarray(scores, np.float64)
    if data.ndim != 2 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"expected one finite number a draw and case, got an array of shape {data.shape}")
    return data
