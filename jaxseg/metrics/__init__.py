"""Metrics of segmentations: exact ones on the host (`overlap`, `surface`), Dice on the device (`device`), intervals over cases
(`statistics`).

`device` is not imported here, so that evaluating folders needs no jax.
"""

from jaxseg.metrics.overlap import Confusion, confusion, dice, iou, volumetric_similarity
from jaxseg.metrics.statistics import Interval, bootstrap_interval, paired_interval, wilcoxon
from jaxseg.metrics.surface import SurfaceDistances, assd, hausdorff, hd95, surface_dice, surface_distances

__all__ = [
    "Confusion",
    "Interval",
    "SurfaceDistances",
    "assd",
    "bootstrap_interval",
    "confusion",
    "dice",
    "hausdorff",
    "hd95",
    "iou",
    "paired_interval",
    "surface_dice",
    "surface_distances",
    "volumetric_similarity",
    "wilcoxon",
]
