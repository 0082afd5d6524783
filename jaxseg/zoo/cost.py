"""What a network costs, told without running or allocating it: parameters, and floating-point operations of one pass. Called by `zoo.table`."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxseg.zoo.names import Params, param_shapes

PASSES = 3
"""A training step costs about three forward passes: one forward, two back."""


def count_params(network: Params | nnx.Module, prefix: str = "") -> int:
    """How many numbers the arrays hold whose names (`zoo.names`) begin with `prefix`; `network` may be abstract (`nnx.eval_shape`)."""
    return sum(math.prod(shape) for name, shape in param_shapes(network).items() if name.startswith(prefix))


def count_flops(network: nnx.Module, sides: tuple[int, int, int] = (96, 96, 96)) -> int:
    """Floating-point operations of one pass over one crop of `sides` voxels: two for each multiply-add of products and convolutions.

    Scanned blocks count as often as they run (XLA's own estimate counts them once), zeros between the inputs of a transposed convolution do not.
    Where a program has a form for each platform, the one with the fewest operations counts. Raises ShapeError if the network refuses the size.
    """
    graph, params = nnx.split(network)
    config: Any = getattr(network, "config", None)
    x = jax.ShapeDtypeStruct((1, *sides, getattr(config, "encoder", config).in_channels), jnp.float32)

    def forward(params: Any, x: Any, spacing: Any) -> Any:
        return nnx.merge(graph, params)(x, spacing=spacing)  # pyright: ignore[reportCallIssue]

    return program_flops(forward, params, x, jax.ShapeDtypeStruct((1, 3), jnp.float32))


def program_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of `function(*arguments)`, as `count_flops` counts them; arguments may be abstract. The bench calls it too."""
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def update_flops(optimizer: optax.GradientTransformation, params: Any) -> int:
    """Floating-point operations of one update's products of matrices: Muon's iterations; none for AdamW. `params` may be abstract."""
    return program_flops(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


def _flops(jaxpr: Any) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, out_axis = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec[0]
            taps = math.prod(kernel) // kernel[out_axis] / math.prod(equation.params["lhs_dilation"])
            return round(2 * math.prod(equation.outvars[0].aval.shape) * taps)
        case "scan":
            return equation.params["length"] * _flops(equation.params["jaxpr"].jaxpr)
        case "dot_product_attention_fwd_wrapper":
            return 4 * _attention_size(equation)
        case "dot_product_attention_bwd_wrapper":
            return 8 * _attention_size(equation)
        case "cond":
            return min(_flops(branch.jaxpr) for branch in equation.params["branches"])
    return sum(_flops(inner) for inner in _inner(equation.params.values()))


def _attention_size(equation: Any) -> int:
    """Multiply-adds of scores or of their sum in cuDNN's attention, queries (b, n, h, d) and keys (b, m, h, d)."""
    b, n, h, d = equation.invars[0].aval.shape
    return b * n * h * d * equation.invars[1].aval.shape[1]


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _inner(value)
