"""3x3x3 convolution written for XLA's CPU backend, whose own 3-D convolution is three to ten times slower. `models.conv` calls this.

Three products, each with the same answer as `lax.conv_general_dilated` up to rounding: the value, the gradient of the input (the value
again, with the kernel flipped) and the gradient of the kernel. And the depthwise convolution, where XLA's own is eighty times slower. Sums are
float32 whatever the type of the input.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_NARROW = 8
"""With at most this many input channels one 2-D convolution of three folded planes beats three (4 channels, 96^3: 50 and 130 ms)."""


def forward(x: Float[Array, "b x y z i"], kernel: Float[Array, "3 3 3 i o"]) -> Float[Array, "b x y z o"]:
    """Convolve with stride 1 and zero padding, as 2-D convolutions of the planes across the first axis."""
    parts = _folded_planes(x, kernel) if x.shape[-1] <= _NARROW else _summed_planes(x, kernel)
    return parts.reshape(*x.shape[:4], kernel.shape[-1]).astype(x.dtype)


def input_gradient(gradient: Float[Array, "b x y z o"], kernel: Float[Array, "3 3 3 i o"]) -> Float[Array, "b x y z i"]:
    """The gradient of the input: a convolution with the kernel flipped and transposed."""
    return forward(gradient, kernel[::-1, ::-1, ::-1].swapaxes(-1, -2))


def kernel_gradient(x: Float[Array, "b x y z i"], gradient: Float[Array, "b x y z o"]) -> Float[Array, "3 3 3 i o"]:
    """The gradient of the kernel, float32: nine matrix products over all voxels, the last axis folded into the narrower side's channels."""
    narrow_input = x.shape[-1] < gradient.shape[-1]
    left, right = (_fold_last_axis(x), gradient) if narrow_input else (x, _fold_last_axis(gradient))
    rows = jnp.pad(left, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    right = right.reshape(-1, right.shape[-1])

    def product(_, shift):
        window = lax.dynamic_slice(rows, (0, shift[0], shift[1], 0, 0), left.shape).reshape(-1, left.shape[-1])
        return None, lax.dot_general(window, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    shifts = jnp.stack(jnp.divmod(jnp.arange(9), 3), -1)
    products = lax.scan(product, None, shifts)[1]
    if narrow_input:
        return products.reshape(3, 3, 3, x.shape[-1], gradient.shape[-1])
    # Folding the gradient shifts it the other way, so its three parts come in reverse order.
    return products.reshape(3, 3, x.shape[-1], 3, -1).transpose(0, 1, 3, 2, 4)[:, :, ::-1]


def depthwise(x: Float[Array, "b x y z c"], kernel: Float[Array, "kx ky kz 1 c"]) -> Float[Array, "b x y z c"]:
    """Each channel with its own kernel of odd sides, zeros around: shifted images times weights, one pass for each row of the kernel's last axis."""
    (b, nx, ny, nz, c), (kx, ky, kz) = x.shape, kernel.shape[:3]
    # In float32 from here on, so that the gradients of the passes are summed in it too.
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (kx // 2, kx // 2), (ky // 2, ky // 2), (kz // 2, kz // 2), (0, 0)))

    # What a pass read is read again in the backward pass, not kept: else there were a copy of the image for each.
    @jax.checkpoint
    def add_row(total, weights, i, j):
        rows = lax.dynamic_slice(padded, (0, i, j, 0, 0), (b, nx, ny, padded.shape[3], c))
        return total + sum(rows[:, :, :, k : k + nz] * weights[k] for k in range(kz))

    def body(total, row):
        return add_row(total, *row), None

    i, j = np.indices((kx, ky)).reshape(2, -1)
    rows = (kernel.reshape(kx * ky, kz, c).astype(jnp.float32), i, j)
    return lax.scan(body, jnp.zeros(x.shape, jnp.float32), rows)[0].astype(x.dtype)


def _fold_last_axis(x):
    """Channels of the three voxels z-1, z, z+1 side by side: (b, x, y, z, c) -> (b, x, y, z, 3c)."""
    padded = jnp.pad(x, ((0, 0),) * 3 + ((1, 1), (0, 0)))
    return jnp.concatenate([padded[..., k : k + x.shape[3], :] for k in range(3)], -1)


def _shifted_planes(x):
    """For each of the kernel's three planes, the planes of `x` that it meets, as a batch of 2-D images."""
    b, nx, ny, nz, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1)) + ((0, 0),) * 3)
    return [padded[:, k : k + nx].reshape(b * nx, ny, nz, c) for k in range(3)]


def _conv2d(planes, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(planes, kernel, (1, 1), "SAME", dimension_numbers=dims, preferred_element_type=jnp.float32)


def _summed_planes(x, kernel):
    first, middle, last = (_conv2d(planes, plane) for planes, plane in zip(_shifted_planes(x), kernel))
    return first + middle + last


def _folded_planes(x, kernel):
    folded = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, -1, kernel.shape[-1])
    return _conv2d(jnp.concatenate(_shifted_planes(x), -1), folded)
