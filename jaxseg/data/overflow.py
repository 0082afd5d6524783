"""Scaled 8-bit scans that were cast to 8 bits without their scale, put back. Called by `restore_overflow`.

The mistake: a file holds levels k = 0 … 255 and a step s (NIfTI's scl_slope); a script reads the values k·s, up to several thousand, and casts
them to uint8. What is left of a voxel is floor(k·s) mod 256. Neighbouring levels jump, the picture looks like salt and pepper, and
averaging, resampling or phase unwrapping of it yields nothing.

Why it can be undone: the step is not whole, so each turn around 256 puts its levels between those of the turns before. Most remainders belong to
one level only, or to two or three that lie far apart; which of them it is, neighbouring voxels say. So:

1. The step. A wrong step cannot explain which of the 255 remainders occur (`_histogram_scores`), nor which of them lie side by side
   (`_side_by_side`): under the right one neighbours have levels close to each other. The best few are tried on a slab.
2. The levels. Mean field on a Markov random field: each voxel's candidates, a histogram of levels that is learnt on the way, and a truncated
   linear distance between neighbours.

No paper is followed. The scale is lost with the step's whole turns (s and s + 256 leave the same remainders), so levels come back without unit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage

from jaxseg.errors import InputError

TURN = 256
LEVELS = 255
_STEPS = (1.5, 40.0)  # largest values of about 380 to 10,000, as scanners give them
_COARSE, _FINE, _FINEST, _AROUND = 5e-4, 5e-4, 1e-4, 0.02  # of a step: level 255 shifts by an eighth of a remainder, then by a fortieth
_FITS = 0.03  # a misfit under which no other step is tried
_PEAKS, _TRIED = 14, 40
_BEHIND = 0.4  # of the best step's score in `_side_by_side`
_LEAKAGE = 1e-3  # share of voxels that no level of the comb needs to explain
_SLAB = 8  # voxels
_NEAR = 30  # levels: beyond this, neighbours may differ as much as they like (an edge)
_WEIGHT = 0.14  # nats a voxel pays for each 10 levels to a neighbour
_SWEEPS, _QUICK_SWEEPS, _SOFT = 20, 12, 6
_FADING = 120.0  # levels: bright voxels are rarer, to begin with
UNSURE = 0.9
_MAX_JUMPS, _MAX_EDGES = 0.05, 0.03
_DEEP = 3  # voxels below the body's surface


@dataclass(frozen=True)
class Restored:
    """What a scan held before the cast.

    Attributes:
        levels: 0 to 255, background 0.
        step: the step s that the levels had been multiplied by, less whole turns of 256.
        unsure: share of the body's voxels whose level has a posterior under 0.9.
        jumps: share of the body's inner voxels that lie further from the median of their six neighbours than 0.3 of the span between the body's
            5th and 95th percentile: under 0.02 in good scans, 0.3 and more under a wrong step.
        edges: share of the pairs of neighbours deep in the body that differ by more than half of that span: about 0.016 in a brain at 2 mm; more where
            a whole region was put on a wrong turn, inside of which nothing jumps.
    """

    levels: UInt8[np.ndarray, "x y z"]
    step: float
    unsure: float
    jumps: float
    edges: float


def restore(wrapped: UInt8[np.ndarray, "x y z"]) -> Restored:
    """The levels behind `wrapped` = floor(level·step) mod 256; 0 outside the body stays 0.

    Raises:
        InputError: not three axes of 8 bits, next to nothing but zeros, or no step explains the scan (jumps or edges remain): it was damaged in
            another way, or not at all, or a whole number of steps is so nearly 256 that turns look alike.
    """
    if wrapped.ndim != 3 or wrapped.dtype != np.uint8:
        raise InputError(f"expected a 3-D scan of uint8, found {wrapped.ndim} axes of {wrapped.dtype}: only casts to 8 bits can be undone")
    body = np.asarray(ndimage.binary_fill_holes(wrapped > 0), bool)
    if np.count_nonzero(body) < 1000:
        raise InputError(f"{np.count_nonzero(body)} voxels are not zero: too few to find the step by")
    box = ndimage.find_objects(body.astype(np.uint8))[0]
    inner, mask = wrapped[box], body[box]
    step = _best_step(inner, mask)
    levels, unsure = _levels(inner, mask, step, _SWEEPS)
    jumps, edges = _jumps(levels, mask), _edges(levels, mask)
    if jumps > _MAX_JUMPS or edges > _MAX_EDGES:
        raise InputError(
            f"no step explains the intensities: with the best one, {step:.4f}, {jumps:.1%} of voxels still jump against their neighbours and "
            f"{edges:.1%} of neighbours lie on two sides of an edge (accepted: {_MAX_JUMPS:.0%}, {_MAX_EDGES:.0%})"
        )
    whole = np.zeros(wrapped.shape, np.uint8)
    whole[box] = levels
    return Restored(whole, step, unsure, jumps, edges)


def wrap(levels: UInt8[np.ndarray, "x y z"], step: float) -> UInt8[np.ndarray, "x y z"]:
    """What the mistake makes of `levels`: the values level·step cast to 8 bits, 0 to 255 around."""
    return (_remainders(step)[levels]).astype(np.uint8)


def _remainders(step: float) -> Int[np.ndarray, "256"]:
    """The remainder that each level 0 to 255 leaves."""
    return np.floor(np.arange(LEVELS + 1) * step).astype(np.int64) % TURN


def _candidates(step: float) -> Float[np.ndarray, "256 n"]:
    """The levels 1 to 255 that leave each remainder; NaN fills up."""
    left = _remainders(step)[1:]
    order = np.argsort(left, kind="stable")
    counts = np.bincount(left, minlength=TURN)
    table = np.full((TURN, counts.max()), np.nan, np.float32)
    place = np.arange(LEVELS) - np.repeat(np.cumsum(counts) - counts, counts)
    table[left[order], place] = order + 1
    return table


def _likely_steps(wrapped: np.ndarray) -> list[float]:
    """The steps worth trying on a slab, likelier ones first."""
    histogram = np.bincount(wrapped.ravel(), minlength=TURN).astype(np.float64)
    pairs = _pairs(wrapped)
    coarse = np.arange(*_STEPS, _COARSE)
    scores = np.concatenate([_histogram_scores(histogram, part) for part in np.array_split(coarse, 64)])
    near = {round(peak + shift, 6) for peak in _best_apart(coarse, scores, 0.02, _PEAKS) for shift in np.arange(-_AROUND, _AROUND, _FINE)}
    steps = np.array(sorted(near))
    smooth = np.array([_side_by_side(pairs, step) for step in steps])
    good = smooth > smooth.max() - _BEHIND
    return list(_best_apart(steps[good], smooth[good], 0.9 * _FINE, _TRIED))


def _best_step(wrapped: np.ndarray, body: np.ndarray) -> float:
    """The step whose levels fit a slab best: the likely ones, then finer ones around the best of them."""
    best = (np.inf, 0.0)
    for step in _likely_steps(wrapped):
        best = min(best, (_misfit(wrapped, body, step), step))
        if best[0] < _FITS:
            break
    finer = best[1] + _FINEST * np.arange(-5, 6)
    return min([best, *((_misfit(wrapped, body, float(step)), float(step)) for step in finer)])[1]


def _best_apart(steps: np.ndarray, scores: np.ndarray, apart: float, count: int) -> Iterator[float]:
    kept: list[float] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(abs(steps[index] - other) > apart for other in kept):
            kept.append(float(steps[index]))
            yield kept[-1]
            if len(kept) == count:
                return


def _histogram_scores(histogram: Float[np.ndarray, "256"], steps: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    """Log-likelihood of the remainders that occur, each of those that the step's levels leave being equally likely and all others hardly so."""
    left = np.floor(steps[:, None] * np.arange(1, LEVELS + 1)).astype(np.int64) % TURN
    possible = np.zeros((len(steps), TURN), bool)
    np.put_along_axis(possible, left, True, 1)
    possible[:, 0] = False
    total = histogram[1:].sum()
    explained = possible @ histogram
    size = possible.sum(1)
    return explained * np.log((1 - _LEAKAGE) / size) + (total - explained) * np.log(_LEAKAGE / np.maximum(1, LEVELS - size))


