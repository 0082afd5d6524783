"""Figures: PNG that decodes, true proportions, the patient's right on the left, the same bytes for the same numbers, no global state."""

import io
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from jaxseg.report import curve_figure, label_figure, overlay_figure, score_figure
from jaxseg.report.figures import COLOURS, TRUTH, _centre, _picture


def pixels(png: bytes) -> np.ndarray:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return np.asarray(imread(io.BytesIO(png)))


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.abs(picture[..., :3] - rgb).max(axis=-1) < 0.15


def first_panel(png: bytes) -> np.ndarray:
    picture = pixels(png)
    return picture[picture.shape[0] // 10 : -picture.shape[0] // 8, : picture.shape[1] // 3]


def test_right_is_left_anterior_and_superior_are_up():
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1  # right, anterior, superior
    for axis in (0, 1, 2):
        picture = _picture(volume, axis, (3, 4, 5))
        assert picture[0, 0] == 1  # top left: up is anterior or superior, left is the patient's right or, from the side, the face
    assert _picture(volume, 2, (3, 4, 5)).shape == (5, 4)


def test_planes_go_through_the_lesions_largest_slices():
    lesion = np.zeros((20, 20, 20), bool)
    lesion[4:7, 10:17, 12] = True
    lesion[5, 13, 9:16] = True
    assert _centre(lesion.shape, {"empty": np.zeros_like(lesion), "truth": lesion}) == (5, 13, 12)
    assert _centre(lesion.shape, {"empty": np.zeros_like(lesion)}) == (10, 10, 10)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 2, 1), (2, 1, 5)])
def test_pixels_have_the_proportions_of_millimetres(spacing):
    scan = np.ones((40, 40, 40), np.float32)
    scan[:, :, :4] = 0  # away from the axial plane that is shown: there is a range to show
    panel = first_panel(overlay_figure(scan, {"truth": np.zeros(scan.shape, bool)}, spacing, title="x"))
    white = panel[..., :3].min(axis=-1) > 0.9
    rows, columns = (np.flatnonzero(np.count_nonzero(white, axis=a) > 20) for a in (1, 0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(spacing[1] / spacing[0], rel=0.06)


def test_truth_and_predictions_are_told_apart_and_lie_where_they_are():
    scan = np.random.default_rng(0).uniform(0, 0.3, (40, 40, 40)).astype(np.float32)
    truth, left = np.zeros(scan.shape, bool), np.zeros(scan.shape, bool)
    truth[26:34, 16:24, 16:24] = True  # on the patient's right
    left[6:12, 16:24, 16:24] = True
    panel = first_panel(overlay_figure(scan, {"truth": truth, "model": left}, (1, 1, 1), title="case"))
    middle = panel.shape[1] / 2
    assert np.argwhere(near(panel, TRUTH))[:, 1].mean() < middle < np.argwhere(near(panel, COLOURS[0]))[:, 1].mean()


def test_every_label_has_its_colour_in_every_map():
    scan = np.full((40, 40, 40), 0.0, np.float32)
    truth, missed = np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, np.uint8)
    truth[22:34, 12:28, 12:28], truth[6:18, 12:28, 12:28] = 1, 4
    missed[22:34, 12:28, 12:28] = 1
    picture = pixels(label_figure(scan, {"truth": truth, "model": missed}, {1: "rim", 4: "core"}, (1, 1, 1), title="case"))
    first, second = np.array_split(picture[: -picture.shape[0] // 10], 2)
    for colour, rows in ((COLOURS[0], (True, True)), (COLOURS[1], (True, False))):
        dimmed = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255 * 0.55  # over a black scan
        assert [int((np.abs(row[..., :3] - dimmed).max(-1) < 0.05).sum() > 500) for row in (first, second)] == list(map(int, rows))
    rim = np.abs(first[:, : first.shape[1] // 3, :3] - np.array([0x56, 0xB4, 0xE9]) / 255 * 0.55).max(-1) < 0.05
    assert np.flatnonzero(rim.any(0)).mean() < first.shape[1] / 6  # on the patient's right, which is on the left


def test_more_labels_than_the_palette_has_are_drawn_in_different_colours():
    scan, maps = np.zeros((30, 30, 30), np.float32), np.zeros((30, 30, 30), np.uint8)
    for value in range(1, 26):
        maps[value + 1, 5:25, 5:25] = value
    picture = pixels(label_figure(scan, {"truth": maps}, {value: f"region {value}" for value in range(1, 26)}, (1, 1, 1)))
    axial = np.round(picture[:, : picture.shape[1] // 3, :3], 2).reshape(-1, 3)
    colours, counts = np.unique(axial, axis=0, return_counts=True)
    assert (counts[colours.max(1) > 0.3] > 300).sum() >= 20


def test_an_empty_prediction_and_a_constant_scan_are_drawn():
    scan = np.zeros((8, 9, 10), np.float32)
    pixels(overlay_figure(scan, {"truth": np.zeros(scan.shape, bool), "model": np.ones(scan.shape, bool)}, (1, 1, 3)))


def test_a_scan_of_one_slice_is_drawn_with_its_mask():
    scan = np.random.default_rng(0).uniform(0, 1, (8, 9, 1)).astype(np.float32)
    mask = np.zeros(scan.shape, bool)
    mask[2:5, 2:5] = True
    assert near(first_panel(overlay_figure(scan, {"truth": mask}, (1, 1, 3), title="x")), TRUTH).any()


def test_curves_and_scores_are_drawn_the_same_every_time():
    curves = {"pretrained": [(0, 1.0), (10, 0.5)], "scratch": [(0, 1.2), (10, 0.9)], "not run": []}
    scores = {"pretrained": {"a": 0.8, "b": 0.6}, "scratch": {"a": 0.5, "b": 0.65}}
    intervals = {"pretrained": (0.7, 0.6, 0.8), "scratch": (0.575, 0.5, 0.65)}
    draw = [
        lambda: curve_figure(curves, ylabel="loss"),
        lambda: curve_figure(curves, ylabel="loss", log=True),
        lambda: score_figure(scores, intervals),
        lambda: label_figure(np.zeros((6, 6, 6), np.float32), {"truth": np.ones((6, 6, 6), np.uint8)}, {1: "a", 2: "b"}, (1, 1, 1)),
    ]
    for figure in draw:
        picture = pixels(figure())
        assert picture.shape[0] > 200 and picture.std() > 0.01
        assert figure() == figure()
    for colour in COLOURS[:2]:
        assert near(pixels(draw[0]()), colour).sum() > 50


def test_nothing_global_is_touched():
    before = "matplotlib.pyplot" in sys.modules
    score_figure({"one": {"a": 0.5}}, {"one": (0.5, 0.5, 0.5)})
    # Peers' packages, in the same process in parity runs, may have imported it.
    assert ("matplotlib.pyplot" in sys.modules) == before
