"""Convolutions give what `lax.conv` gives, GPU and TPU programs hold no CPU form, norms and upsampling equal closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseg.models.conv import conv3d, depth_to_space, space_to_depth, transposed_conv, upsample, upsample_conv
from jaxseg.models.instance_norm import instance_norm, leaky_relu
from jaxseg.models.switches import fast_paths


def reference(x, kernel, stride=(1, 1, 1), padding="SAME", groups=1):
    dims = ("NHWDC", "HWDIO", "NHWDC")
    padding = padding if isinstance(padding, str) else [(p, p) for p in padding]
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=dims, precision="highest", feature_group_count=groups)


def arrays(*shapes, dtype=np.float32):
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def close(found, wanted, tolerance=1e-5):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((1, 5, 6, 7, 1), 1),
        ((2, 3, 4, 9, 4), 16),
        ((3, 1, 2, 5, 9), 3),
        ((2, 7, 5, 3, 16), 12),
        ((1, 1, 1, 1, 32), 8),
        ((2, 3, 17, 16, 2), 20),
    ],
)
def test_fast_form_equals_lax_in_value_and_gradients(shape, out):
    x, kernel, gradient = arrays(shape, (3, 3, 3, shape[-1], out), (*shape[:4], out))
    wanted, pull = jax.vjp(reference, x, kernel)
    found, fast_pull = jax.vjp(jax.jit(conv3d), x, kernel)
    close(found, wanted)
    for ours, theirs in zip(fast_pull(gradient), pull(gradient)):
        close(ours, theirs)


# kernel, stride, padding, groups: of six channels into six, on 5 x 6 x 7 voxels
CASES = {
    "1": ((1, 1, 1), 1, "SAME", 1),
    "1 by 2": ((1, 1, 1), 2, (0, 0, 0), 1),
    "1 by 3": ((1, 1, 1), 3, "VALID", 1),
    "3": ((3, 3, 3), 1, (1, 1, 1), 1),
    "flat": ((1, 3, 3), 1, "SAME", 1),
    "even": ((2, 4, 2), 1, "SAME", 1),
    "long": ((7, 5, 9), 1, (3, 2, 4), 1),
    "3 valid": ((3, 3, 3), 1, "VALID", 1),
    "3 by 2": ((3, 3, 3), 2, (1, 1, 1), 1),
    "3 by 2 same": ((3, 3, 3), 2, "SAME", 1),
    "3 by 3": ((3, 3, 3), 3, (1, 1, 1), 1),
    "3 by 1 2 3": ((3, 3, 1), (1, 2, 3), (1, 1, 0), 1),
    "3 by 2 valid": ((3, 3, 3), 2, "VALID", 1),
    "4 by 2": ((4, 4, 4), 2, (1, 1, 1), 1),
    "4 by 2 same": ((4, 4, 4), 2, "SAME", 1),
    "4 by 4 same": ((4, 4, 4), 4, "SAME", 1),
    "2 by 2 valid": ((2, 2, 2), 2, "VALID", 1),
    "2 by 3 same": ((2, 1, 2), 3, "SAME", 1),
    "other": ((2, 1, 5), (1, 2, 1), "SAME", 1),
    "much padding": ((3, 2, 1), 1, (4, 2, 1), 1),
    "much padding by 2": ((3, 2, 1), 2, (5, 2, 2), 1),
    "groups": ((3, 3, 3), 1, "SAME", 2),
    "groups by 2": ((3, 3, 3), 2, (1, 1, 1), 3),
    "groups even valid": ((2, 4, 2), 1, "VALID", 3),
    "groups 1": ((1, 1, 1), 1, "SAME", 3),
    "groups 1 by 2": ((1, 1, 1), (1, 2, 2), "VALID", 2),
    "depthwise": ((3, 5, 1), 1, "SAME", 6),
    "depthwise by 2": ((3, 3, 3), (2, 2, 1), (1, 1, 1), 6),
}


def case(name, dtype=np.float32):
    """The convolution, lax's own, and an image, a kernel and a gradient for them."""
    size, stride, padding, groups = CASES[name]
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    x, kernel = arrays((2, 5, 6, 7, 6), (*size, 6 // groups, 6), dtype=dtype)
    plain = partial(reference, stride=strides, padding=padding, groups=groups)
    return partial(conv3d, stride=stride, padding=padding, groups=groups), plain, x, kernel, arrays(plain(x, kernel).shape, dtype=dtype)[0]


def all_three(form):
    """The value and both gradients as one function of the image, the kernel and the value's gradient."""

    def run(x, kernel, gradient):
        value, pull = jax.vjp(form, x, kernel)
        return value, *pull(gradient)

    return jax.jit(run)


@pytest.mark.parametrize("name", CASES)
def test_every_kernel_stride_and_group_equals_lax_in_value_and_gradients(name):
    ours, plain, *inputs = case(name)
    for found, wanted in zip(all_three(ours)(*inputs), all_three(plain)(*inputs), strict=True):
        close(found, wanted)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 12, 2), (12, 4, 4), (16, 16, 16), (12, 24, 12), (40, 20, 20), (22, 22, 11)])
