"""Every objective: its loss falls, its numbers are those of one device on any, air and visible tokens cost nothing, and its encoder transfers."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from finetune.transfer import take_encoder
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
from jaxseg.models import MAE, MAEConfig, ViTConfig
from jaxseg.train import Layout
from jaxseg.zoo.registry import network_of
from pretrain.objectives import OBJECTIVES

SIDE, BATCH, CHANNELS = 8, 8, 2
MODEL = MAEConfig(
    encoder=ViTConfig(in_channels=CHANNELS, crop=(SIDE, SIDE, SIDE), token=(2, 2, 2), width=24, depth=1, heads=2),
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=1,
    mask_ratio=0.5,
    mask_unit=(1, 1, 1),
)
LIGHT = Augment.none()


@cache
def batch():
    """Smooth crops, body in all but a slab of each, a channel missing in two."""
    rng = np.random.default_rng(0)
    ramp = np.moveaxis(np.indices((SIDE, SIDE, SIDE)), 0, -1) / (SIDE / 2) - 1
    image = np.einsum("xyzd,bdc->bxyzc", ramp, rng.normal(size=(BATCH, 3, CHANNELS)))
    mask = np.ones((BATCH, SIDE, SIDE, SIDE), np.uint8)
    mask[:, :3] = 0
    return {
        "image": (image * mask[..., None]).astype(np.float16),
        "mask": mask,
        "present": np.array([[1.0, 1.0]] * 6 + [[1.0, 0.0]] * 2, np.float32),
        "spacing": np.tile(np.array([2, 2, 3], np.float32), (BATCH, 1)),
        "air": np.zeros((BATCH, CHANNELS), np.float32),
        "place": np.tile(np.array([[-10, 4, -12], [70, 90, 80]], np.float32), (BATCH, 1, 1)),
        "id": np.arange(100, 100 + BATCH, dtype=np.int32),
    }


@cache
def problem(name):
    graph, params = nnx.split(network_of(OBJECTIVES[name].settings(MODEL)))
    return graph, jax.tree.map(np.array, params)


def compute(name, graph, params, samples, keys, teacher=None):
    """The terms of an objective's loss, in one compiled program."""
    return jax.jit(OBJECTIVES[name].make_loss(graph, Augment.none()))(params, samples, keys, teacher)


def compiled(name, layout, optimizer, augmentation=LIGHT):
    objective, (graph, params) = OBJECTIVES[name], problem(name)
    state = layout.place(objective.start(params, optimizer))
    return layout.compile(objective.make_step(graph, augmentation, optimizer)), state


def one_step(name, layout):
    """Parameters after one step of plain gradient descent show the gradients; AdamW would hide a wrong factor.

    The key is one whose parts of crops keep "contrastive" away from the pole of its -log(1 - |overlap - likeness|): near it (of keys 1 to 5, at 3 and 4)
    the gradient magnifies the rounding of a cosine, by up to a thousand, and says nothing of devices.
    """
    step, state = compiled(name, layout, optax.sgd(1.0))
    after, metrics = step(state, layout.put(batch()), jax.random.key(5))
    return layout.host((after.params, after.extra)), {term: float(value) for term, value in jax.device_get(metrics).items()}


