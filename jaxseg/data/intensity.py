"""What is body and what is air, and intensities on a common scale. Called by `preprocess`; numpy and scipy on plain arrays."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from jaxseg.data.nyul import landmarks, match_histogram
from jaxseg.errors import ConfigError

CT_WINDOW = (-1000.0, 1000.0)  # HU
_BODY_HU = -500.0
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


def body_mask(foregrounds: Sequence[Bool[np.ndarray, "x y z"]]) -> Bool[np.ndarray, "x y z"]:
    """Where the body is: the union of the channels' foregrounds, its large connected parts, holes filled.

    All true where nothing stands out.
    """
    union = np.logical_or.reduce(foregrounds)
    return _fill(_large_parts(union)) if union.any() else np.ones(union.shape, bool)


def own_foreground(plane: Float[np.ndarray, "x y z"], rule: str) -> Bool[np.ndarray, "x y z"]:
    """The foreground that one channel shows by itself; empty for a constant channel.

    CT: above -500 HU. Other channels: whatever differs from a constant background (skull-stripped or masked scans, whatever the
    constant), or, where the border is not constant, what is brighter than air by Otsu's threshold (IEEE Trans. SMC 9, 1979) on
    square-rooted intensities.
    """
    low, high = np.percentile(plane[:: max(1, plane.shape[0] // 96)], (0.1, 99.5))
    if plane.min() == plane.max():
        return np.zeros(plane.shape, bool)
    if check_rule(rule) is not None:
        return plane > _BODY_HU
    border = np.concatenate([np.take(plane, (0, -1), axis).ravel() for axis in range(3)])
    constant = np.median(border)
    span = max(abs(high - constant), abs(constant - low)) or float(plane.max() - plane.min())
    if np.mean(np.abs(border - constant) <= 1e-3 * span) >= _CONSTANT_BORDER:
        # 2 %: rounding and compression leave a constant background not quite constant.
        return np.abs(plane - constant) > 0.02 * span
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
    window = check_rule(rule)
    if window is None and plane.min() == plane.max():
        return np.zeros(plane.shape, np.float32), True
    if window is not None:
        low, high = window
        scaled = (np.clip(plane, low, high) - (low + high) / 2) * (4 / (high - low))
    else:
        values = _in_view(plane, mask)
        if rule == "nyul":
            scaled = match_histogram(plane, landmarks(values), scale)
        elif rule == "percentile":
            low, high = np.percentile(values, (0.5, 99.5))
            scaled = (np.clip(plane, low, high) - low) / ((high - low) or 1.0)
        else:
            scaled = (plane - values.mean(dtype=np.float64)) / (values.std(dtype=np.float64) or 1.0)
    return np.where(mask, scaled, air_value(rule)).astype(np.float32), False


def scan_landmarks(plane: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"]) -> Float[np.ndarray, " 11"]:
    """The landmarks that the rule "nyul" finds in a channel, for learning its scale."""
    return landmarks(_in_view(plane, mask))


def _in_view(plane: np.ndarray, mask: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The channel's values in the body, without those where it saw nothing: stacking fills these with its minimum."""
    values = plane[mask]
    seen = values > plane.min()
    return values[seen] if 0 < np.count_nonzero(seen) < (1 - share) * values.size else values


def _above_air(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(plane.astype(np.float32), [1.0 if n > 4 else 0.0 for n in plane.shape], mode="nearest")
    root = np.sqrt(np.clip(smooth - low, 0, max(high - low, 1e-12)))
    counts, edges = np.histogram(root, 256)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    first = np.cumsum(counts * middle)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (first / below - (first[-1] - first) / above) ** 2
    return root > middle[int(np.nanargmax(between[:-1]))]


def _large_parts(mask: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Connected parts of at least `share` of the largest one's size (both legs, not the table)."""
    parts = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= share * sizes.max())[parts]


def _fill(mask: np.ndarray) -> np.ndarray:
    """Fill holes in 3-D, then in each axial slice (lungs and airways are open at the ends of the field of view)."""
    plane = np.zeros((3, 3, 3), bool)
    plane[:, 1, 1] = plane[1, :, 1] = True
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    return np.asarray(ndimage.binary_fill_holes(np.pad(filled, ((1, 1), (1, 1), (0, 0))), structure=plane))[1:-1, 1:-1]
