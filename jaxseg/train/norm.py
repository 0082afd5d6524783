"""The global norm of a tree of arrays. Called by `step` and `optim`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_SMALL = 1 << 10
"""Arrays with fewer numbers are summed together. XLA's CPU backend makes of each sum of its own up to three kernels: for a network with a
hundred biases and norms, a second or two of compiling. Arrays that a layout spreads over devices are larger: these stay where they are."""


def global_norm(tree: Any) -> Float[Array, ""]:
    """√(sum of all squares), float32: `optax.tree.norm` up to rounding, with the small arrays laid end to end and summed in one go."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < _SMALL]
    summed = [leaf for leaf in leaves if leaf.size >= _SMALL] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(sum((jnp.sum(jnp.square(each)) for each in summed), jnp.zeros((), jnp.float32)))
