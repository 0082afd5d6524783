"""The matrix product of linear maps has the value and gradients of `@` in each of its forms, and those for a CPU stay there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.matrix_product import product
from jaxseg.models.switches import fast_paths


@pytest.mark.parametrize("leading", [(7,), (3, 5), (2, 3, 4), (3,), (2, 2), (1, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_operator(leading: tuple[int, ...], dtype: str):
    draw = np.random.default_rng(0)
    x, kernel, seen = (jnp.asarray(draw.standard_normal(shape), dtype) for shape in ((*leading, 6), (6, 9), (*leading, 9)))
    # In float32: some versions of JAX sum the operator's own gradient in bfloat16.
    exact, exact_pullback = jax.vjp(jnp.matmul, x.astype(jnp.float32), kernel.astype(jnp.float32))
    found, pullback = jax.vjp(product, x, kernel)
    for ours, theirs in zip((found, *pullback(seen)), (exact, *exact_pullback(seen.astype(jnp.float32))), strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        far = np.abs(np.asarray(ours, np.float32) - np.asarray(theirs)).max() / np.abs(theirs).max()
        assert far <= (1e-6 if dtype == "float32" else 2**-7)


@pytest.mark.parametrize("rows", [1, 9])
def test_a_batch_of_products(rows: int):
    draw = np.random.default_rng(0)
    x, kernel = (jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in ((4, rows, 6), (6, 9)))

    def gradient(multiply):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(jax.vmap(multiply, (0, None))(x, kernel))))(kernel)

    np.testing.assert_allclose(gradient(product), gradient(jnp.matmul), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 50])
def test_only_a_cpu_gets_the_forms_of_a_cpu(rows: int):
    x, kernel = jnp.ones((rows, 6)), jnp.ones((6, 9))
    traced = jax.jit(jax.grad(lambda x, kernel: jnp.square(product(x, kernel)).sum(), argnums=(0, 1))).trace(x, kernel)
    for platform, there in (("cpu", True), ("cuda", False), ("tpu", False)):
        assert ("optimization_barrier" in traced.lower(lowering_platforms=(platform,)).as_text()) == there, platform


def test_a_switch_leaves_the_operator_alone():
    x, kernel = jnp.ones((3, 6)), jnp.ones((6, 9))
    assert "custom_vjp" in str(jax.make_jaxpr(lambda x, kernel: product(x, kernel))(x, kernel))
    with fast_paths(product=False):
        program = jax.make_jaxpr(lambda x, kernel: product(x, kernel))(x, kernel)
    assert [line.primitive.name for line in program.eqns] == ["dot_general", "name"]  # what a policy of recomputation knows it by
