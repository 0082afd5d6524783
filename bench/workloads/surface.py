"""Surface distances of two masks of a brain's size: MONAI's HD95 and surface Dice, and ours, which take both from one set of distances."""

import dataclasses
from pathlib import Path

import numpy as np

from bench.case import SAME_MATHS, Case, Setting, Work
from bench.torch_side import import_or_absent

_TOLERANCE_MM = 2.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A volume of `shape` voxels with `spacing` in mm, and balls of `radius` voxels."""

    shape: tuple[int, int, int]
    radius: int
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.5)


CASES = (
    Case("brain", "MONAI", SAME_MATHS, Sizes((240, 240, 155), 60), Sizes((32, 28, 24), 6), lambda sizes: 1, "cases"),
    Case("lesion", "MONAI", SAME_MATHS, Sizes((240, 240, 155), 15), Sizes((32, 28, 24), 4), lambda sizes: 1, "cases"),
)


def _masks(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Two balls, a little apart, one with a rough surface."""
    places = np.stack(np.meshgrid(*map(np.arange, sizes.shape), indexing="ij"), -1) - np.asarray(sizes.shape) / 2
    rough = np.random.default_rng(0).uniform(-1.5, 1.5, sizes.shape)
    return np.linalg.norm(places, axis=-1) < sizes.radius, np.linalg.norm(places - 1.5, axis=-1) + rough < sizes.radius


def _check(found: tuple[float, float]) -> dict[str, np.ndarray]:
    return {"hd95": np.array([found[0]], np.float64), "surface_dice": np.array([found[1]], np.float64)}


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's two functions."""
    metrics, torch = import_or_absent(setting, "monai.metrics"), import_or_absent(setting, "torch")
    pred, truth = (torch.from_numpy(mask)[None, None] for mask in _masks(sizes))
    spacing = list(sizes.spacing)

    def run() -> tuple[float, float]:
        hd95 = metrics.compute_hausdorff_distance(pred, truth, include_background=True, percentile=95, spacing=spacing)
        dice = metrics.compute_surface_dice(pred, truth, class_thresholds=[_TOLERANCE_MM], include_background=True, spacing=spacing)
        return float(hd95), float(dice)

    return Work(lambda: _check(run()), run)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """`metrics.surface.surface_distances`, from which both are taken."""
    from jaxseg.metrics.surface import surface_distances

    pred, truth = _masks(sizes)

    def run() -> tuple[float, float]:
        distances = surface_distances(pred, truth, sizes.spacing)
        return distances.hausdorff(95.0), distances.surface_dice(_TOLERANCE_MM)

    return Work(lambda: _check(run()), run)
