"""Ratios of paired times and how sure they are. Called by `bench.frame`, tested against the closed form."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_DRAWS = 20_000


class Ratio(NamedTuple):
    """The peer's time over ours: above 1 we are faster. `low` and `high` bound the 95 % interval."""

    value: float
    low: float
    high: float


def paired_ratio(peer: Sequence[float], ours: Sequence[float]) -> Ratio:
    """The median over rounds of (peer's time / our time), and its 95 % percentile interval by bootstrap over rounds.

    Times of one round were taken one after the other, so what slows the whole machine cancels. With one round the interval is that point.
    Raises ValueError for lists of unequal length, or none.
    """
    if len(peer) != len(ours) or not len(peer):
        raise ValueError(f"{len(peer)} rounds of the peer and {len(ours)} of ours cannot be paired")
    ratios = np.asarray(peer, float) / np.asarray(ours, float)
    drawn = np.random.default_rng(0).integers(len(ratios), size=(_DRAWS, len(ratios)))
    # Order statistics, not interpolated: the bounds are then ratios that were measured (or means of two, for an even number of rounds).
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975), method="inverted_cdf")
    return Ratio(float(np.median(ratios)), float(low), float(high))
