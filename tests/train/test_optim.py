import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.train import OptimConfig, array_names, learning_rate, make_optimizer
from jaxseg.train.optim import decay_mask, multipliers, muon_axes


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.mlp = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.ones(4))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(8, 4, rngs=rngs)
        self.registers, self.pos = nnx.Param(jnp.ones((2, 4))), nnx.Param(jnp.ones((5, 4)))
        self.blocks = nnx.vmap(Block)(rngs.split(3))
        self.norm = nnx.LayerNorm(4, rngs=rngs)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.head = Encoder(rngs), nnx.Linear(4, 2, rngs=rngs)
        self.mask_token = nnx.Param(jnp.ones(4))


@pytest.fixture(scope="module")
def params():
    return nnx.split(Network(nnx.Rngs(0)))[1]


def by_name(params, tree):
    return dict(zip(array_names(params), jax.tree.leaves(tree)))


def test_names_are_dotted_and_equal_for_a_pure_dictionary(params):
    assert "encoder.blocks.mlp.kernel" in array_names(params)
    assert array_names(params) == array_names(nnx.to_pure_dict(params))


def test_decay_falls_on_kernels_only(params):
    decayed = {name for name, yes in by_name(params, decay_mask(params)).items() if yes}
    assert decayed == {"encoder.embed.kernel", "encoder.blocks.mlp.kernel", "head.kernel"}


def test_with_no_gradient_only_decayed_weights_shrink_by_the_closed_form(params):
    config = OptimConfig(lr=0.1, steps=10, warmup=0, weight_decay=0.5)
    optimizer = make_optimizer(config, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    start, moved = by_name(params, params), by_name(params, updates)
    for name, update in moved.items():
        np.testing.assert_allclose(update, -0.1 * 0.5 * start[name] if name.endswith("kernel") else 0 * update, rtol=1e-6, err_msg=name)


def test_layer_decay_is_a_vector_over_depth(params):
    factors = by_name(params, multipliers(OptimConfig(layer_decay=0.5), params))
    assert factors["encoder.blocks.mlp.kernel"].ravel().tolist() == [0.125, 0.25, 0.5]
    assert factors["encoder.blocks.mlp.kernel"].shape == (3, 1, 1)
    assert factors["encoder.embed.kernel"] == factors["encoder.pos"] == 0.0625
    assert factors["encoder.norm.scale"] == factors["head.kernel"] == factors["mask_token"] == 1


def test_the_first_adam_step_moves_by_lr_times_the_factor(params):
    """Adam's first update is the sign of the gradient, so its size is the learning rate of each parameter."""
    config = OptimConfig(lr=0.1, steps=10, warmup=0, weight_decay=0.0, clip=None, layer_decay=0.5, freeze=("encoder.embed",))
    optimizer = make_optimizer(config, params)
    moved = by_name(params, optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)[0])
    np.testing.assert_allclose(moved["encoder.blocks.mlp.bias"][:, 0], [-0.0125, -0.025, -0.05], rtol=1e-5)
    np.testing.assert_allclose(moved["head.kernel"], -0.1, rtol=1e-5)
    assert not np.any(moved["encoder.embed.kernel"]) and np.all(moved["encoder.pos"])


def test_muon_moves_hidden_maps_orthogonally_and_all_else_as_adam(params):
    """Singular values of Muon's five iterations lie in (0.7, 1.2) (Jordan 2024), each block's for itself; the rest is what AdamW does."""
    config = OptimConfig(muon=True, lr=0.1, steps=10, warmup=0, weight_decay=0.0, clip=None, layer_decay=0.5)
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    muon, adam = (
        by_name(params, optimizer.update(grads, optimizer.init(params), params)[0])
        for optimizer in (make_optimizer(config, params), make_optimizer(dataclasses.replace(config, muon=False), params))
    )
    for name, update in muon.items():
        if name != "encoder.blocks.mlp.kernel":
            np.testing.assert_array_equal(update, adam[name], err_msg=name)
    for block, rate in zip(muon["encoder.blocks.mlp.kernel"], (0.0125, 0.025, 0.05)):
        sizes = jnp.linalg.svd(block, compute_uv=False) / (rate * 0.2 * np.sqrt(4))
        assert sizes.min() > 0.6 and sizes.max() < 1.3


def test_muon_takes_a_window_and_its_channels_for_inputs():
    conv, stacked = jnp.ones((3, 3, 3, 4, 8)), {"blocks": {"mlp": {"kernel": jnp.ones((2, 4, 8)), "bias": jnp.ones((2, 8))}}}
    params = {"conv": [{"kernel": conv}], "decoder": stacked, "head": {"kernel": jnp.ones((1, 1, 1, 8, 2))}, "norm": {"scale": jnp.ones(8)}}
    of_blocks = {"blocks": {"mlp": {"kernel": ((1,), 2), "bias": None}}}
    assert muon_axes(params) == {
        "conv": [{"kernel": ((0, 1, 2, 3), 4)}],
        "decoder": of_blocks,
        "head": {"kernel": None},
        "norm": {"scale": None},
    }


