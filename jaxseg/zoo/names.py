"""Parameters by name: a network's arrays as a flat dictionary, one name per block whatever the stacking in memory, and back.

`zoo.folder` writes and reads files by these names, `zoo.convert` maps peers' checkpoints to them.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.errors import CheckpointError

Params = nnx.State
_STACK = "blocks"
"""A module of this name holds stacked blocks: every array below it has a leading depth axis, and is named `blocks.<depth>.…`."""


def flatten_params(params: Params | nnx.Module) -> dict[str, np.ndarray]:
    """Host arrays by dotted name, `encoder.blocks.0.attention.qkv.kernel`, sorted; from `nnx.split(network)[1]` or the network itself."""
    flat: dict[str, np.ndarray] = {}
    for path, variable in _flat_state(params):
        array = np.asarray(jax.device_get(variable[...]))
        for i in range(len(array)) if _stacked(path) else (None,):
            flat[_name(path, i)] = array if i is None else array[i]
    return dict(sorted(flat.items()))


def param_shapes(params: Params | nnx.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes that `flatten_params` gives; also of abstract parameters (`nnx.eval_shape`), without touching a device."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, variable in _flat_state(params):
        shape = tuple(variable.get_value().shape)
        for i in range(shape[0]) if _stacked(path) else (None,):
            shapes[_name(path, i)] = shape if i is None else shape[1:]
    return dict(sorted(shapes.items()))


def unflatten_params(params: Params, arrays: Mapping[str, Any], *, source: str = "the given arrays") -> Params:
    """Parameters of the structure of `params` (its values are not read) with the values of `arrays`; blocks are stacked again.

    Raises CheckpointError with a table of missing and unexpected names and of shapes that differ; `source` says where the arrays are from.
    """
    table = differences(param_shapes(params), {name: tuple(array.shape) for name, array in arrays.items()})
    if table:
        raise CheckpointError(f"{source}: the arrays do not fit this network\n{table}")
    filled = []
    for path, variable in _flat_state(params):
        old = variable.get_value()
        parts = [np.asarray(arrays[_name(path, i)]) for i in (range(old.shape[0]) if _stacked(path) else (None,))]
        value = np.stack(parts) if _stacked(path) else parts[0]
        # A copy: JAX may otherwise keep the given memory, and that may be a mapped file, which somebody writes over one day.
        filled.append((path, variable.replace(jnp.array(value, old.dtype))))
    return nnx.from_flat_state(filled)


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, limit: int = 12) -> str:
    """A table of missing, unexpected and differently shaped arrays, at most `limit` rows of each kind; empty if there are none."""
    rows = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in found],
        "unexpected": [f"{name} {found[name]}" for name in found if name not in expected],
        "shape differs": [
            f"{name} expected {expected[name]}, found {found[name]}" for name in expected if name in found and found[name] != expected[name]
        ],
    }
    lines = []
    for kind, names in rows.items():
        if names:
            lines.append(f"  {kind} ({len(names)}):")
            lines += [f"    {name}" for name in names[:limit]]
            lines += [f"    and {len(names) - limit} more"] if len(names) > limit else []
    return "\n".join(lines)


def _flat_state(params: Params | nnx.Module) -> list[tuple[tuple[Any, ...], nnx.Variable]]:
    state = nnx.state(params) if isinstance(params, nnx.Module) else params
    return list(nnx.to_flat_state(state))


def _stacked(path: tuple[Any, ...]) -> bool:
    # A list named `blocks` has numbers below it, a stack has the names of its block's parts.
    return any(here == _STACK and not isinstance(below, int) for here, below in pairwise(path))


def _name(path: tuple[Any, ...], block: int | None) -> str:
    if block is None:
        return ".".join(map(str, path))
    after = path.index(_STACK) + 1
    return ".".join(map(str, (*path[:after], block, *path[after:])))
