"""The matrix product of linear maps has the gradients of `@`, and its kernel's needs no transposed copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.matrix_product import product


@pytest.mark.parametrize("leading", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_operator(leading: tuple[int, ...], dtype: str):
    draw = np.random.default_rng(0)
    x, kernel, seen = (jnp.asarray(draw.standard_normal(shape), dtype) for shape in ((*leading, 6), (6, 9), (*leading, 9)))
    expected, expected_pullback = jax.vjp(jnp.matmul, x, kernel)
    found, pullback = jax.vjp(product, x, kernel)
    for ours, theirs in zip((found, *pullback(seen)), (expected, *expected_pullback(seen)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(*(np.asarray(each, np.float32) for each in (ours, theirs)), rtol=2e-5 if dtype == "float32" else 0.02)


def test_the_kernels_gradient_is_not_a_transpose():
    x, kernel = jnp.ones((3, 5, 6)), jnp.ones((6, 9))
    text = str(jax.make_jaxpr(jax.grad(lambda kernel: product(x, kernel).sum()))(kernel))
    assert "transpose[" not in text and "transpose[" in str(jax.make_jaxpr(jax.grad(lambda kernel: (x @ kernel).sum()))(kernel))
