"""Strided and transposed convolutions equal their definitions, with gradients, for any odd kernel, stride and size; only CPUs get the folded form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models.conv import conv3d, transposed_conv
from jaxseg.models.switches import fast_paths

CASES = [
    ((3, 3, 3), (2, 2, 2), (6, 7, 5)),
    ((5, 3, 1), (2, 3, 2), (7, 9, 4)),
    ((3, 1, 7), (1, 2, 4), (4, 5, 9)),
]


def draw(kernel, size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *size, 3)), rng.normal(size=(*kernel, 3, 2)), rng.normal(size=2)


def strided_by_definition(x, kernel, strides):
    """Sum over taps of zero-padded, strided slices, in float64."""
    half = [k // 2 for k in kernel.shape[:3]]
    padded = np.pad(x, [(0, 0), *((h, h) for h in half), (0, 0)])
    outputs = [-(-n // s) for n, s in zip(x.shape[1:4], strides)]
    total = 0
    for tap in np.ndindex(*kernel.shape[:3]):
        index = tuple(slice(t, t + s * (m - 1) + 1, s) for t, s, m in zip(tap, strides, outputs))
        total = total + padded[(slice(None), *index)] @ kernel[tap]
    return total


def transposed_by_definition(x, kernel, strides):
    """Every voxel adds its kernel, half a kernel before stride * its place; what falls outside is dropped."""
    sides = [n * s for n, s in zip(x.shape[1:4], strides)]
    half = [k // 2 for k in kernel.shape[:3]]
    out = np.zeros((x.shape[0], *(n + 2 * h + s for n, h, s in zip(sides, half, strides)), kernel.shape[-1]))
    for tap in np.ndindex(*kernel.shape[:3]):
        index = tuple(slice(t, t + s * (n - 1) + 1, s) for t, s, n in zip(tap, strides, x.shape[1:4]))
        out[(slice(None), *index)] += x @ kernel[tap]
    return out[(slice(None), *(slice(h, h + n) for h, n in zip(half, sides)))]


@pytest.mark.parametrize(("kernel", "strides", "size"), CASES)
def test_both_are_their_definitions(kernel, strides, size):
    x, w, bias = draw(kernel, size)
    padding = tuple(k // 2 for k in kernel)
    down = conv3d(jnp.float32(x), jnp.float32(w), jnp.float32(bias), stride=strides, padding=padding)
    np.testing.assert_allclose(down, strided_by_definition(x, w, strides) + bias, atol=2e-5)
    up = transposed_conv(jnp.float32(x), jnp.float32(w), jnp.float32(bias), stride=strides)
    np.testing.assert_allclose(up, transposed_by_definition(x, w, strides) + bias, atol=2e-5)


@pytest.mark.parametrize(("kernel", "strides", "size"), CASES[:2])
def test_gradients_agree_with_those_of_the_plain_form(kernel, strides, size):
    x, w, _ = map(jnp.float32, draw(kernel, size))
    padding = tuple(k // 2 for k in kernel)

    def gradients(fast):
        weigh = lambda y: jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y**2)
        with fast_paths(convolution=fast):
            return jax.jit(jax.grad(lambda x, w: weigh(conv3d(x, w, stride=strides, padding=padding)), (0, 1)))(x, w)

    for found, wanted in zip(gradients(True), gradients(False)):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_transposed_convolution_is_the_adjoint_of_the_strided_one():
    rng = np.random.default_rng(1)
    x, y, w = (jnp.float32(rng.normal(size=s)) for s in ((1, 6, 4, 8, 3), (1, 3, 2, 4, 2), (3, 3, 3, 3, 2)))
    down = conv3d(x, w, stride=2, padding=(1, 1, 1))
    up = transposed_conv(y, w.swapaxes(-1, -2), stride=2)
    np.testing.assert_allclose(jnp.vdot(down, y), jnp.vdot(x, up), rtol=1e-5)


def test_a_kernel_as_large_as_its_stride_is_a_matrix_product_on_cpu():
    x, w = jnp.ones((1, 4, 4, 4, 3)), jnp.ones((2, 2, 2, 3, 5))
    text = jax.jit(lambda x, w: conv3d(x, w, stride=2, padding="VALID")).lower(x, w).as_text()
    assert "stablehlo.dot_general" in text and "stablehlo.convolution" not in text
    np.testing.assert_array_equal(conv3d(x, w, stride=2, padding="VALID"), np.full((1, 2, 2, 2, 5), 24.0))


@pytest.mark.parametrize(("platform", "dilated"), [("cuda", True), ("tpu", True), ("cpu", False)])
def test_accelerators_get_the_native_form_in_value_and_gradient(platform, dilated):
    x, w = jax.ShapeDtypeStruct((1, 4, 4, 4, 3), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 3, 3, 2), jnp.bfloat16)
    both = jax.jit(jax.value_and_grad(lambda x, w: jnp.sum(transposed_conv(x, w, stride=2) ** 2), (0, 1)))
    text = both.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    assert ("lhs_dilate = [2, 2, 2]" in text) == dilated
