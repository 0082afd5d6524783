"""A network on a volume larger than its window: overlapping windows, blended by a Gaussian. `infer.predict` and any user's own function
call it."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jaxtyping import Bool, Float

from jaxseg.errors import DeviceMemoryError
from jaxseg.infer.blend import Blend, DeviceBlend, HostBlend, Start, at

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
    on_device: bool | None = None,
) -> Float[np.ndarray, "x y z k"]:
    """Run `apply` on windows that tile `image` evenly, and blend what it returns, weighted by a Gaussian, in float32.

    Args:
        apply: (batch, *window, c) float32 → (batch, *window, num_classes), logits or probabilities: what is blended is what it returns. It
            always gets a full batch, so a jitted function is compiled once, whatever the sizes of the scans.
        image: (x, y, z, c). An axis shorter than its window is padded on both sides, and the result cut back.
        window: voxels along (x, y, z).
        overlap: the least part that neighbouring windows share, 0 up to but not including 1; they are spread evenly, from border to border.
        batch: windows a call. Where the device's memory does not suffice it is halved for the rest of the scan, with a warning.
        mask: voxels that matter; windows without any are skipped.
        fill: value of padding, one number or one a channel; None is each channel's minimum.
        outside: result where every window was skipped, one number or one a class.
        on_device: blend on the device, in a slab as deep as the window that moves along x, finished planes going to the host while windows are
            computed (a slab has to fit there, else the host blends, with a warning); None does so on a GPU or TPU.

    Returns:
        (x, y, z, num_classes) float32.

    Equal to MONAI's `sliding_window_inference(mode="gaussian")` wherever both choose the same windows, that is, where steps of
    `window * (1 - overlap)` end at the border of the volume.

    Raises:
        ValueError: shapes or an overlap that cannot be.
        DeviceMemoryError: one window alone does not fit. Any other error of `apply` goes through as it is, and nothing is tried again.
    """
    window = _checked_window(image, window, overlap, batch)
    padded, inner = _pad(np.asarray(image, np.float32), window, fill)
    keep = None if mask is None else _pad_mask(np.asarray(mask, bool), image.shape[:3], window)
    starts = [start for start in window_starts(padded.shape[:3], window, overlap) if keep is None or keep[at(start, window)].any()]
    weight = gaussian_weights(window)
    on_device = jax.default_backend() != "cpu" if on_device is None else on_device
    blend = _blend(padded.shape[:3], weight, num_classes, _step(window[0], overlap), on_device)
    weights = np.zeros(padded.shape[:3], np.float32)
    for group, results in _results(apply, padded, starts, window, batch):
        if results.shape[1:] != (*window, num_classes):
            raise ValueError(f"the network gives {results.shape[1:]} for a window {window}; {(*window, num_classes)} was expected")
        blend.add(group, results)
        for start in group:
            weights[at(start, window)] += weight
    total = blend.total()
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
        step = _step(width, overlap)
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


def _step(width: int, overlap: float) -> int:
    return max(1, int(width * (1 - overlap)))


def _blend(shape: Sequence[int], weight: np.ndarray, num_classes: int, step: int, on_device: bool) -> Blend:
    if on_device:
        try:
            return DeviceBlend(shape, weight, num_classes, step)
        except JaxRuntimeError as error:
            if not _out_of_memory(error):
                raise
        slab = (len(weight), *shape[1:], num_classes)
        warnings.warn(f"a slab of the result, {slab}, does not fit on the device: blending on the host", RuntimeWarning, stacklevel=3)
    return HostBlend(shape, weight, num_classes)


def _results(
    apply: Callable[[Any], Any], padded: np.ndarray, starts: list[Start], window: tuple[int, ...], batch: int
) -> Iterator[tuple[list[Start], Any]]:
    """Groups of starts and their results, computed. Out of memory: half the batch, then single windows, then one with none ahead."""
    done, ahead = 0, True
    while done < len(starts):
        try:
            for group, results in _computed(apply, padded, starts[done:], window, batch, ahead):
                done += len(group)
                yield group, results
            return
        except JaxRuntimeError as error:
            if not _out_of_memory(error):
                raise
            if batch == 1 and not ahead:
                raise DeviceMemoryError(
                    f"one window of {window} voxels and {padded.shape[-1]} channels does not fit into the device's memory, which other "
                    f"programs may be using; take a smaller model or a device with more. JAX says: {str(error).splitlines()[0]}"
                ) from error
        # Beyond the handler: the traceback has let go of the arrays that were on their way.
        batch, ahead = max(batch // 2, 1), batch > 1
        how = f"windows go on {batch} at a time" if ahead else "the next window is sent only when the last has come back"
        warnings.warn(f"out of device memory: {how}", RuntimeWarning, stacklevel=3)


def _computed(
    apply: Callable[[Any], Any], padded: np.ndarray, starts: list[Start], window: tuple[int, ...], batch: int, ahead: bool
) -> Iterator[tuple[list[Start], Any]]:
    """With `ahead`, a batch is sent before the one before it is waited for, so that device and host work at the same time."""
    waiting: tuple[list[Start], Any] | None = None
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        filled = group + group[-1:] * (batch - len(group))
        sent = group, apply(np.stack([padded[at(start, window)] for start in filled]))
        # Waited for here: an error that came with the sums would take them along.
        if waiting is not None:
            yield waiting[0], jax.block_until_ready(waiting[1])
        if ahead:
            waiting = sent
        else:
            yield group, jax.block_until_ready(sent[1])
    if waiting is not None:
        yield waiting[0], jax.block_until_ready(waiting[1])


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


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