def _pairs(wrapped: np.ndarray) -> Float[np.ndarray, "256 256"]:
    """How often two remainders lie side by side within the body; sums to 1."""
    counts = np.zeros((TURN, TURN))
    for axis in range(3):
        turned = np.moveaxis(wrapped, axis, 0).astype(np.int64)
        here, there = turned[:-1].ravel(), turned[1:].ravel()
        both = (here > 0) & (there > 0)
        counts += np.bincount(here[both] * TURN + there[both], minlength=TURN * TURN).reshape(TURN, TURN)
    counts += counts.T
    return counts / counts.sum()


def _side_by_side(pairs: Float[np.ndarray, "256 256"], step: float) -> float:
    """How much closer (log of levels) the levels of neighbours can be than those of two voxels from anywhere; unexplained remainders cost."""
    table = _candidates(step)
    closest = np.full((TURN, TURN), np.float32(1e9))
    for column in range(table.shape[1]):
        for other in range(table.shape[1]):
            closest = np.fmin(closest, np.abs(table[:, None, column] - table[None, :, other]))
    far = np.log1p(np.minimum(closest, 60) / 4)
    alone = pairs.sum(0)
    return float(alone @ far @ alone - (pairs * far).sum() - 5 * pairs[closest > 1e8].sum())


def _misfit(wrapped: np.ndarray, body: np.ndarray, step: float) -> float:
    """Share of voxels that jump, plus of those that are unsure, plus of those that no level explains, on a slab from the middle."""
    start = max(0, (wrapped.shape[2] - _SLAB) // 2)
    cut = np.s_[:, :, start : start + _SLAB]
    part, inside = np.ascontiguousarray(wrapped[cut]), body[cut]
    levels, unsure = _levels(part, inside, step, _QUICK_SWEEPS)
    without = np.isnan(_candidates(step)[:, 0])
    return _jumps(levels, inside) + unsure + float(np.mean(without[part[inside & (part > 0)]]))


def _jumps(levels: np.ndarray, body: np.ndarray) -> float:
    values = levels.astype(np.float32)
    middle = ndimage.median_filter(values, footprint=ndimage.generate_binary_structure(3, 1))
    inner = np.asarray(ndimage.binary_erosion(body), bool)
    if not inner.any():
        return 1.0
    low, high = np.percentile(values[inner], (5, 95))
    return float(np.mean(np.abs(values - middle)[inner] > 0.3 * max(high - low, 1)))


def _edges(levels: np.ndarray, body: np.ndarray) -> float:
    deep = np.asarray(ndimage.binary_erosion(body, iterations=_DEEP), bool)
    if not deep.any():
        return 0.0
    values = levels.astype(np.float32)
    low, high = np.percentile(values[deep], (5, 95))
    found = count = 0
    for here, there, _ in _shifts(body.shape, 1):
        both = deep[here] & deep[there]
        found += np.count_nonzero(np.abs(values[here] - values[there])[both] > 0.5 * max(high - low, 1))
        count += np.count_nonzero(both)
    return found / max(count, 1)


def _levels(wrapped: np.ndarray, body: np.ndarray, step: float, sweeps: int) -> tuple[UInt8[np.ndarray, "x y z"], float]:
    """The likeliest level of each voxel, and the share of the body's voxels that are unsure."""
    table = _candidates(step)
    known = np.flatnonzero(np.isfinite(table[:, 0]))
    nearest = known[np.abs(np.arange(TURN)[:, None] - known).argmin(1)]
    choice = np.moveaxis(table[nearest[wrapped]], -1, 0)
    open_ = np.isfinite(choice) & body
    choice = np.where(open_, choice, 0).astype(np.float32)
    belief = open_ / np.maximum(open_.sum(0), 1).astype(np.float32)
    whole = choice.astype(np.uint8)
    fading = np.exp(-np.arange(LEVELS + 1) / _FADING)
    log_share = np.log(fading / fading.sum()).astype(np.float32)
    for sweep in range(sweeps):
        cost = _soft_cost(choice, belief, body) if sweep < _SOFT else _hard_cost(choice, belief, body)
        score = np.where(open_, log_share[whole] - min(1, (sweep + 1) / 8) * _WEIGHT / 10 * cost, -np.inf)
        top = score.max(0)
        new = np.exp(score - np.where(np.isfinite(top), top, 0))
        new /= np.maximum(new.sum(0), 1e-9)
        belief = new if sweep >= sweeps - 2 else (belief + new) / 2
        shares = np.bincount(whole[open_], weights=belief[open_], minlength=LEVELS + 1)
        shares = ndimage.gaussian_filter1d(shares, 4, mode="nearest") + 1e-4 * shares.sum() / LEVELS
        log_share = np.log(shares / shares.sum()).astype(np.float32)
    best = belief.argmax(0)[None]
    levels = np.take_along_axis(whole, best, 0)[0]
    sure = np.take_along_axis(belief, best, 0)[0]
    return levels, float(np.mean(sure[body] < UNSURE))


def _soft_cost(choice: np.ndarray, belief: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Expected distance (levels, at most `_NEAR`) of each candidate to the six neighbours, over all of their candidates."""
    cost = np.zeros(choice.shape, np.float32)
    for here, there, weight in _shifts(body.shape, 1):
        for other in range(len(choice)):
            apart = np.abs(choice[:, *here] - choice[other, *there])
            cost[:, *here] += weight * (belief[other] * body)[there] * np.minimum(apart, _NEAR)
    return cost


def _hard_cost(choice: np.ndarray, belief: np.ndarray, body: np.ndarray) -> np.ndarray:
    """The same to the likeliest candidate of 18 neighbours, weighted by how likely it is."""
    best = belief.argmax(0)[None]
    level = np.take_along_axis(choice, best, 0)[0]
    sure = np.take_along_axis(belief, best, 0)[0] * body
    cost = np.zeros(choice.shape, np.float32)
    for here, there, weight in _shifts(body.shape, 2):
        cost[:, *here] += weight * sure[there] * np.minimum(np.abs(choice[:, *here] - level[there]), _NEAR)
    return cost


def _shifts(shape: tuple[int, ...], reach: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], float]]:
    """(voxels, their neighbours, 1 / distance) for each direction with at most `reach` axes."""
    for move in np.ndindex(3, 3, 3):
        step = tuple(axis - 1 for axis in move)
        if 0 < (axes := sum(abs(axis) for axis in step)) <= reach:
            here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
            there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
            yield here, there, axes**-0.5
