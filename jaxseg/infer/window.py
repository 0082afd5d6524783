"""A network on a volume larger than its window: overlapping windows, blended by a Gaussian. `infer.predict` and any user's own function
call it."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Start = tuple[int, int, int]

_SIGMA = 1 / 8
"""Width of the Gaussian as a part of the window, as in nnU-Net and MONAI."""
_LEAST = 1e-3
"""Least weight of a voxel, as in MONAI: a corner seen by one window only still divides by something."""


def sliding_window(
    apply: Callable[[Any], Any],
    image: Float[np.ndarray, "x y z c"],
    *,
    window: Sequence[int],
    num_classes: int,
    overlap: float = 0.5,
    batch: int = 1,
    mask: Bool[np.ndarray, "x y z"] | None = None,
    fill: float | Sequence[float] | None = None,
    outside: float | Sequence[float] = 0.0,
) -> Float[np.ndarray, "x y z k"]:
    """Run `apply` on windows that tile `image` evenly, and blend what it returns, weighted by a Gaussian, in float32.

    Args:
        apply: (batch, *window, c) float32 → (batch, *window, num_classes), logits or probabilities: what is blended is what it returns. It
        always
            gets a full batch, so a jitted function is compiled once.
        image: (x, y, z, c). An axis shorter than its window is padded on both sides, and the result cut back.
        window: voxels along (x, y, z).
        overlap: the least part that neighbouring windows share, 0 up to but not including 1; they are spread evenly, from border to border.
        batch: windows a call.
        mask: voxels that matter; windows without any are skipped.
        fill: value of padding, one number or one a channel; None is each channel's minimum.
        outside: result where every window was skipped, one number or one a class.

    Returns:
        (x, y, z, num_classes) float32.

    Equal to MONAI's `sliding_window_inference(mode="gaussian")` wherever both choose the same windows, that is, where steps of
    `window * (1 - overlap)` end at the border of the volume. Raises ValueError for shapes or an overlap that cannot be.
    """
    window = _checked_window(image, window, overlap, batch)
    padded, inner = _pad(np.asarray(image, np.float32), window, fill)
    keep = None if mask is None else _pad_mask(np.asarray(mask, bool), image.shape[:3], window)
    starts = [start for start in window_starts(padded.shape[:3], window, overlap) if keep is None or keep[_at(start, window)].any()]
    weight = gaussian_weights(window)
    total = np.zeros((*padded.shape[:3], num_classes), np.float32)
    weights = np.zeros(padded.shape[:3], np.float32)
    for start, result in _results(apply, padded, starts, window, batch):
        if result.shape != (*window, num_classes):
            raise ValueError(f"the network gives {result.shape} for a window {window}; {(*window, num_classes)} was expected")
        total[_at(start, window)] += result * weight[..., None]
        weights[_at(start, window)] += weight
    total, weights = total[inner], weights[inner]
    covered = weights > 0
    total /= np.where(covered, weights, 1)[..., None]
    if not covered.all():
        total[~covered] = np.asarray(outside, np.float32)
    return total


def window_starts(shape: Sequence[int], window: Sequence[int], overlap: float) -> list[Start]:
    """First voxels of windows that cover `shape` from border to border in even steps of at most `window * (1 - overlap)` voxels."""
    axes = []
    for size, width in zip(shape, window, strict=True):
        step = max(1, int(width * (1 - overlap)))
        count = math.ceil((size - width) / step) + 1
        axes.append([round(k * (size - width) / max(count - 1, 1)) for k in range(count)])
    return list(itertools.product(*axes))


def gaussian_weights(window: Sequence[int]) -> Float[np.ndarray, "x y z"]:
    """The weight of each voxel of a window: a Gaussian about its centre, sigma an eighth of the window, at least 0.001, float32."""
    weight = np.ones((), np.float64)
    for width in window:
        offset = np.arange(width) - (width - 1) / 2
        weight = weight[..., None] * np.exp(-0.5 * (offset / (width * _SIGMA)) ** 2)
    return np.maximum(weight, _LEAST).astype(np.float32)


def _results(
    apply: Callable[[Any], Any], padded: np.ndarray, starts: list[Start], window: tuple[int, ...], batch: int
) -> Iterator[tuple[Start, np.ndarray]]:
    """Each window's start and result. A batch is sent before the one before it is fetched, so that device and host work at the same
    time."""
    waiting: tuple[list[Start], Any] | None = None
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        filled = group + group[-1:] * (batch - len(group))
        sent = group, apply(np.stack([padded[_at(start, window)] for start in filled]))
        if waiting is not None:
            yield from zip(waiting[0], np.asarray(waiting[1], np.float32))
        waiting = sent
    if waiting is not None:
        yield from zip(waiting[0], np.asarray(waiting[1], np.float32))


def _at(start: Start, window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + width) for first, width in zip(start, window))


def _checked_window(image: np.ndarray, window: Sequence[int], overlap: float, batch: int) -> tuple[int, ...]:
    widths = tuple(int(width) for width in window)
    if image.ndim != 4 or min(image.shape) < 1:
        raise ValueError(f"the image has shape {image.shape}; (x, y, z, c) with at least one voxel was expected")
    if len(widths) != 3 or min(widths) < 1 or not 0 <= overlap < 1 or batch < 1:
        raise ValueError(
            f"window {widths}, overlap {overlap}, batch {batch}: three positive sizes, 0 <= overlap < 1, batch >= 1 are needed"
        )
    return widths


def _margins(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
    missing = [max(width - size, 0) for size, width in zip(shape, window)]
    return [(short // 2, short - short // 2) for short in missing]


def _pad(image: np.ndarray, window: Sequence[int], fill: float | Sequence[float] | None) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The image, no axis shorter than the window, and where in it the given voxels lie."""
    margins = _margins(image.shape[:3], window)
    inner = tuple(slice(before, before + size) for (before, _), size in zip(margins, image.shape[:3]))
    if not any(map(any, margins)):
        return image, inner
    padded = np.empty((*(size + sum(margin) for size, margin in zip(image.shape, margins)), image.shape[3]), np.float32)
    padded[...] = image.min(axis=(0, 1, 2)) if fill is None else np.asarray(fill, np.float32)
    padded[inner] = image
    return padded, inner


def _pad_mask(mask: np.ndarray, shape: Sequence[int], window: Sequence[int]) -> np.ndarray:
    if mask.shape != tuple(shape):
        raise ValueError(f"the mask has shape {mask.shape}, the image {tuple(shape)}")
    return np.pad(mask, _margins(mask.shape, window))
