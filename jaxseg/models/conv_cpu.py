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

_CACHE = 3 << 20
"""Bytes of working memory that a step of a loop may fill: what a core has for itself, and its part of what the cores share."""
_LARGE = 16
"""Rows and columns from which on a plane is better convolved by Eigen than by YNNPACK."""


def forward(x: Float[Array, "b x y z i"], kernel: Float[Array, "3 3 3 i o"]) -> Float[Array, "b x y z o"]:
    """Convolve with stride 1 and zero padding: one 2-D convolution of every plane with the kernel's three, then the sum of three planes' answers.

    The kernel's planes lie side by side as output channels, so each neighbourhood is gathered once, and the product is wide enough for the
    fast routine behind `lax.conv` (16 to 16 channels: 87 GFLOP/s plane by plane, 184 so).
    """
    outputs = kernel.shape[-1]
    stacked = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, x.shape[-1], 3 * outputs)
    parts = _conv2d(x.reshape(-1, *x.shape[2:]), stacked).reshape(*x.shape[:4], 3 * outputs)
    before, here, after = (parts[..., k * outputs : (k + 1) * outputs] for k in range(3))
    if x.shape[1] == 1:
        return here.astype(x.dtype)
    # The planes at both ends on their own: a sum over shifted, padded arrays takes longer.
    first, last = here[:, :1] + after[:, 1:2], before[:, -2:-1] + here[:, -1:]
    return jnp.concatenate([first, before[:, :-2] + here[:, 1:-1] + after[:, 2:], last], 1).astype(x.dtype)


def input_gradient(gradient: Float[Array, "b x y z o"], kernel: Float[Array, "3 3 3 i o"]) -> Float[Array, "b x y z i"]:
    """The gradient of the input: a convolution with the kernel flipped and transposed."""
    return forward(gradient, kernel[::-1, ::-1, ::-1].swapaxes(-1, -2))


def kernel_gradient(x: Float[Array, "b x y z i"], gradient: Float[Array, "b x y z o"]) -> Float[Array, "3 3 3 i o"]:
    """The gradient of the kernel, float32: matrix products of a plane's rows, few enough for the processor's cache, summed over all of them.

    Of the two, the array with fewer channels is seen at nine shifts within the plane and the other one in three planes.
    """
    (b, nx, ny, nz, inputs), outputs = x.shape, gradient.shape[-1]
    narrow_input = inputs < outputs
    narrow, wide = (x, gradient) if narrow_input else (gradient, x)
    narrow = jnp.pad(narrow, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    wide = jnp.pad(wide, ((0, 0), (1, 1)) + ((0, 0),) * 3)
    rows = _rows_in_cache(ny, 4 * b * nz * (3 * wide.shape[-1] + 9 * narrow.shape[-1]))

    # Each sample has a sum of its own: samples may lie on several devices, which then need not meet before the end.
    def add_rows(totals, place):
        plane, row = place
        three = [lax.dynamic_slice(wide, (0, plane + k, row, 0, 0), (b, 1, rows, nz, wide.shape[-1])) for k in range(3)]
        one = lax.dynamic_slice(narrow, (0, plane, row, 0, 0), (b, 1, rows + 2, nz + 2, narrow.shape[-1]))[:, 0]
        left = jnp.concatenate(three, -1).reshape(b, rows * nz, -1)
        right = jnp.concatenate([one[:, j : j + rows, k : k + nz] for j in range(3) for k in range(3)], -1).reshape(b, rows * nz, -1)
        return totals + jnp.einsum("bvi,bvo->bio", left, right, preferred_element_type=jnp.float32), None

    places = jnp.stack(jnp.meshgrid(jnp.arange(nx), jnp.arange(0, ny, rows), indexing="ij"), -1).reshape(-1, 2)
    totals = lax.scan(add_rows, jnp.zeros((b, 3 * wide.shape[-1], 9 * narrow.shape[-1]), jnp.float32), places)[0]
    total = jnp.sum(totals, 0).reshape(3, wide.shape[-1], 3, 3, narrow.shape[-1])
    # A shift of the gradient moves the tap the other way, so along the axes where the gradient is shifted the taps come in reverse order.
    return total[::-1].transpose(0, 2, 3, 4, 1) if narrow_input else total[:, :, ::-1, ::-1].transpose(0, 2, 3, 1, 4)


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


def _rows_in_cache(rows: int, row_bytes: int) -> int:
    """The most rows of a plane, a divisor of all of them, that fit into a core's cache; at least one."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * row_bytes <= _CACHE))


def _conv2d(planes, kernel):
    """A 2-D convolution of many planes with zeros around, by the faster of the two routines behind `lax.conv`, float32.

    XLA (jax 0.10) hands a 2-D convolution to YNNPACK, which reaches 90 GFLOP/s on large planes where Eigen reaches 140 to 190, unless there are
    more outputs than inputs along an axis: so large planes get one row more than is kept. Where XLA chooses by other rules this costs that row.
    """
    dims, extra = ("NHWC", "HWIO", "NHWC"), int(min(planes.shape[1:3]) >= _LARGE)
    padding = ((1, 1 + extra), (1, 1))
    rows = lax.conv_general_dilated(planes, kernel, (1, 1), padding, dimension_numbers=dims, preferred_element_type=jnp.float32)
    return rows[:, : planes.shape[1]]
