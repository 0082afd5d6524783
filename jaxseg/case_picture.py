"""A scan with its truth and several predictions as one picture. Called by the main job's report and the few-label study's page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxseg import report
from jaxseg.data.cases import Case
from jaxseg.data.io import load_label, load_volume
from jaxseg.data.volume import Volume, to_grid


def case_picture(
    case: Case, predictions: Mapping[str, Path], channels: Sequence[str], labels: Mapping[str, int | Sequence[int]], *, title: str = ""
) -> bytes:
    """A PNG of one labelled case in three planes: contours of one label, or each of several labels in its colour, a row a label map.

    Args:
        predictions: name → label file, drawn after the truth; files that do not exist are passed over.
        channels: of the recipe, in its order: the first that the case has is shown, or FLAIR, which shows most tumours best.
        labels: of the recipe: name → value, or values of a region; "ignore" is not drawn.

    Raises:
        ValueError: the case has no label.
        InputError: a file cannot be read.
    """
    if case.label is None:
        raise ValueError(f"case {case.id} has no label to draw")
    truth = load_label(case.label, rules=case.rules)
    scan = load_volume(case.images[_shown(case, channels)], rules=case.rules)
    maps = {"truth": truth.array[..., 0]}
    for name, path in predictions.items():
        if path.is_file():
            maps[name] = to_grid(load_label(path), truth.grid, labels=True).array[..., 0]
    image = _gray(scan if scan.grid.same_as(truth.grid) else to_grid(scan, truth.grid))
    names = values_of(labels)
    if len(names) > 1:
        return report.label_figure(image, maps, names, truth.spacing, title=title)
    return report.overlay_figure(image, {name: np.isin(values, list(names)) for name, values in maps.items()}, truth.spacing, title=title)


def how_drawn(labels: Mapping[str, int | Sequence[int]], *, regions: bool) -> str:
    """What the colours of `case_picture` mean, in words."""
    drawn = "Each label has its colour." if len(values_of(labels)) > 1 else "Contours are around what is labelled."
    return (
        f"{drawn}{' Where regions overlap the innermost is shown.' if regions else ''} The patient's right is on the left of the picture."
    )


def values_of(labels: Mapping[str, int | Sequence[int]]) -> dict[int, str]:
    """Value in a label file → its name: of regions, which share values, the smallest one that holds it."""
    named: dict[int, tuple[int, str]] = {}
    for name, values in labels.items():
        if name == "ignore":
            continue
        values = [values] if isinstance(values, int) else values
        for value in values:
            if value not in named or len(values) < named[value][0]:
                named[value] = (len(values), name)
    return {value: name for value, (_, name) in sorted(named.items())}


def _shown(case: Case, channels: Sequence[str]) -> str:
    by_name = {name.lower(): name for name in case.images}
    return next(by_name[name.lower()] for name in ("FLAIR", *channels, *case.images) if name.lower() in by_name)


def _gray(volume: Volume) -> np.ndarray:
    return np.asarray(volume.array[..., 0], np.float32)
