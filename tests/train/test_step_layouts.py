import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.errors import ConfigError
from jaxseg.train import Layout, OptimConfig, TrainState, array_names, make_optimizer, make_step, mean

LAYOUTS = {
    "one": lambda: Layout("mesh", jax.devices()[:1]),
    "pmap8": lambda: Layout("pmap"),
    "pmap2": lambda: Layout("pmap", jax.devices()[:2]),
    "mesh8": lambda: Layout("mesh"),
    "fsdp2": lambda: Layout("mesh", fsdp=2, shard_min_bytes=256),
    "fsdp4": lambda: Layout("mesh", fsdp=4, shard_min_bytes=256),
}


def run_sgd(toy, layout, steps=3, optimizer=None, **options):
    """Parameters, metrics of each step, and the state, after plain SGD: AdamW would hide a gradient that is wrong by a factor."""
    optimizer = optimizer or optax.sgd(0.05)
    state = layout.init(lambda: toy.make_state(optimizer, ema="ema_decay" in options))
    compiled = layout.compile(make_step(toy.loss, optimizer, weights={"size": 0.01}, **options))
    history = []
    for number in range(steps):
        state, metrics = compiled(state, layout.put(toy.make_batch(number)), jax.random.key(7))
        history.append({name: float(value) for name, value in metrics.items()})
    return layout.host(state), history, state


@pytest.fixture(scope="module")
def reference(toy):
    return run_sgd(toy, LAYOUTS["one"]())


def close(left, right, tolerance=1e-5):
    for name, one, other in zip(array_names(left), jax.tree.leaves(left), jax.tree.leaves(right)):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", ["pmap8", "pmap2", "mesh8", "fsdp2", "fsdp4"])
def test_every_layout_gives_the_numbers_of_one_device(toy, reference, name):
    host, history, _ = run_sgd(toy, LAYOUTS[name]())
    close(host.params, reference[0].params)
    for ours, theirs in zip(history, reference[1]):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert history[0]["skipped"] == 0


def test_muon_sees_whole_matrices_where_a_layout_parts_them(toy):
    """Its iterations are products of whole matrices: those of a part would be another step altogether."""
    muon = make_optimizer(OptimConfig(muon=True, lr=0.02, steps=4, warmup=0), toy.params())
    one, history, _ = run_sgd(toy, LAYOUTS["one"](), optimizer=muon)
    parted, others, state = run_sgd(toy, LAYOUTS["fsdp4"](), optimizer=muon)
    moments = {name: leaf for name, leaf in zip(array_names(state.opt_state), jax.tree.leaves(state.opt_state)) if ".mu." in name}
    assert any(leaf.ndim == 3 and not leaf.is_fully_replicated for leaf in moments.values())
    close(parted.params, one.params, 1e-4)
    assert others[2]["loss"] == pytest.approx(history[2]["loss"], rel=1e-4)


def test_the_first_step_is_the_gradient_of_the_global_ratio(toy, reference):
    batch = toy.make_batch(0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), batch["id"])

    def ratio(params):
        terms = toy.loss(params, batch, keys, None)
        return terms["error"][0] / terms["error"][1] + 0.01 * terms["size"][0] / terms["size"][1]

    value, grads = jax.value_and_grad(ratio)(toy.params())
    assert reference[1][0]["loss"] == pytest.approx(float(value), rel=1e-6)
    assert reference[1][0]["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    one_step, _, _ = run_sgd(toy, LAYOUTS["pmap8"](), steps=1)
    close(one_step.params, jax.tree.map(lambda p, g: p - 0.05 * g, toy.params(), grads), 1e-6)


@pytest.mark.parametrize("name", ["one", "pmap2", "mesh8", "fsdp2"])
def test_accumulation_changes_nothing(toy, reference, name):
    host, history, _ = run_sgd(toy, LAYOUTS[name](), accumulate=4)
    close(host.params, reference[0].params, 1e-6)
    assert history[-1]["loss"] == pytest.approx(reference[1][-1]["loss"], rel=1e-6)


def test_counting_for_accumulation_costs_no_forward_pass(toy):
    """The denominators come from a first pass over the micro-batches, of which the compiler must keep the counts alone."""

    def products(accumulate):
        optimizer, layout = optax.sgd(0.1), LAYOUTS["one"]()
        compiled = layout.compile(make_step(toy.loss, optimizer, accumulate=accumulate))
        state = layout.init(lambda: toy.make_state(optimizer))
        return compiled.lower(state, layout.put(toy.make_batch(0, 512)), jax.random.key(0)).compile().as_text().count(" dot(")

    assert products(2) == products(1) > 0


def test_fsdp_really_shards(toy):
    def held(fsdp):
        layout = Layout("mesh", fsdp=fsdp, shard_min_bytes=256)
        state = layout.init(lambda: toy.make_state(optax.adam(1e-3), ema=True))
        leaves = jax.tree.leaves(state)
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves), any(not leaf.is_fully_replicated for leaf in leaves)

    whole, halves, quarters = held(1), held(2), held(4)
    assert not whole[1] and halves[1] and quarters[1]
    assert quarters[0] < 0.7 * halves[0] < 0.5 * whole[0]


