"""The update of a step needs the gradients and nothing else of the parameters' size; clipping is optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.train import Layout, OptimConfig, TrainState, make_optimizer, make_step
from jaxseg.train.optim import clip_by_norm


@pytest.mark.parametrize("kind", ["pmap", "mesh"])
def test_no_second_copy_of_the_moments(kind):
    params = {"head": {"kernel": jnp.ones((1024, 1024))}}
    optimizer = make_optimizer(OptimConfig(), params)

    def loss(params, batch, keys, extra):
        return {"error": (jnp.square(batch["x"] @ params["head"]["kernel"]).sum(), jnp.float32(8.0))}

    layout = Layout(kind, jax.devices()[:1])
    batch = layout.put({"x": np.ones((2, 1024), np.float32), "id": np.arange(2, dtype=np.int32)})
    state = layout.place(TrainState.create(params, optimizer))
    compiled = layout.compile(make_step(loss, optimizer)).lower(state, batch, jax.random.key(0)).compile()
    used, size = compiled.memory_analysis(), params["head"]["kernel"].nbytes
    assert used.alias_size_in_bytes >= 3 * size, "parameters and both moments are written where they lie"
    assert used.temp_size_in_bytes < 1.5 * size, "the gradient, and no copy of it or of a moment"


@pytest.mark.parametrize("limit", [0.5, 5.0, 50.0])
def test_clipping_is_that_of_optax(limit):
    draw = np.random.default_rng(0)
    updates = {"a": jnp.asarray(draw.standard_normal((4, 5)), jnp.float32), "b": jnp.asarray(draw.standard_normal(3), jnp.float32)}
    expected, _ = optax.clip_by_global_norm(limit).update(updates, optax.EmptyState())
    ours, norm = clip_by_norm(limit), optax.tree.norm(updates)
    for known in (None, norm):
        found, _ = ours.update(updates, ours.init(updates), grad_norm=known)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, expected)
    found, _ = clip_by_norm(limit, known=False).update(updates, optax.EmptyState(), grad_norm=100 * norm)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, expected)


def test_clipping_leaves_zeros_alone():
    found, _ = clip_by_norm(1.0).update({"a": jnp.zeros(3)}, optax.EmptyState(), grad_norm=jnp.zeros(()))
    assert not jax.tree.leaves(found)[0].any()