@cache
def reference(name):
    return one_step(name, Layout("pmap", devices=jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pmap", "mesh"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_eight_devices_give_the_numbers_of_one(name, layout):
    trees, metrics = one_step(name, Layout("pmap") if layout == "pmap" else Layout("mesh", fsdp=2, shard_min_bytes=256))
    expected_trees, expected = reference(name)
    assert expected["grad_norm"] > 1e-3
    for term, value in expected.items():
        assert metrics[term] == pytest.approx(value, rel=1e-5, abs=1e-6), term
    for got, wanted in zip(jax.tree.leaves(trees), jax.tree.leaves(expected_trees), strict=True):
        # SimCLR's gradients at a low temperature are large, and so is their rounding.
        largest = np.abs(wanted).max() if name == "simclr" else 0.0
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * max(1.0, largest))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pmap", "mesh"])
def test_two_devices_that_compare_samples_give_the_numbers_of_one(layout):
    trees, metrics = one_step("simclr", Layout(layout, devices=jax.devices()[:2]))
    expected_trees, expected = reference("simclr")
    for term, value in expected.items():
        assert metrics[term] == pytest.approx(value, rel=1e-5, abs=1e-6), term
    for got, wanted in zip(jax.tree.leaves(trees), jax.tree.leaves(expected_trees), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def test_samples_that_are_compared_are_not_accumulated():
    graph, _ = problem("simclr")
    with pytest.raises(ConfigError, match="accumulate=2"):
        OBJECTIVES["simclr"].make_step(graph, Augment.none(), optax.sgd(1.0), accumulate=2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls(name):
    layout = Layout("pmap", devices=jax.devices()[:1])
    step, state = compiled(name, layout, optax.adam(1e-2), Augment.none())
    losses = []
    for _ in range(20):
        state, metrics = step(state, layout.put(batch()), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_network_that_was_never_trained_holds_the_encoder_of_a_masked_autoencoder_that_was_not(name):
    """Zero steps: arms that differ in the objective alone start from the same encoder, to the bit."""
    graph, params = problem(name)
    network = nnx.merge(graph, params)
    bare = nnx.state(MAE(MODEL, rngs=nnx.Rngs(0)))
    taken = take_encoder(bare, MODEL.encoder, params, network.config.encoder, channels="ab", source_channels="ab").params
    for array, before in zip(jax.tree.leaves(taken), jax.tree.leaves(bare), strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_air_and_what_a_sample_lacks_never_change_the_loss(name):
    """Under the mask's zeros and in missing channels the target may be anything."""
    graph, params = problem(name)
    objective = OBJECTIVES[name]
    extra = None if objective.teacher is None else objective.teacher(params)
    loss = jax.jit(
        lambda batch: objective.make_loss(graph, Augment.none())(params, batch, jax.random.split(jax.random.key(0), BATCH), extra)
    )
    before = batch()
    # No voxel counts: no loss and no count, whatever there is to predict.
    for sums, count in loss({**before, "mask": np.zeros_like(before["mask"])}).values():
        assert float(sums) == float(count) == 0
    changed = {**before, "image": before["image"] + np.float16(9) * (before["present"][:, None, None, None] == 0)}
    for now, then in zip(jax.tree.leaves(loss(changed)), jax.tree.leaves(loss(before)), strict=True):
        assert float(now) == float(then) != 0


def test_a_teacher_is_the_average_of_its_student_and_gets_no_gradient():
    objective, (graph, params) = OBJECTIVES["latent"], problem("latent")
    step = jax.jit(objective.make_step(graph, Augment.none(), optax.sgd(0.5), momentum=0.75))
    state, expected = objective.start(params, optax.sgd(0.5)), jax.tree.leaves(params["encoder"])
    for number in range(2):
        state, _ = step(state, batch(), jax.random.key(number))
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, jax.tree.leaves(state.params["encoder"]), strict=True)]
    for teacher, wanted in zip(jax.tree.leaves(state.extra), expected, strict=True):
        np.testing.assert_allclose(teacher, wanted, atol=1e-6)
    assert any(not np.allclose(a, b, atol=1e-6) for a, b in zip(jax.tree.leaves(state.extra), jax.tree.leaves(state.params["encoder"])))
    loss = objective.make_loss(graph, Augment.none())
    keys = jax.random.split(jax.random.key(0), BATCH)
    slope = jax.jit(jax.grad(lambda teacher: loss(params, batch(), keys, teacher)["latent"][0]))(state.extra)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_two_terms_of_one_encoder_pass_are_those_of_the_two_objectives():
    """The parts of MAE + latent with the same weights and masks equal the masked autoencoder and the latent objective, and the weights weigh."""
    graph, params = problem("mae_latent")
    keys, teacher = jax.random.split(jax.random.key(0), BATCH), params["encoder"]
    both = compute("mae_latent", graph, params, batch(), keys, teacher)
    mae_graph, mae_params = problem("mae")
    voxels = compute("mae", mae_graph, nnx.State({name: params[name] for name in mae_params}), batch(), keys)
    latent_graph, _ = problem("latent")
    student = nnx.State({"encoder": params["encoder"], "decoder": params["predictor"]})
    states = compute("latent", latent_graph, student, batch(), keys, teacher)
    for term, alone in (("mae", voxels), ("latent", states)):
        np.testing.assert_allclose(np.array(both[term]), np.array(alone[term]), rtol=1e-5)
    objective = OBJECTIVES["mae_latent"]
    step = jax.jit(objective.make_step(graph, Augment.none(), optax.sgd(1.0), weights={"latent": 0.25}))
    _, metrics = step(objective.start(params, optax.sgd(1.0)), batch(), jax.random.key(0))
    assert float(metrics["loss"]) == pytest.approx(float(metrics["mae"] + 0.25 * metrics["latent"]), rel=1e-6)


def test_a_sample_without_body_is_nobody_s_negative():
    graph, params = problem("simclr")
    keys = jax.random.split(jax.random.key(0), BATCH)
    whole = {**batch(), "mask": np.where(np.arange(BATCH)[:, None, None, None] < 5, batch()["mask"], 0).astype(np.uint8)}
    part = {name: array[:5] for name, array in batch().items()}
    for one, other in zip(*(compute("simclr", graph, params, *each)["simclr"] for each in ((whole, keys), (part, keys[:5])))):
        assert float(one) == pytest.approx(float(other), rel=1e-5)
