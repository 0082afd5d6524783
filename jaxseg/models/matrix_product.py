"""The matrix product of every linear map, in the forms that are fast on CPU. Used by `layers` and `eva`, through `nnx.Linear(dot_general=…)`."""

import math
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxseg.models import switches

NAME = "product"
"""What the results are called for policies of recomputation (`jax.checkpoint_policies.save_only_these_names`)."""


def product(
    x: Float[Array, "*n i"], kernel: Float[Array, "i o"], dimensions: Any = None, precision: Any = None, out_sharding: Any = None
) -> Float[Array, "*n o"]:
    """`x @ kernel`, to be called as `nnx.Linear` calls `lax.dot_general`: the further arguments say what is always so here.

    Forms of the same sums, chosen where a program is lowered for a CPU; first derivatives in reverse mode only. `switches.fast_paths(product=False)`
    leaves `lax.dot_general` alone. XLA's CPU backend is quicker if
    the larger of two factors is the left one: with fewer rows than the kernel has, the kernel comes first, for the value and for the gradient of
    `x` (65 rows, 768 to 3072: 137 GFLOP/s instead of 73). For the kernel's gradient it wants `x` transposed beforehand; JAX's own rule
    gives the transpose of (gradientᵀ x), for which it first copies the whole gradient in another order.
    """
    del dimensions, precision, out_sharding
    return checkpoint_name(_product(x, kernel) if switches.allowed().product else _plain(x, kernel), NAME)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    if _few_rows(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=_kernel_first, default=_plain)
    return _plain(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    cpu = _x_gradient_kernel_first if _few_rows(x, kernel) else _x_gradient
    return (
        lax.platform_dependent(gradient, kernel, cpu=cpu, default=_x_gradient),
        lax.platform_dependent(_rows(x), _rows(gradient), cpu=_kernel_gradient_transposed, default=_kernel_gradient),
    )


_product.defvjp(_forward, _backward)


def _few_rows(x: Array, kernel: Array) -> bool:
    return math.prod(x.shape[:-1]) < min(kernel.shape)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _plain(x: Array, kernel: Array) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _kernel_first(x: Array, kernel: Array) -> Array:
    return lax.dot_general(kernel, _rows(x).T, (((0,), (0,)), ((), ()))).T.reshape(*x.shape[:-1], -1)


def _x_gradient(gradient: Array, kernel: Array) -> Array:
    return lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ())))


def _x_gradient_kernel_first(gradient: Array, kernel: Array) -> Array:
    return lax.dot_general(kernel, _rows(gradient).T, (((1,), (0,)), ((), ()))).T.reshape(*gradient.shape[:-1], -1)


def _kernel_gradient(rows: Array, gradient: Array) -> Array:
    return lax.dot_general(rows, gradient, (((0,), (0,)), ((), ())))


def _kernel_gradient_transposed(rows: Array, gradient: Array) -> Array:
    return lax.dot_general(lax.optimization_barrier(rows.T), gradient, (((1,), (0,)), ((), ())))
