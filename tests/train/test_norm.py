"""The global norm is optax's, however the arrays are large; what is not finite shows in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.train.norm import global_norm


def test_it_is_optax_s():
    draw = np.random.default_rng(0)
    sizes = {"kernel": (200, 100), "bias": (100,), "scale": (3, 1), "one": (), "half": (40, 5)}
    tree = {name: jnp.asarray(10.0 ** draw.uniform(-2, 2) * draw.standard_normal(size), jnp.float32) for name, size in sizes.items()}
    np.testing.assert_allclose(jax.jit(global_norm)(tree), optax.tree.norm(tree), rtol=1e-6)
    for part in ({"kernel": tree["kernel"]}, {"bias": tree["bias"]}, {}):
        np.testing.assert_allclose(global_norm(part), optax.tree.norm(part), rtol=1e-6)


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_wrong_number_anywhere_shows(name, wrong):
    tree = {"large": jnp.ones((200, 100)), "small": jnp.ones(7)}
    tree[name] = tree[name].at[(3,) * tree[name].ndim].set(wrong)
    assert not np.isfinite(global_norm(tree))
