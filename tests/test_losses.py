"""Losses: closed forms, what must not matter (ignored voxels, the number of devices), and MONAI's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses

SHAPE = (2, 5, 4, 3)
PER_VOXEL = {"cross_entropy": losses.cross_entropy, "focal": losses.focal}
OVERLAP = {"dice": losses.dice, "tversky": losses.tversky}
ALL = PER_VOXEL | OVERLAP


def ratio(terms):
    return sum(total / count for total, count in terms.values())


def number(terms):
    return float(ratio(terms))


def case(seed=0, k=4, shape=SHAPE, regions=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, k)).astype(np.float32)
    target = rng.integers(0, 2, (*shape, k)) if regions else rng.integers(0, k, shape)
    return jnp.asarray(logits), jnp.asarray(target.astype(np.uint8))


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_a_sure_and_right_prediction_costs_nothing_and_a_wrong_one_more_than_chance(loss, regions):
    _, target = case(regions=regions)
    sign = 2.0 * (target if regions else jax.nn.one_hot(target, 4)) - 1
    right, wrong = number(loss(60 * sign, target, regions=regions)), number(loss(-60 * sign, target, regions=regions))
    assert right == pytest.approx(0, abs=1e-5)
    assert wrong > 0.9


@pytest.mark.parametrize("k", [2, 5])
def test_uniform_logits_cost_log_k(k):
    _, target = case(k=k)
    assert number(losses.cross_entropy(jnp.zeros((*SHAPE, k)), target)) == pytest.approx(np.log(k), rel=1e-6)
    _, target = case(k=k, regions=True)
    assert number(losses.cross_entropy(jnp.zeros((*SHAPE, k)), target, regions=True)) == pytest.approx(np.log(2), rel=5e-6)


def test_dice_of_uniform_probabilities_is_a_known_fraction():
    target = jnp.zeros((1, 4, 4, 4), jnp.uint8).at[0, 0].set(1)
    total, count = losses.dice(jnp.zeros((1, 4, 4, 4, 2)), target)["dice"]
    # 16 of 64 voxels, probability 1/2 everywhere: tp 8, predicted 32, present 16
    assert (float(total), float(count)) == (pytest.approx(1 - 16 / 48, abs=1e-5), 1)


def test_tversky_with_equal_halves_is_dice_and_leans_to_what_weighs_more():
    logits, target = case()
    a = number(losses.dice(logits, target, smooth=2e-5))
    b = number(losses.tversky(logits, target, alpha=0.5, beta=0.5, smooth=1e-5))
    assert a == pytest.approx(b, rel=1e-6)
    target = jnp.zeros((1, 4, 4, 4), jnp.uint8).at[0, :2].set(1)
    missed = 20.0 * jnp.stack([jnp.ones_like(target), jnp.zeros_like(target)], -1).at[0, 0, ..., 1].set(2)
    # half of the foreground is found, nothing falsely: tp 16, fn 16
    assert number(losses.tversky(missed, target, alpha=0.1, beta=0.9)) == pytest.approx(1 - 16 / (16 + 0.9 * 16), abs=1e-4)


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_focal_without_focus_is_cross_entropy_and_with_it_less(regions):
    logits, target = case(regions=regions)
    plain = number(losses.cross_entropy(logits, target, regions=regions))
    assert number(losses.focal(logits, target, gamma=0.0, regions=regions)) == pytest.approx(plain, rel=1e-6)
    assert number(losses.focal(logits, target, gamma=2.0, regions=regions)) < 0.8 * plain


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_finite_gradients_where_the_truth_is_certain(gamma):
    _, target = case()
    sure = 200 * jax.nn.one_hot(target, 4)
    assert jnp.isfinite(jax.grad(lambda x: ratio(losses.focal(x, target, gamma=gamma)))(sure)).all()


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
@pytest.mark.parametrize("how", ["ignore", "valid"])
def test_left_out_voxels_change_neither_value_nor_gradient(loss, regions, how):
    logits, target = case(regions=regions)
    out = jnp.zeros(SHAPE, bool).at[:, 3:].set(True)
    cut = lambda x: ratio(loss(x, target[:, :3], regions=regions))
    expected, slope = jax.value_and_grad(cut)(logits[:, :3])
    if how == "ignore":
        whole = lambda x: ratio(loss(x, jnp.where(out[..., None] if regions else out, 255, target), regions=regions))
    else:
        whole = lambda x: ratio(loss(x, target, valid=~out, regions=regions))
    value, gradient = jax.value_and_grad(whole)(jnp.where(out[..., None], jnp.nan, logits))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient[:, :3], slope, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 3:], 0)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_bfloat16_logits_give_float32_losses(loss):
    logits, target = case()
    half = logits.astype(jnp.bfloat16)
    ((total, count),) = loss(half, target).values()
    assert total.dtype == count.dtype == jnp.float32
    assert total == pytest.approx(float(next(iter(loss(half.astype(jnp.float32), target).values()))[0]), rel=1e-6)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_equal_weights_change_nothing_and_a_zero_weight_removes_a_class(loss):
    logits, target = case()
    assert number(loss(logits, target, weights=[3.0] * 4)) == pytest.approx(number(loss(logits, target)), rel=1e-6)
    without = number(loss(logits, target, weights=[1, 1, 0, 1]))
    kept = jnp.where(target == 2, 0, target)
    total, count = loss(logits, target, weights=[0, 0, 1, 0]).popitem()[1]
    assert count > 0 and not np.isclose(total / count, without)
    assert number(loss(logits, target, weights=[0, 1, 0, 0])) == pytest.approx(number(loss(logits, kept, weights=[0, 1, 0, 0])), rel=1e-6)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_a_label_that_does_not_exist_makes_the_loss_nan(loss):
    logits, target = case()
    assert jnp.isnan(number(loss(logits, target.at[0, 0, 0, 0].set(4))))
    assert jnp.isfinite(number(loss(logits, target.at[0, 0, 0, 0].set(255))))


@pytest.mark.parametrize("options", [{}, {"batch": True}], ids=["per sample", "batch"])
def test_counts_do_not_depend_on_logits(options):
    logits, target = case()
    for scale in (1.0, 7.0):
        counts = {name: float(count) for name, (_, count) in losses.dice_ce(scale * logits, target, **options).items()}
        assert counts == {"dice": 3 if options else 6, "cross_entropy": target.size}
    slope = jax.grad(lambda x: sum(count for _, count in losses.dice_ce(x, target, **options).values()))(logits)
    np.testing.assert_array_equal(slope, 0)


def test_a_sample_without_valid_voxels_does_not_count():
    logits, target = case()
    both, one = losses.dice(logits, target.at[1].set(255))["dice"], losses.dice(logits[:1], target[:1])["dice"]
    np.testing.assert_allclose(both, one, rtol=1e-6)
    assert losses.dice(logits, jnp.full_like(target, 255))["dice"] == (0, 0)


def test_a_class_absent_and_not_predicted_costs_nothing():
    target = jnp.zeros((1, 4, 4, 4), jnp.uint8).at[0, 0].set(1)
    logits = 60.0 * jax.nn.one_hot(target, 3)
    total, count = losses.dice(logits, target)["dice"]
    assert (float(total), float(count)) == (pytest.approx(0, abs=1e-5), 2)


def test_batch_dice_pools_voxels_before_dividing():
    target = jnp.zeros((2, 2, 2, 2), jnp.uint8).at[0].set(1)
    logits = 60.0 * jax.nn.one_hot(target.at[0, 0].set(0).at[1, 0, 0].set(1), 2)
    # sample 0 finds 4 of 8, sample 1 holds nothing and has 2 false positives
    pooled, separate = losses.dice(logits, target, batch=True)["dice"], losses.dice(logits, target)["dice"]
    assert (float(pooled[0]), float(pooled[1])) == (pytest.approx(1 - 8 / 14, abs=1e-5), 1)
    assert (float(separate[0]), float(separate[1])) == (pytest.approx((1 - 8 / 12) + 1, abs=1e-4), 2)


def test_regions_are_unions_of_labels_and_keep_ignore():
    label = jnp.asarray([[0, 1, 2, 3, 255]], jnp.uint8)
    regions = losses.regions_from_labels(label, [[1, 2, 3], [1, 3], [3]])
    np.testing.assert_array_equal(regions[0], [[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1], [255] * 3])
    whole = losses.regions_from_labels(label.astype(jnp.int32) - 256 * (label == 255), [[1, 2, 3], [3]], ignore=-1)
    np.testing.assert_array_equal(whole[0], [[0, 0], [1, 0], [1, 0], [1, 1], [-1, -1]])


@pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
def test_a_target_of_the_other_form_is_refused(regions):
    logits, target = case(regions=not regions)
    with pytest.raises(ValueError, match="target has shape"):
        losses.dice(logits, target, regions=regions)


# --- devices ------------------------------------------------------------


def sharded_case():
    """16 samples for 8 devices of which only three hold foreground, one is ignored altogether, and none holds class 3."""
    rng = np.random.default_rng(3)
    images = rng.normal(size=(16, 4, 3, 2, 2)).astype(np.float32)
    target = np.zeros((16, 4, 3, 2), np.uint8)
    target[[0, 1, 7]] = rng.integers(0, 3, (3, 4, 3, 2))
    target[12:14] = 255
    return {"w": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)}, jnp.asarray(images), jnp.asarray(target)


def sgd_step(params, images, target, axis, loss):
    """One SGD step of mean(sum) / mean(count), gradients averaged: what the training step does."""
    mean = (lambda tree: jax.lax.pmean(tree, axis)) if axis else (lambda tree: tree)

    def total(params):
        terms = loss(images @ params["w"], target, axis)
        return sum(value / mean(count) for value, count in terms.values()), {
            name: mean(value) / mean(count) for name, (value, count) in terms.items()
        }

    (_, terms), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return terms, jax.tree.map(lambda p, g: p - 0.5 * g, params, mean(gradients))


DEVICE_LOSSES = {
    "per sample": lambda x, y, axis: losses.dice_ce(x, y),
    "batch": lambda x, y, axis: losses.dice_ce(x, y, batch=True, axis=axis),
    "batch tversky": lambda x, y, axis: losses.tversky(x, y, batch=True, axis=axis),
    "weighted focal": lambda x, y, axis: losses.focal(x, y, weights=[0.1, 1, 2, 3]),
}


@pytest.mark.parametrize("loss", DEVICE_LOSSES.values(), ids=DEVICE_LOSSES)
def test_eight_devices_give_the_loss_and_the_sgd_step_of_one(loss):
    params, images, target = sharded_case()
    expected, moved = jax.jit(lambda *args: sgd_step(*args, None, loss))(params, images, target)
    shards = images.reshape(8, 2, *images.shape[1:]), target.reshape(8, 2, *target.shape[1:])
    parallel = jax.pmap(lambda *args: sgd_step(*args, "data", loss), "data", in_axes=(None, 0, 0), out_axes=None)
    terms, moved_in_parallel = parallel(params, *shards)
    for name, value in expected.items():
        assert jnp.isfinite(value)
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5)
    assert jnp.abs(moved["w"] - params["w"]).max() > 1e-3
    np.testing.assert_allclose(moved_in_parallel["w"], moved["w"], atol=1e-6)


def test_batch_dice_differs_from_the_mean_of_the_devices_own():
    """Guards the test above: were pooling over devices left out, it would be noticed."""
    params, images, target = sharded_case()
    logits = images @ params["w"]
    one = number(losses.dice(logits, target, batch=True))
    own = np.mean([number(losses.dice(logits[i : i + 2], target[i : i + 2], batch=True)) for i in range(0, 12, 2)])
    assert abs(one - own) > 0.01


# --- MONAI ------------------------------------------------------------


def to_torch(torch, logits, target):
    return torch.from_numpy(np.moveaxis(np.array(logits, np.float64), -1, 1)), torch.from_numpy(np.array(target, np.int64))[:, None]


@pytest.mark.parity
@pytest.mark.parametrize("batch", [False, True], ids=["per sample", "batch"])
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "all"])
def test_overlap_losses_equal_monai_gradients_included(batch, background):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.losses")
    logits, target = case(seed=1)
    x, y = to_torch(torch, logits, target)
    x.requires_grad_(True)
    shared = {"include_background": background, "to_onehot_y": True, "softmax": True, "batch": batch}
    pairs = [
        (monai.DiceLoss(**shared), lambda z: losses.dice(z, target, batch=batch, include_background=background)),
        (
            monai.TverskyLoss(alpha=0.3, beta=0.7, **shared),
            lambda z: losses.tversky(z, target, alpha=0.3, beta=0.7, batch=batch, include_background=background),
        ),
        (monai.DiceCELoss(**shared), lambda z: losses.dice_ce(z, target, batch=batch, include_background=background)),
    ]
    for theirs, ours in pairs:
        expected = theirs(x, y)
        (slope,) = torch.autograd.grad(expected, x)
        value, gradient = jax.value_and_grad(lambda z, ours=ours: ratio(ours(z)))(logits)
        assert float(value) == pytest.approx(expected.item(), rel=1e-5)
        np.testing.assert_allclose(np.moveaxis(np.asarray(gradient), -1, 1), slope.numpy(), atol=1e-7)


@pytest.mark.parity
def test_cross_entropy_with_weights_and_ignore_equals_torch():
    torch = pytest.importorskip("torch")
    logits, target = case(seed=2)
    target = target.at[0, 0].set(255)
    x, y = to_torch(torch, logits, target)
    weights = [0.2, 1.0, 3.0, 0.5]
    expected = torch.nn.functional.cross_entropy(x, y[:, 0], weight=torch.tensor(weights, dtype=torch.float64), ignore_index=255)
    assert number(losses.cross_entropy(logits, target, weights=weights)) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parity
def test_focal_and_regions_equal_monai():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.losses")
    logits, target = case(seed=3)
    x, y = to_torch(torch, logits, target)
    expected = monai.FocalLoss(include_background=True, to_onehot_y=True, use_softmax=True, gamma=2.0)(x, y)
    assert number(losses.focal(logits, target)) == pytest.approx(4 * expected.item(), rel=1e-5)
    logits, target = case(seed=4, regions=True)
    x, y = (torch.from_numpy(np.moveaxis(np.array(part, np.float64), -1, 1)) for part in (logits, target))
    assert number(losses.focal(logits, target, regions=True)) == pytest.approx(monai.FocalLoss(gamma=2.0)(x, y).item(), rel=1e-5)
    assert number(losses.dice(logits, target, regions=True)) == pytest.approx(monai.DiceLoss(sigmoid=True)(x, y).item(), rel=1e-5)
