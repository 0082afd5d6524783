"""Figures as PNG bytes: overlays in three planes, curves, paired scores. Drawn with matplotlib's object interface, so nothing is global."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette, which colour-blind readers tell apart (jfly.uni-koeln.de/color).
TRUTH = "#F0E442"
COLOURS = ("#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
LEGEND = 18  # labels that a picture's legend holds
# What a radiologist expects: the patient's right on the left of the picture, anterior (or superior) on top.
_PLANES = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))


def overlay_figure(
    image: Float[np.ndarray, "x y z"],
    masks: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    *,
    title: str = "",
    first_is_truth: bool = True,
) -> bytes:
    """One scan in three planes through the middle of what is contoured.

    Args:
        image: (x, y, z), RAS+; shown between its 1st and 99.5th percentile.
        masks: name → (x, y, z) boolean; drawn as contours, the first as the truth. Planes go through the largest slice of the first
            one that is not empty.
        spacing: mm along x, y, z; pixels are drawn in true proportion.
        title: above the figure.
        first_is_truth: whether the first mask gets the truth's colour.
    """
    colours = ([TRUTH] if first_is_truth else []) + list(COLOURS)
    centre = _centre(image.shape, masks)
    low, high = np.percentile(image, (1, 99.5))
    figure = Figure(figsize=(9.6, 3.9), dpi=110, facecolor="black")
    for number, (plane, axis, corners) in enumerate(_PLANES):
        axes = figure.add_subplot(1, 3, number + 1)
        _slice(axes, image, axis, centre, spacing, low, high)
        for (_, mask), colour in zip(masks.items(), colours):
            picture = _picture(mask, axis, centre)
            if picture.any() and not picture.all() and min(picture.shape) > 1:
                axes.contour(picture.astype(float), levels=[0.5], colors=[colour], linewidths=1.4)
        _letters(axes, corners)
        axes.set_title(plane, color="white", fontsize=9)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(masks, colours)]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white", fontsize=9)
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.86 if title else 0.93, bottom=0.1, wspace=0.03)
    return _png(figure)


def label_figure(
    image: Float[np.ndarray, "x y z"],
    maps: Mapping[str, Integer[np.ndarray, "x y z"]],
    names: Mapping[int, str],
    spacing: Sequence[float],
    *,
    title: str = "",
) -> bytes:
    """One scan in three planes with several labels, each in its colour: a row a label map.

    Args:
        image: (x, y, z), RAS+; shown between its 1st and 99.5th percentile.
        maps: name → (x, y, z) of label values, 0 where nothing is; planes go through the largest slice of the first that is not empty.
        names: value → name, of the labels that get a colour, in their order; the legend holds at most `LEGEND` of them.
        spacing: mm along x, y, z; pixels are drawn in true proportion.
        title: above the figure.
    """
    colours = {value: to_rgb(COLOURS[place]) if len(names) <= len(COLOURS) else _hue(place) for place, value in enumerate(names)}
    centre = _centre(image.shape, {name: values > 0 for name, values in maps.items()})
    low, high = np.percentile(image, (1, 99.5))
    height = 2.9 * len(maps) + 0.9
    figure = Figure(figsize=(9.6, height), dpi=110, facecolor="black")
    for row, (name, values) in enumerate(maps.items()):
        for column, (plane, axis, corners) in enumerate(_PLANES):
            axes = figure.add_subplot(len(maps), 3, 3 * row + column + 1)
            _slice(axes, image, axis, centre, spacing, low, high)
            picture = _picture(values, axis, centre)
            paint = np.zeros((*picture.shape, 4))
            for value, colour in colours.items():
                paint[picture == value] = (*colour, 0.55)
            across, up = (spacing[other] for other in range(3) if other != axis)
            axes.imshow(paint, aspect=up / across, interpolation="nearest")
            if row == 0:
                axes.set_title(plane, color="white", fontsize=9)
                _letters(axes, corners)
            if column == 0:
                axes.text(-0.05, 0.5, name, color="white", fontsize=9, rotation=90, transform=axes.transAxes, ha="center", va="center")
    shown = [value for value in names if any((values == value).any() for values in maps.values())][:LEGEND]
    handles = [Patch(color=colours[value], label=names[value]) for value in shown]
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 6), frameon=False, labelcolor="white", fontsize=9)
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    figure.subplots_adjust(left=0.04, right=0.99, top=1 - (0.6 if title else 0.25) / height, bottom=0.5 / height, wspace=0.03, hspace=0.05)
    return _png(figure)


def _hue(place: int) -> tuple[float, float, float]:
    """Hues around the circle, neighbours in the list far apart on it."""
    red, green, blue = hsv_to_rgb(((place * 0.618034) % 1, 0.65 + 0.35 * (place % 2), 1.0))
    return float(red), float(green), float(blue)


def reconstruction_figure(
    image: Float[np.ndarray, "x y z"],
    seen: Bool[np.ndarray, "x y z"],
    filled: Float[np.ndarray, "x y z"],
    spacing: Sequence[float],
    *,
    title: str = "",
) -> bytes:
    """What a masked model makes of a crop, in three planes through its middle: a row a plane.

    Args:
        image: (x, y, z), RAS+; all columns are shown between its 1st and 99.5th percentile.
        seen: where the model saw the image; the rest is black in the first column.
        filled: the image with what the model predicted where it did not see, the second column. The image is the third, and the fourth
            what differs, on the same scale around grey.
        spacing: mm along x, y, z; pixels are drawn in true proportion.
        title: above the figure.
    """
    low, high = (float(value) for value in np.percentile(image, (1, 99.5)))
    high = high if high > low else low + 1.0
    columns = {
        "seen": np.where(seen, image, low),
        "reconstruction": filled,
        "scan": image,
        "difference": filled - image + (low + high) / 2,
    }
    figure = Figure(figsize=(7.2, 6.0), dpi=100, facecolor="black")
    centre = _centre(image.shape, {})
    for row, (plane, axis, corners) in enumerate(_PLANES):
        for column, (name, volume) in enumerate(columns.items()):
            axes = figure.add_subplot(3, 4, 4 * row + column + 1)
            _slice(axes, volume, axis, centre, spacing, low, high)
            if row == 0:
                axes.set_title(name, color="white", fontsize=9)
            if column == 0:
                _letters(axes, corners)
                axes.text(-0.08, 0.5, plane, color="white", fontsize=9, rotation=90, transform=axes.transAxes, ha="center", va="center")
    if title:
        figure.suptitle(title, color="white", fontsize=11)
    figure.subplots_adjust(left=0.04, right=0.99, top=0.88 if title else 0.94, bottom=0.01, wspace=0.03, hspace=0.03)
    return _png(figure)


def curve_figure(curves: Mapping[str, Sequence[tuple[float, float]]], *, ylabel: str, xlabel: str = "step", log: bool = False) -> bytes:
    """Lines of (x, y) points by name."""
    figure = Figure(figsize=(6.4, 3.4), dpi=110)
    axes = figure.add_subplot()
    for (name, points), colour in zip(curves.items(), COLOURS):
        xs, ys = zip(*points) if points else ((), ())
        axes.plot(xs, ys, color=colour, label=name, linewidth=1.6, marker="." if len(xs) < 30 else None)
    if log:
        axes.set_yscale("log")
    _plain(axes, xlabel, ylabel)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return _png(figure)


def score_figure(
    scores: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float, float]], *, ylabel: str = "Dice"
) -> bytes:
    """Every case's score under each arm, joined by a line, with each arm's mean and 95 % interval beside it.

    Args:
        scores: arm → {case: score}.
        intervals: arm → (mean, low, high).
    """
    arms = list(scores)
    figure = Figure(figsize=(1.6 + 1.9 * len(arms), 3.8), dpi=110)
    axes = figure.add_subplot()
    for case in sorted({case for values in scores.values() for case in values}):
        points = [(place, scores[arm][case]) for place, arm in enumerate(arms) if case in scores[arm]]
        axes.plot(*zip(*points), color="0.75", linewidth=0.8, marker="o", markersize=3, zorder=1)
    for place, (arm, colour) in enumerate(zip(arms, COLOURS)):
        mean, low, high = intervals[arm]
        axes.errorbar(
            place, mean, yerr=[[mean - low], [high - mean]], color=colour, marker="D", markersize=7, capsize=6, linewidth=2, zorder=2
        )
        axes.annotate(f"{mean:.3f}", (place, mean), xytext=(10, 6), textcoords="offset points", color=colour, fontsize=10, weight="bold")
    axes.set_xticks(range(len(arms)), arms)
    axes.set_xlim(-0.5, len(arms) - 0.4)
    axes.set_ylim(-0.02, 1.02)
    _plain(axes, "", ylabel)
    figure.tight_layout()
    return _png(figure)


def learning_curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], *, floor: Sequence[tuple[float, float]] = (), ylabel: str = "Dice"
) -> bytes:
    """Scores against the number of labelled cases, on a logarithmic axis, a line an arm.

    Args:
        curves: arm → (labels, mean, low, high), by increasing number of labels; arms without a point are left out.
        floor: (labels, score) of a predictor that never looks at the image, dashed.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=110)
    axes = figure.add_subplot()
    shown = {arm: points for arm, points in curves.items() if points}
    for place, (arm, points) in enumerate(shown.items()):
        labels, means, lows, highs = np.array(points).T
        colour, marker = COLOURS[place % len(COLOURS)], "osD^v"[place // len(COLOURS) % 5]
        # A little beside each other, or bars would hide bars.
        labels = labels * 1.03 ** (place - (len(shown) - 1) / 2)
        axes.errorbar(labels, means, yerr=[means - lows, highs - means], color=colour, marker=marker, capsize=3, linewidth=1.6, label=arm)
    if floor:
        axes.plot(*zip(*floor), color="0.5", linestyle="--", marker=".", label="position only")
    ticks = sorted({point[0] for points in (*shown.values(), floor) for point in points})
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)  # not as wide as the arms of one N lie beside each other
        # Beside the axes where it would hide curves.
        axes.legend(frameon=False, fontsize=9, **({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(shown) > 4 else {}))
    _plain(axes, "labelled cases", ylabel)
    figure.tight_layout()
    return _png(figure)


def _centre(shape: Sequence[int], masks: Mapping[str, Integer[np.ndarray, "x y z"]]) -> tuple[int, int, int]:
    """The voxel where the first mask that is not empty has its largest slice along each axis; the middle of the scan without any."""
    for mask in masks.values():
        if mask.any():
            areas = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            x, y, z = (int(np.argmax(area)) for area in areas)
            return x, y, z
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _picture(volume: np.ndarray, axis: int, centre: Sequence[int]) -> np.ndarray:
    """The slice through `centre` as rows from top to bottom: up is anterior or superior, left is the patient's right or anterior."""
    return np.take(volume, centre[axis], axis=axis)[::-1, ::-1].T


def _slice(axes: Axes, image: np.ndarray, axis: int, centre: Sequence[int], spacing: Sequence[float], low: float, high: float) -> None:
    across, up = (spacing[other] for other in range(3) if other != axis)
    axes.imshow(_picture(image, axis, centre), cmap="gray", vmin=low, vmax=high, aspect=up / across, interpolation="nearest")
    axes.set_axis_off()


def _letters(axes: Axes, corners: str) -> None:
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.97), (0.5, 0.03))
    for letter, (x, y) in zip(corners, places):
        text = axes.text(x, y, letter, color="white", fontsize=8, transform=axes.transAxes, ha="center", va="center")
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])  # legible on bright tissue


def _plain(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    # Without a date and a version, equal figures are equal files.
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return stream.getvalue()
