"""What is body and what is air, and intensities on a common scale. Called by `preprocess`; numpy and scipy on plain arrays."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from jaxseg.data.connected import fill_holes, keep_large_parts
from jaxseg.data.nyul import PERCENTILES, match_histogram
from jaxseg.data.percentiles import percentiles
from jaxseg.errors import ConfigError

Normaliser = Callable[[np.ndarray, np.ndarray], np.ndarray]
CT_WINDOW = (-1000.0, 1000.0)  # HU
_BODY_HU = -500.0
_TURNS = 20  # of which real scans take about five
_CONSTANT_BORDER = 0.7  # share of border voxels with one value that makes it a background


def check_rule(rule: str) -> tuple[float, float] | None:
    """The HU window of a "ct" rule, None for "zscore", "percentile" and "nyul"; ConfigError for anything else."""
    if rule in ("zscore", "percentile", "nyul"):
        return None
    if rule == "ct":
        return CT_WINDOW
    kind, *numbers = rule.split(":")
    try:
        low, high = (float(number) for number in numbers)
    except ValueError:
        low, high = 0.0, 0.0
    if kind != "ct" or not low < high:
        raise ConfigError(f"intensity rule {rule!r}: choose zscore, percentile, nyul, ct, or ct:LOW:HIGH in HU such as ct:-200:300")
    return low, high


def air_value(rule: str) -> float:
    """The value that `normalise` gives to everything outside the body."""
    return 0.0 if check_rule(rule) is None else -2.0


def body_mask(foregrounds: Iterable[Bool[np.ndarray, "x y z"]]) -> Bool[np.ndarray, "x y z"]:
    """Where the body is: the union of the channels' foregrounds, its large connected parts, holes filled.

    All true where nothing stands out. Foregrounds are asked for one after the other, so that a generator need not hold them all.
    """
    rest = iter(foregrounds)
    union = functools.reduce(lambda found, other: np.logical_or(found, other, out=found), rest, next(rest).copy(order="K"))
    if not union.any():
        return np.ones(union.shape, bool)
    # What lies around the outermost voxels is connected, and no hole.
    inner = union[bounding_box(union)]
    keep_large_parts(inner)
    fill_holes(inner)
    return union


def tracer_foreground(plane: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Where a PET scan that has no CT or MR beside it shows a body, in any unit; empty for a constant one.

    Uptake ranges over decades: a threshold that parts the most, as `own_foreground` looks for, parts hot organs from the rest and calls muscle, fat and
    necrosis air. This one is Otsu's on the logarithm, where everything above half of the body's median counts alike, and everything below 3 % of
    it. The median is of what the threshold itself lets through, so both are found in turns. Scatter close to the skin may be kept.
    """
    if _is_constant(plane):
        return np.zeros(plane.shape, bool)
    uptake = _smoothed(plane)
    top = float(np.percentile(uptake[:: max(1, plane.shape[0] // 96)], 99.5))
    if top <= max(0.0, float(uptake.min())):
        return uptake > max(0.0, top)
    logarithm = np.log(np.clip(uptake, np.float32(1e-4 * top), np.float32(top), out=uptake), out=uptake)
    counts, edges = np.histogram(logarithm, 2048)
    middle = (edges[:-1] + edges[1:]) / 2
    place = _otsu(counts, middle)
    for _ in range(_TURNS):
        found = np.cumsum(counts[place + 1 :])
        body = middle[place + 1 + int(np.searchsorted(found, found[-1] / 2))]
        lower = _otsu(counts, np.clip(middle, body + np.log(0.03), body + np.log(0.5)))
        if lower >= place:
            break
        place = lower
    return logarithm > middle[place]


def own_foreground(plane: Float[np.ndarray, "x y z"], rule: str) -> Bool[np.ndarray, "x y z"]:
    """The foreground that one channel shows by itself; empty for a constant channel.

    CT: above -500 HU. Other channels: whatever differs from a constant background (skull-stripped or masked scans, whatever the
    constant), or, where the border is not constant, what is brighter than air by Otsu's threshold (IEEE Trans. SMC 9, 1979) on
    square-rooted intensities.
    """
    if _is_constant(plane):
        return np.zeros(plane.shape, bool)
    if check_rule(rule) is not None:
        return plane > _BODY_HU
    # As memory lies, since sorting asks for no order; and in this one copy, which may be as large as the scan.
    low, high = np.percentile(plane[:: max(1, plane.shape[0] // 96)].flatten(order="K"), (0.1, 99.5), overwrite_input=True)
    border = np.concatenate([face.ravel() for face in _faces(plane, range(3))])
    constant = np.median(border)
    span = max(abs(high - constant), abs(constant - low)) or float(plane.max() - plane.min())
    if np.mean(np.abs(border - constant) <= 1e-3 * span) >= _CONSTANT_BORDER:
        # 2 %: rounding and compression leave a constant background not quite constant.
        away = plane - constant
        return np.abs(away, out=away) > 0.02 * span
    return _above_air(plane, low, high)


def normalise(
    plane: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"], rule: str, scale: Sequence[float] = ()
) -> tuple[Float[np.ndarray, "x y z"], bool]:
    """Intensities on a common scale, float32, and whether the channel was constant (then it becomes 0).

    - "zscore": mean 0, standard deviation 1 over the body `mask`; air becomes 0.
    - "percentile": the body's 0.5 % to 99.5 % to 0..1, clipped; air becomes 0.
    - "nyul": the body's histogram matched to `scale` (`nyul.match_histogram`); air becomes 0.
    - "ct", "ct:LOW:HIGH": HU clipped to the window (-1000..1000), which becomes -2..2; air becomes -2.
    """
    change = normaliser(plane, mask, rule, scale)
    return (np.zeros(plane.shape, np.float32), True) if change is None else (change(plane, mask), False)


def normaliser(
    plane: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"], rule: str, scale: Sequence[float] = ()
) -> Normaliser | None:
    """What `normalise` does to this channel, as a function of any part of it and of the mask there; None for a constant channel."""
    window, air = check_rule(rule), np.float32(air_value(rule))
    if window is not None:
        low, high = window
        return _Linear(low, high, (low + high) / 2, (high - low) / 4, air)
    if _is_constant(plane):
        return None
    if rule == "zscore":
        mean, deviation = _moments(plane, mask)
        return _Linear(-np.inf, np.inf, mean, deviation or 1.0, air)
    if rule == "nyul":
        marks = scan_landmarks(plane, mask)
        return lambda part, inside: np.where(inside, match_histogram(part, marks, scale), air)
    low, high = percentiles(_seen(plane, mask), (0.5, 99.5)).astype(np.float32)
    return _Linear(low, high, low, (high - low) or 1.0, air)


@dataclass(frozen=True)
class _Linear:
    """Clipped to `low`..`high`, then (value - origin) / width; `air` outside the mask."""

    low: float
    high: float
    origin: float
    width: float
    air: np.float32

    def __call__(self, part: np.ndarray, inside: np.ndarray) -> np.ndarray:
        if np.isfinite(self.low):
            part = np.clip(part, np.float32(self.low), np.float32(self.high))
        done = np.subtract(part, np.float32(self.origin), dtype=np.float32)
        done /= np.float32(self.width)
        return np.where(inside, done, self.air)


def _moments(plane: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of what was seen of the body, in float64."""
    body = 0
    total = 0.0
    seen = _seen(plane, mask)
    for part in seen():
        body, total = body + part.size, total + float(part.astype(np.float64).sum())
    mean = total / body
    return mean, float(np.sqrt(sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in seen()) / body))


def scan_landmarks(plane: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"]) -> Float[np.ndarray, " 11"]:
    """The landmarks that the rule "nyul" finds in a channel, for learning its scale."""
    return percentiles(_seen(plane, mask), PERCENTILES)


def _is_constant(plane: np.ndarray) -> bool:
    some = plane[::8, ::8, ::8]
    return bool(some.min() == some.max() and plane.min() == plane.max())


def bounding_box(mask: Bool[np.ndarray, "x y z"]) -> tuple[slice, ...]:
    """The smallest box that holds every true voxel; there must be one."""
    # First along the axis that lies farthest apart in memory, where whole blocks are compared: what is left over is flat.
    order = [int(axis) for axis in np.argsort([abs(stride) for stride in mask.strides], kind="stable")]
    flat = np.logical_or.reduce(mask, axis=order[2], keepdims=True)
    box = [slice(0)] * 3
    for axis in range(3):
        line = np.logical_or.reduce(mask if axis == order[2] else flat, axis=tuple(other for other in range(3) if other != axis))
        where = np.flatnonzero(line)
        box[axis] = slice(int(where[0]), int(where[-1]) + 1)
    return tuple(box)


def _seen(plane: np.ndarray, mask: np.ndarray) -> Callable[[], Iterator[Float[np.ndarray, " n"]]]:
    """The channel's values in the body, slice by slice as often as they are asked for: all of them at once are as large as half of the scan.

    Without those where the channel saw nothing: stacking fills these with its minimum.
    """
    axis = int(np.argmax(np.abs(plane.strides)))
    slices, masks, least = np.moveaxis(plane, axis, 0), np.moveaxis(mask, axis, 0), plane.min()
    seen = sum(int(np.count_nonzero(part[inside] > least)) for part, inside in zip(slices, masks, strict=True))
    blind = _is_blind(seen, int(np.count_nonzero(mask)))

    def values() -> Iterator[Float[np.ndarray, " n"]]:
        for part, inside in zip(slices, masks, strict=True):
            found = part[inside]
            yield found[found > least] if blind else found

    return values


def _is_blind(seen: int, body: int, share: float = 0.05) -> bool:
    """Whether so much of the body has the channel's minimum that it is no value that was seen."""
    return 0 < seen < (1 - share) * body


def _above_air(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    root = _smoothed(plane)
    # In place: three more copies of a channel would be what preparing a case needs most memory for.
    root -= np.float32(low)
    np.sqrt(np.clip(root, 0, max(high - low, 1e-12), out=root), out=root)
    counts, edges = np.histogram(root, 256)
    middle = (edges[:-1] + edges[1:]) / 2
    return root > middle[_otsu(counts, middle)]


def _smoothed(plane: np.ndarray) -> np.ndarray:
    """Float32, noise averaged over about a voxel; a copy."""
    plane = plane.astype(np.float32, copy=False)
    return np.asarray(ndimage.gaussian_filter(plane, [1.0 if n > 4 else 0.0 for n in plane.shape], mode="nearest"))


def _otsu(counts: np.ndarray, values: np.ndarray) -> int:
    """The last place of the lower of the two classes that lie farthest apart, of `counts` voxels with the values, which rise."""
    below = np.cumsum(counts)
    above = below[-1] - below
    first = np.cumsum(counts * values)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (first / below - (first[-1] - first) / above) ** 2
    return int(np.nanargmax(between[:-1]))


def _faces(array: np.ndarray, axes: Sequence[int]) -> list[np.ndarray]:
    """The first and the last slice along each of the axes, as views."""
    return [array[(slice(None),) * axis + (end,)] for axis in axes for end in (0, -1)]