def test_tables_of_positions_do_not_decay_and_kernels_of_one_channel_are_adams():
    params = {"attention": {"bias_table": jnp.ones((27, 3))}, "stem": {"kernel": jnp.ones((3, 3, 3, 1, 8))}}
    assert decay_mask(params) == {"attention": {"bias_table": False}, "stem": {"kernel": True}}
    assert muon_axes(params) == {"attention": {"bias_table": None}, "stem": {"kernel": None}}


def test_muon_descends_and_freezes_what_it_is_told(params):
    config = OptimConfig(muon=True, lr=0.1, steps=200, warmup=5, weight_decay=0.0, freeze=("encoder.embed",))
    optimizer = make_optimizer(config, params)
    target = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    def loss(each):
        return sum(jnp.sum(jnp.square(a - b)) for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(target)))

    @jax.jit
    def step(each, state):
        updates, state = optimizer.update(jax.grad(loss)(each), state, each)
        return optax.apply_updates(each, updates), state

    moved, state = params, optimizer.init(params)
    for _ in range(200):
        moved, state = step(moved, state)
    start, end, wanted = by_name(params, params), by_name(params, moved), by_name(params, target)
    np.testing.assert_array_equal(end["encoder.embed.kernel"], start["encoder.embed.kernel"])
    for name in ("encoder.blocks.mlp.kernel", "head.kernel", "encoder.norm.scale"):
        assert jnp.abs(end[name] - wanted[name]).mean() < 0.2 * jnp.abs(start[name] - wanted[name]).mean(), name


def test_a_frozen_gradient_does_not_use_up_the_clipping(params):
    config = OptimConfig(clip=1.0, freeze=("encoder",), weight_decay=0.0)
    optimizer = make_optimizer(config, params)
    grads = jax.tree.map(jnp.zeros_like, params)
    grads["encoder"]["embed"]["kernel"] = grads["encoder"]["embed"]["kernel"].replace(jnp.full((8, 4), 1e6))
    grads["head"]["bias"] = grads["head"]["bias"].replace(jnp.full(2, 0.1))
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moments = by_name(params, optax.tree.get(state, "mu"))
    np.testing.assert_allclose(moments["head.bias"], 0.1 * (1 - config.betas[0]), rtol=1e-5)


def test_the_decoder_learns_first_and_the_encoder_rises_to_its_rate(params):
    """Adam's updates of a constant gradient have the size of the rate, so that what the encoder has of the head's can be read off."""
    config = OptimConfig(lr=0.1, steps=20, warmup=0, final=1.0, weight_decay=0.0, clip=None, decoder_first=3)
    slow = OptimConfig(lr=0.1, steps=20, warmup=4, final=1.0, weight_decay=0.0, clip=None, decoder_first=3)
    encoder, warmed = [], []
    for settings, rates in ((config, encoder), (slow, warmed)):
        optimizer = make_optimizer(settings, params)
        state = optimizer.init(params)
        for _ in range(9):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            moved = by_name(params, updates)
            assert moved["head.kernel"].all()
            rates.append(float(moved["encoder.blocks.mlp.kernel"][1, 0, 0] / moved["head.kernel"][0, 0]))
            np.testing.assert_allclose(moved["encoder.embed.kernel"][0, 0], moved["encoder.blocks.mlp.kernel"][1, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(encoder, [0.0] * 3 + [1.0] * 6, rtol=1e-4)
    np.testing.assert_allclose(warmed, [0.0] * 3 + [part / 5 for part in (1, 2, 3, 4, 5, 5)], rtol=1e-4)


def test_schedule():
    rate = learning_rate(OptimConfig(lr=2.0, steps=110, warmup=10, final=0.1))
    assert 0 < rate(0) < rate(5) < rate(10) == 2.0
    assert rate(60) == pytest.approx(1.1)
    assert rate(110) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "bad",
    [{"lr": 0.0}, {"warmup": 20, "steps": 10}, {"layer_decay": 1.5}, {"final": 2.0}, {"decoder_first": -1}, {"clip": 0.0}, {"clip": -1.0}],
)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(ConfigError):
        OptimConfig(**bad)


def test_a_run_of_no_steps_warms_up_for_none_and_a_warm_up_longer_than_the_run_is_named():
    assert OptimConfig(warmup=50).over(0) == OptimConfig(warmup=0, steps=1)
    assert OptimConfig(warmup=50).over(50) == OptimConfig(warmup=50, steps=50)
    assert OptimConfig(steps=70).over(70).steps == 70
    with pytest.raises(ConfigError, match=r"optim\.steps is 70 and the run has 80 \(loop\.steps\).*--loop\.steps 70"):
        OptimConfig(steps=70).over(80)
    with pytest.raises(
        ConfigError, match=r"a run of 20 steps \(loop.steps\) ends before its warm-up of 50 \(optim.warmup\).*--optim.warmup 2"
    ):
        OptimConfig(warmup=50).over(20)


def test_names_that_are_not_there(params):
    with pytest.raises(ConfigError, match=r"no parameter begins with encodr; there are encoder\.blocks"):
        make_optimizer(OptimConfig(freeze=("encodr",)), params)
    with pytest.raises(ConfigError, match=r"needs parameters encoder\.blocks"):
        make_optimizer(OptimConfig(layer_decay=0.5), {"head": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ConfigError, match=r"decoder_first needs a network with an encoder; its parts are head"):
        make_optimizer(OptimConfig(decoder_first=5), {"head": {"kernel": jnp.ones((2, 2))}})
