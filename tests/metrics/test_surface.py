"""Surface distances in mm: closed forms on shifted boxes, a brute-force check, the rule for empty masks, and MONAI's numbers."""

import numpy as np
import pytest

from jaxseg import metrics

SPACING = (0.7, 1.0, 3.0)
DISTANCES = [metrics.hausdorff, metrics.hd95, metrics.assd]


def box(start, sides, shape=(20, 18, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, sides, strict=True))] = True
    return mask


def blobs(seed, shape=(22, 18, 14)):
    rng = np.random.default_rng(seed)
    index = np.indices(shape).reshape(3, -1).T
    centres = rng.uniform(4, 10, (2, 3))
    masks = [(((index - centre) / rng.uniform(3, 6, 3)) ** 2).sum(1) < 1 for centre in centres]
    return [mask.reshape(shape) for mask in masks]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shift", [1, 3])
def test_a_shifted_box_is_as_far_as_its_shift(axis, shift):
    a = box((2, 2, 2), (7, 6, 5))
    b = np.roll(a, shift, axis)
    expected = shift * SPACING[axis]
    assert metrics.hausdorff(a, b, SPACING) == pytest.approx(expected)
    assert 0 < metrics.assd(a, b, SPACING) < expected
    assert metrics.hd95(a, b, SPACING) == pytest.approx(expected)  # the leading face is more than 5 % of the surface
    assert metrics.surface_dice(a, b, SPACING, tolerance_mm=expected) == 1
    assert metrics.surface_dice(a, b, SPACING, tolerance_mm=0.99 * expected) < 1


def test_single_voxels_are_as_far_as_their_centres():
    a, b = box((1, 2, 3), (1, 1, 1)), box((4, 6, 5), (1, 1, 1))
    expected = np.sqrt((3 * 0.7) ** 2 + 4**2 + (2 * 3.0) ** 2)
    for distance in DISTANCES:
        assert distance(a, b, SPACING) == pytest.approx(expected)


def test_the_surface_is_that_of_face_neighbours():
    cube, core = box((2, 2, 2), (5, 5, 5)), box((3, 3, 3), (3, 3, 3))
    distances = metrics.surface_distances(cube, core, (1, 1, 1))
    assert (distances.pred_to_truth.size, distances.truth_to_pred.size) == (5**3 - 3**3, 3**3 - 1)
    assert distances.truth_to_pred.max() == 1
    assert distances.pred_to_truth.max() == pytest.approx(np.sqrt(3))
    assert distances.hausdorff() == pytest.approx(np.sqrt(3))


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_brute_force_over_all_surface_voxels(seed):
    def surface(mask):
        padded = np.pad(mask, 1)
        buried = np.ones_like(mask)
        for axis in range(3):
            for side in (-1, 1):
                buried &= np.roll(padded, side, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~buried) * SPACING

    a, b = blobs(seed)
    table = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    there, back = table.min(1), table.min(0)
    assert metrics.hausdorff(a, b, SPACING) == pytest.approx(max(there.max(), back.max()))
    assert metrics.hd95(a, b, SPACING) == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert metrics.assd(a, b, SPACING) == pytest.approx((there.sum() + back.sum()) / (there.size + back.size))


def test_distances_are_symmetric_scale_with_spacing_and_are_ordered():
    a, b = blobs(7)
    for distance in DISTANCES:
        assert distance(a, b, SPACING) == pytest.approx(distance(b, a, SPACING))
        assert distance(a, b, [2 * s for s in SPACING]) == pytest.approx(2 * distance(a, b, SPACING))
        assert distance(a, a, SPACING) == 0
    assert metrics.assd(a, b, SPACING) < metrics.hd95(a, b, SPACING) <= metrics.hausdorff(a, b, SPACING)


def test_a_mask_at_the_border_has_a_surface_there():
    full = np.ones((6, 5, 4), bool)
    distances = metrics.surface_distances(full, full, SPACING)
    assert distances.pred_to_truth.size == 6 * 5 * 4 - 4 * 3 * 2


@pytest.mark.parametrize("distance", DISTANCES)
def test_empty_masks(distance):
    empty, full = np.zeros((20, 18, 12), bool), box((2, 2, 2), (3, 3, 3))
    diagonal = np.linalg.norm(np.multiply(empty.shape, SPACING))
    assert np.isnan(distance(empty, empty, SPACING))
    assert distance(empty, full, SPACING) == distance(full, empty, SPACING) == pytest.approx(diagonal)
    assert metrics.surface_dice(empty, empty, SPACING, tolerance_mm=2) == 1
    assert metrics.surface_dice(empty, full, SPACING, tolerance_mm=2) == 0


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, float("nan"), 1)])
def test_a_spacing_that_cannot_be_is_refused(spacing):
    with pytest.raises(ValueError, match="3 positive numbers"):
        metrics.hd95(box((1, 1, 1), (2, 2, 2)), box((1, 1, 1), (2, 2, 2)), spacing)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:monai:FutureWarning")
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_monai(seed):
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    a, b = blobs(seed)
    x, y = (torch.from_numpy(mask)[None, None] for mask in (a, b))
    shared = {"include_background": True, "spacing": list(SPACING)}
    assert metrics.hausdorff(a, b, SPACING) == pytest.approx(theirs.compute_hausdorff_distance(x, y, **shared).item(), rel=1e-5)
    assert metrics.hd95(a, b, SPACING) == pytest.approx(theirs.compute_hausdorff_distance(x, y, percentile=95, **shared).item(), rel=1e-5)
    assert metrics.assd(a, b, SPACING) == pytest.approx(
        theirs.compute_average_surface_distance(x, y, symmetric=True, **shared).item(), rel=1e-5
    )
    ours = metrics.surface_dice(a, b, SPACING, tolerance_mm=1.1)
    assert ours == pytest.approx(theirs.compute_surface_dice(x, y, class_thresholds=[1.1], **shared).item(), rel=1e-5)
