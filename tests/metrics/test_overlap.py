"""Overlap of masks: closed forms, the written rule for empty masks, and the device's Dice against the host's."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import metrics
from jaxseg.metrics import device

SCORES = [metrics.dice, metrics.iou, metrics.volumetric_similarity]


def cube(start, side, shape=(12, 10, 8)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + side) for s in start)] = True
    return mask


def test_shifted_cubes_have_known_overlap():
    a, b = cube((1, 1, 1), 4), cube((3, 1, 1), 4)  # 64 voxels each, half of them shared
    assert metrics.confusion(a, b) == (32, 32, 32, 960 - 96)
    assert metrics.dice(a, b) == pytest.approx(0.5)
    assert metrics.iou(a, b) == pytest.approx(1 / 3)
    assert metrics.volumetric_similarity(a, b) == 1


def test_volumetric_similarity_sees_volumes_only():
    assert metrics.volumetric_similarity(cube((0, 0, 0), 2), cube((6, 6, 4), 4)) == pytest.approx(1 - (64 - 8) / 72)


@pytest.mark.parametrize("score", SCORES)
def test_empty_masks(score):
    empty, full = np.zeros((4, 4, 4), bool), cube((0, 0, 0), 2, (4, 4, 4))
    assert score(empty, empty) == 1
    assert score(empty, full) == score(full, empty) == 0


def test_dice_follows_iou_and_is_symmetric():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random((2, 6, 5, 4)) < rng.random((2, 1, 1, 1))
        jaccard = metrics.iou(a, b)
        assert metrics.dice(a, b) == pytest.approx(2 * jaccard / (1 + jaccard))
        assert metrics.dice(a, b) == metrics.dice(b, a)


@pytest.mark.parametrize("score", SCORES)
def test_masks_on_different_grids_are_refused(score):
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) and \(4, 4, 5\)"):
        score(np.zeros((4, 4, 4)), np.zeros((4, 4, 5)))


def test_the_device_agrees_with_the_host_and_leaves_out_ignored_voxels():
    rng = np.random.default_rng(1)
    pred, truth = rng.integers(0, 3, (2, 3, 6, 5, 4)).astype(np.uint8)
    truth[1] = 0
    truth[:, :2] = 255
    scores = device.dice(jnp.asarray(pred), jnp.asarray(truth), num_classes=4)
    expected = [[metrics.dice(p[2:] == k, t[2:] == k) for k in (1, 2, 3)] for p, t in zip(pred, truth, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores[0, 2] == 1  # class 3 is in neither
    regions = device.dice(jnp.stack([pred == 1, pred > 0], -1), jnp.stack([truth == 1, truth > 0], -1))
    np.testing.assert_allclose(regions[0, 1], metrics.dice(pred[0] > 0, truth[0] > 0), rtol=1e-6)


@pytest.mark.parity
def test_dice_and_iou_equal_monai():
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = np.random.default_rng(2).random((2, 9, 8, 7)) < 0.4
    x, y = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in (a, b))
    assert metrics.dice(a, b) == pytest.approx(theirs.compute_dice(x, y).item(), rel=1e-6)
    assert metrics.iou(a, b) == pytest.approx(theirs.compute_iou(x, y).item(), rel=1e-6)
