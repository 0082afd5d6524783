"""The matrix product of every linear map, with a gradient that is fast on CPU. Used by `layers` and `eva`, through `nnx.Linear(dot_general=…)`."""

from typing import Any

import jax
from jaxtyping import Array, Float


def product(
    x: Float[Array, "*n i"], kernel: Float[Array, "i o"], dimensions: Any = None, precision: Any = None, out_sharding: Any = None
) -> Float[Array, "*n o"]:
    """`x @ kernel`, to be called as `nnx.Linear` calls `lax.dot_general`: the further arguments say what is always so here.

    JAX's own rule writes the kernel's gradient as the transpose of (gradientᵀ x), for which XLA's CPU backend first copies the whole gradient
    in another order. Here it is xᵀ gradient: the same sums, and no copy.
    """
    del dimensions, precision, out_sharding
    return _product(x, kernel)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    rows, columns = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return (
        jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ()))),
        jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ()))),
    )


_product.defvjp(_forward, _backward)