def test_groups_of_any_width_equal_lax_in_value_and_gradients(inputs, outputs, groups):
    """Narrow groups are convolved several at a time: as many as divide their number."""
    x, kernel, gradient = arrays((2, 4, 3, 5, inputs), (3, 3, 3, inputs // groups, outputs), (2, 4, 3, 5, outputs))
    wanted = all_three(partial(reference, groups=groups))(x, kernel, gradient)
    for found, each in zip(all_three(partial(conv3d, groups=groups))(x, kernel, gradient), wanted, strict=True):
        close(found, each)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_a_kernel_longer_than_the_image_gives_no_voxels_and_no_gradient(stride, groups):
    x, kernel = arrays((1, 4, 2, 4, 4), (3, 3, 3, 4 // groups, 4))
    value, dx, dk = all_three(partial(conv3d, stride=stride, padding="VALID", groups=groups))(
        x, kernel, jnp.zeros((1, 3 - stride, 0, 3 - stride, 4))
    )
    assert value.shape == (1, 3 - stride, 0, 3 - stride, 4) and not np.any(dx) and not np.any(dk)


@pytest.mark.parametrize("name", ["3", "3 by 2", "4 by 2 same", "much padding by 2", "groups", "groups by 2", "depthwise"])
def test_half_precision_is_close_to_single_and_keeps_its_type(name):
    ours, plain, *inputs = case(name, jnp.bfloat16)
    exact = all_three(plain)(*(a.astype(jnp.float32) for a in inputs))
    for found, wanted in zip(all_three(ours)(*inputs), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        close(found, wanted, 2**-7)


@pytest.mark.parametrize("size", [1, 3])
def test_half_precision_sums_in_float32(size):
    """Ones summed in bfloat16 stop at 256: eight bits hold no 257. The sums here are more, and have fewer than eight bits."""
    x, kernel = jnp.ones((1, 8, 8, 8, 64), jnp.bfloat16), jnp.ones((size, size, size, 64, 8), jnp.bfloat16)
    value, dx, dk = all_three(partial(conv3d, padding="SAME"))(x, kernel, jnp.ones((1, 8, 8, 8, 8), jnp.bfloat16))
    assert value[0, 4, 4, 4, 0] == size**3 * 64 and dx[0, 4, 4, 4, 0] == size**3 * 8 and dk[size // 2, size // 2, size // 2, 0, 0] == 512


@pytest.mark.parametrize("name", CASES)
def test_without_fast_paths_it_is_lax_alone(name):
    ours, _, x, kernel, _ = case(name)
    with fast_paths(convolution=False):
        program = jax.make_jaxpr(ours)(x, kernel)
        assert [line.primitive.name for line in program.eqns] == ["conv_general_dilated"]
        # Both are convolutions of lax with the image dilated.
        up = str(jax.make_jaxpr(lambda x, k: upsample_conv(transposed_conv(x, k, stride=2), k))(x, jnp.ones((3, 3, 3, 6, 6))))
    assert up.count("conv_general_dilated[") == 2 and "platform" not in up and "dot_general" not in up


def test_a_switch_turns_and_turns_back_and_compiled_functions_follow():
    x, kernel = arrays((1, 4, 4, 4, 16), (3, 3, 3, 16, 2))
    step = jax.jit(lambda x, k: conv3d(x, k))
    text = lambda: step.lower(x, kernel).as_text()
    fast = text()
    with fast_paths(convolution=False):
        close(step(x, kernel), reference(x, kernel))
        assert "[b, 0, 1, f]" not in text()
        with fast_paths(attention=False):
            assert "[b, 0, 1, f]" not in text(), "what is not named stays"
    assert "[b, 0, 1, f]" in fast and text() == fast


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
@pytest.mark.parametrize("name", CASES)
def test_lowered_for_accelerators_it_is_three_convolutions_and_nothing_else(name, platform):
    ours, _, *inputs = case(name)
    text = all_three(ours).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    counts = {word: text.count(f"stablehlo.{word}") for word in ("convolution", "dot_general", "while", "dynamic_slice")}
    wanted = (0, 3) if name == "1" else (3, 0)
    assert (counts["convolution"], counts["dot_general"]) == wanted and counts["while"] == counts["dynamic_slice"] == 0
    assert "[b, 0, 1, f]" not in text, "a 2-D convolution: the CPU form"


def test_lowered_for_a_cpu_it_is_the_cpu_form():
    """No case of any kernel, stride, padding and groups is left to XLA's own 3-D convolution."""
    for name in CASES:
        ours, _, *inputs = case(name)
        text = all_three(ours).lower(*inputs).as_text()
        assert "stablehlo.dot_general" in text and "[b, 0, 1, 2, f]" not in text


def test_upsample_conv_is_a_transposed_convolution_with_kernel_equal_to_stride():
    x, kernel, bias = arrays((2, 3, 4, 2, 5), (2, 1, 4, 5, 3), (3,))
    wanted = np.zeros((2, 6, 4, 8, 3))
    for i, j, k in np.ndindex(3, 4, 2):
        wanted[:, 2 * i : 2 * i + 2, j : j + 1, 4 * k : 4 * k + 4] = np.einsum("bi,xyzio->bxyzo", x[:, i, j, k], kernel)
    close(upsample_conv(x, kernel, bias), wanted + np.asarray(bias))


def test_the_product_of_upsample_conv_is_kept_apart_from_its_pixel_shuffle():
    """Else XLA (jaxlib 0.11.2) does not finish compiling the gradient of two in a row, of two samples."""
    x, kernel = arrays((2, 2, 2, 2, 4), (2, 2, 2, 4, 4))

    def twice(x, kernel):
        return jnp.sum(upsample_conv(upsample_conv(x, kernel), kernel) ** 2)

    lowered = jax.jit(jax.grad(twice, (0, 1))).lower(x, kernel)
    assert lowered.as_text().count("optimization_barrier") == 4  # both, forward and back
    lowered.compile()


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
    with fast_paths(norm=False):
        close(gradient(instance_norm), gradient(formula), 2e-5)


def test_instance_norm_of_a_constant_is_zero_and_of_half_precision_is_half_precision():
    constant = jnp.full((1, 4, 4, 4, 2), 7.0)
    assert not np.any(instance_norm(constant)) and not np.any(jax.grad(lambda x: instance_norm(x).sum())(constant))
    assert instance_norm(constant.astype(jnp.bfloat16)).dtype == jnp.bfloat16
