"""The train state, and the names of the arrays in a tree. Used by the step, the optimizer, the checkpoints and the transfer of encoders."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

if TYPE_CHECKING:
    from dataclasses import dataclass as _dataclass
else:
    _dataclass = struct.dataclass


@_dataclass
class TrainState:
    """All that a training step changes.

    Attributes:
        step: int32 scalar, steps taken (skipped ones included).
        params: the trainable arrays, an `nnx.State` or nested dictionaries.
        opt_state: what the optimizer remembers.
        ema: exponential moving average of `params`, or None.
        extra: any other tree that travels along (a teacher, say), or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None
    extra: Any = None

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation, *, ema: bool = False, extra: Any = None) -> "TrainState":
        """The state before the first step. With `ema` the average starts as a copy of `params`."""
        average = jax.tree.map(jnp.copy, params) if ema else None
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), ema=average, extra=extra)


def array_names(tree: Any) -> list[str]:
    """The dotted name of each leaf, in the order of `jax.tree.leaves`: `encoder.blocks.mlp.kernel`.

    The last key of an nnx variable ("value") is left out, so that an `nnx.State` and its pure dictionary have equal names.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in paths]


def count_parameters(params: Any) -> int:
    """How many numbers the leaves of `params` hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
