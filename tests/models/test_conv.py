"""Convolutions give what `lax.conv` gives, GPU and TPU programs hold no CPU form, norms and upsampling equal closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models.conv import conv3d, depth_to_space, depthwise_conv, space_to_depth, upsample, upsample_conv
from jaxseg.models.instance_norm import instance_norm, leaky_relu


def reference(x, kernel, stride=(1, 1, 1), padding="SAME"):
    dims = ("NHWDC", "HWDIO", "NHWDC")
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=dims, precision="highest")


def arrays(*shapes, dtype=np.float32):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def close(found, wanted, tolerance=1e-5):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("shape", "out"),
    [((1, 5, 6, 7, 1), 1), ((2, 3, 4, 9, 4), 16), ((3, 1, 2, 5, 9), 3), ((2, 7, 5, 3, 16), 12), ((1, 1, 1, 1, 32), 8)],
)
def test_fast_form_equals_lax_in_value_and_gradients(shape, out):
    x, kernel, gradient = arrays(shape, (3, 3, 3, shape[-1], out), (*shape[:4], out))
    wanted, pull = jax.vjp(reference, x, kernel)
    found, fast_pull = jax.vjp(jax.jit(conv3d), x, kernel)
    close(found, wanted)
    for ours, theirs in zip(fast_pull(gradient), pull(gradient)):
        close(ours, theirs)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((1, 1, 1), 1, "SAME"), ((3, 3, 3), 2, "SAME"), ((3, 3, 1), (1, 2, 1), "VALID"), ((5, 1, 3), 1, "SAME")]
)
def test_other_kernels_and_strides_equal_lax(size, stride, padding):
    x, kernel, bias = arrays((2, 5, 6, 7, 3), (*size, 3, 4), (4,))
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    close(conv3d(x, kernel, bias, stride=stride, padding=padding), reference(x, kernel, strides, padding) + bias)


@pytest.mark.parametrize("size", [(5, 5, 5), (3, 5, 1)])
def test_depthwise_is_a_convolution_for_each_channel_in_value_and_gradients(size):
    x, kernel, bias, gradient = arrays((2, 6, 5, 4, 3), (*size, 1, 3), (3,), (2, 6, 5, 4, 3))

    def one_by_one(x, kernel, bias):
        return jnp.concatenate([reference(x[..., c : c + 1], kernel[..., c : c + 1]) for c in range(3)], -1) + bias

    wanted, pull = jax.vjp(one_by_one, x, kernel, bias)
    found, fast_pull = jax.vjp(jax.jit(depthwise_conv), x, kernel, bias)
    close(found, wanted)
    for ours, theirs in zip(fast_pull(gradient), pull(gradient)):
        close(ours, theirs)


def test_lax_form_is_lax_alone():
    x, kernel = arrays((1, 4, 4, 4, 16), (3, 3, 3, 16, 2))
    assert "platform_index" not in str(jax.make_jaxpr(lambda x, k: conv3d(x, k, form="lax"))(x, kernel))
    assert "platform_index" in str(jax.make_jaxpr(conv3d)(x, kernel))


def test_half_precision_keeps_its_type_and_sums_in_float32():
    x, kernel = arrays((2, 4, 5, 6, 16), (3, 3, 3, 16, 8), dtype=jnp.bfloat16)
    value, pull = jax.vjp(conv3d, x, kernel)
    assert value.dtype == jnp.bfloat16 and {g.dtype for g in pull(value)} == {jnp.dtype(jnp.bfloat16)}
    close(value, reference(x.astype(jnp.float32), kernel.astype(jnp.float32)), 2**-8)


def test_under_vmap_scan_remat_and_pmap():
    x, kernel = arrays((2, 2, 4, 3, 5, 12), (3, 3, 3, 12, 12))
    wanted = jnp.stack([reference(each, kernel) for each in x])
    close(jax.vmap(conv3d, (0, None))(x, kernel), wanted)
    close(lax.scan(lambda _, each: (None, conv3d(each, kernel)), None, x)[1], wanted)
    close(jax.pmap(conv3d, in_axes=(0, None))(x, kernel), wanted)

    def twice(x):
        body = jax.checkpoint(lambda h, _: (jnp.tanh(conv3d(h, kernel)), None))
        return jnp.sum(lax.scan(body, x, None, length=2)[0])

    close(
        jax.jit(jax.grad(twice))(x[0]), jax.grad(lambda x: jnp.sum(jnp.tanh(reference(jnp.tanh(reference(x, kernel)), kernel))))(x[0]), 2e-5
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowered_for_accelerators_it_is_three_dimensional_convolutions_only(platform):
    x, kernel = arrays((1, 4, 4, 4, 16), (3, 3, 3, 16, 16))
    step = jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(conv3d(x, k) ** 2), (0, 1)))
    text = step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "stablehlo.while" not in text and "stablehlo.dot_general" not in text
    here = step.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" in here and "stablehlo.dot_general" in here


def test_upsample_conv_is_a_transposed_convolution_with_kernel_equal_to_stride():
    x, kernel, bias = arrays((2, 3, 4, 2, 5), (2, 1, 4, 5, 3), (3,))
    wanted = np.zeros((2, 6, 4, 8, 3))
    for i, j, k in np.ndindex(3, 4, 2):
        wanted[:, 2 * i : 2 * i + 2, j : j + 1, 4 * k : 4 * k + 4] = np.einsum("bi,xyzio->bxyzo", x[:, i, j, k], kernel)
    close(upsample_conv(x, kernel, bias), wanted + np.asarray(bias))


def test_space_to_depth_and_back():
    x = jnp.arange(2 * 4 * 3 * 6 * 2.0).reshape(2, 4, 3, 6, 2)
    folded = space_to_depth(x, (2, 1, 3))
    assert folded.shape == (2, 2, 3, 2, 12)
    np.testing.assert_array_equal(folded[1, 1, 2, 1], x[1, 2:4, 2:3, 3:6].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(folded, (2, 1, 3)), x)


def test_upsampling_keeps_a_ramp_and_repeats_voxels():
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None, None], (1, 4, 2, 2, 1))
    linear = upsample(ramp, (2, 2, 1))
    assert linear.shape == (1, 8, 4, 2, 1)
    np.testing.assert_allclose(linear[0, :, 0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)
    np.testing.assert_array_equal(upsample(ramp, (2, 1, 1), method="nearest")[0, :, 0, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3])


def test_instance_norm_is_the_formula_and_so_is_its_gradient():
    x, weight, scale, bias = arrays((2, 3, 4, 5, 3), (2, 3, 4, 5, 3), (3,), (3,))
    x = x * 5 + 100

    def formula(x):
        mean = x.mean((1, 2, 3), keepdims=True)
        return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean((1, 2, 3), keepdims=True) + 1e-5)

    close(instance_norm(x), formula(x), 3e-6)
    close(instance_norm(x, scale, bias), formula(x) * scale + bias, 3e-6)

    def gradient(norm):
        return jax.grad(lambda x: jnp.sum(weight * leaky_relu(norm(x))))(x)

    close(gradient(instance_norm), gradient(formula), 2e-5)


def test_instance_norm_of_a_constant_is_zero_and_of_half_precision_is_half_precision():
    constant = jnp.full((1, 4, 4, 4, 2), 7.0)
    assert not np.any(instance_norm(constant)) and not np.any(jax.grad(lambda x: instance_norm(x).sum())(constant))
    assert instance_norm(constant.astype(jnp.bfloat16)).dtype == jnp.bfloat16