def test_a_layout_compiles_once(toy):
    layout, traces = LAYOUTS["fsdp4"](), []
    optimizer = optax.sgd(0.05)

    def loss(*arguments):
        traces.append(1)
        return toy.loss(*arguments)

    state = layout.init(lambda: toy.make_state(optimizer))
    compiled = layout.compile(make_step(loss, optimizer))
    for number in range(3):
        before = jax.tree.map(lambda leaf: leaf.sharding, state)
        state, _ = compiled(state, layout.put(toy.make_batch(number)), jax.random.key(7))
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
    assert len(traces) == 1 and compiled._cache_size() == 1


def test_ema_follows_its_closed_form(toy):
    first, _, _ = run_sgd(toy, LAYOUTS["pmap8"](), steps=1, ema_decay=0.75)
    close(first.ema, jax.tree.map(lambda start, now: 0.75 * start + 0.25 * now, toy.params(), first.params), 1e-6)


@pytest.mark.parametrize("name", ["pmap8", "fsdp2"])
def test_a_step_that_is_not_finite_changes_only_the_counter(toy, name):
    layout, optimizer = LAYOUTS[name](), optax.adam(0.1)
    state = layout.init(lambda: toy.make_state(optimizer, ema=True))
    before = layout.host(state)
    batch = toy.make_batch(0)
    batch["y"][-1] = np.inf
    after, metrics = layout.compile(make_step(toy.loss, optimizer, ema_decay=0.5))(state, layout.put(batch), jax.random.key(0))
    assert metrics["skipped"] == 1 and after.step == 1
    jax.tree.map(np.testing.assert_array_equal, layout.host(after).params, before.params)
    jax.tree.map(np.testing.assert_array_equal, layout.host(after).opt_state, before.opt_state)
    jax.tree.map(np.testing.assert_array_equal, layout.host(after).ema, before.ema)


def test_nothing_counted_gives_zero(toy):
    layout, optimizer = LAYOUTS["pmap8"](), optax.sgd(0.1)
    batch = toy.make_batch(0) | {"mask": np.zeros(toy.BATCH, np.float32)}
    state = layout.init(lambda: toy.make_state(optimizer))
    _, metrics = layout.compile(make_step(toy.loss, optimizer))(state, layout.put(batch), jax.random.key(0))
    assert metrics["error"] == 0 and metrics["skipped"] == 0


@pytest.mark.parametrize("name", ["pmap8", "fsdp2"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_step_lowers_for_accelerators(toy, name, platform):
    layout, optimizer = LAYOUTS[name](), optax.adamw(1e-3)
    compiled = layout.compile(make_step(toy.loss, optimizer, accumulate=2 if name == "fsdp2" else 1))
    state = layout.init(lambda: toy.make_state(optimizer))
    arguments = (state, layout.put(toy.make_batch(0)), jax.random.key(0))
    exported = jax.export.export(compiled if name == "fsdp2" else jax.jit(compiled), platforms=[platform])(*arguments)
    text = exported.mlir_module()
    assert exported.platforms == (platform,)
    assert ("all_reduce" in text) == (name == "pmap8"), "pmap adds gradients up by itself; a mesh leaves it to the compiler"


def test_mean_is_the_identity_without_an_axis():
    tree = {"a": jnp.arange(3.0)}
    assert mean(tree, None) is tree


def test_what_does_not_divide_is_refused(toy):
    with pytest.raises(ConfigError, match="batch of 12 samples cannot be split over 8 devices"):
        Layout("pmap").put(toy.make_batch(0, 12))
    with pytest.raises(ConfigError, match="fsdp=3 does not divide 8"):
        Layout("mesh", fsdp=3)
    with pytest.raises(ConfigError, match="needs layout 'mesh'"):
        Layout("pmap", fsdp=2)
    with pytest.raises(ConfigError, match="cannot be accumulated in 3"):
        run_sgd(toy, LAYOUTS["one"](), accumulate=3)
    with pytest.raises(ConfigError, match="weights name the loss terms siez"):
        layout, optimizer = LAYOUTS["one"](), optax.sgd(0.1)
        step = make_step(toy.loss, optimizer, weights={"siez": 2.0})
        layout.compile(step)(layout.init(lambda: toy.make_state(optimizer)), layout.put(toy.make_batch(0)), jax.random.key(0))


@pytest.mark.parametrize("name", ["one", "pmap2", "mesh8", "fsdp2"])
def test_a_step_leaves_the_network_that_its_state_was_placed_from(toy, name):
    layout, optimizer = LAYOUTS[name](), optax.sgd(0.05)
    own = toy.params()
    state = layout.place(TrainState.create(own, optimizer))
    state, _ = layout.compile(make_step(toy.loss, optimizer))(state, layout.put(toy.make_batch(0)), jax.random.key(7))
    close(jax.device_get(own), jax.device_get(toy.params()), 0)
    assert not np.array_equal(jax.tree.leaves(layout.host(state).params)[0], jax.tree.leaves(own)[0])
