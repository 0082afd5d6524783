"""Convolution with stride 1 written for XLA's CPU backend, whose own 3-D convolution is three to ten times slower. `models.conv` and
`models.conv_phases` call this.

Three products, each with the same answer as `lax.conv_general_dilated` up to rounding: the value, the gradient of the input (the value
again, with the kernel flipped) and the gradient of the kernel. Sums are float32 whatever the type of the input.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pads = Sequence[tuple[int, int]]

_CACHE = 3 << 20
"""Bytes of working memory that a step of a loop may fill: what a core has for itself, and its part of what the cores share."""
_LARGE = 16
"""Rows and columns from which on a plane is better convolved by Eigen than by YNNPACK."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], pads: Pads) -> Float[Array, "b x2 y2 z2 o"]:
    """Cross-correlate with so many zeros in front of and behind each axis (fewer than the kernel is long)."""
    return forward(x, kernel, pads)


def forward(x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], pads: Pads) -> Float[Array, "b x2 y2 z2 o"]:
    """The value: one 2-D convolution of every plane with all of the kernel's planes, then the sum of what belongs to each plane of the answer.

    The kernel's planes lie side by side as output channels, so each neighbourhood is gathered once, and the product is wide enough for the
    fast routine behind `lax.conv` (16 to 16 channels: 93 GFLOP/s plane by plane, 144 so). It needs room for as many answers as the kernel has planes.
    """
    (planes, outputs), (before, after) = (kernel.shape[0], kernel.shape[-1]), pads[0]
    stacked = kernel.transpose(1, 2, 3, 0, 4).reshape(*kernel.shape[1:4], planes * outputs)
    parts = _conv2d(x.reshape(-1, *x.shape[2:]), stacked, pads[1:])
    parts = parts.reshape(*x.shape[:2], *parts.shape[1:3], planes, outputs)
    read = x.shape[1]

    def total(first: int, last: int, taps: Sequence[int]) -> Array:
        """The planes first to last of the answer, which these planes of the kernel reach: plane p and tap k meet plane p + k - before."""
        return reduce(jnp.add, [parts[:, first + k - before : last + k - before, :, :, k] for k in taps])

    # Neighbours with the same taps are summed at once. The planes at both ends have taps that fall outside: a sum over padded arrays takes longer.
    reach = [tuple(k for k in range(planes) if 0 <= p + k - before < read) for p in range(read + before + after - planes + 1)]
    starts = [p for p in range(len(reach)) if p == 0 or reach[p] != reach[p - 1]]
    pieces = [total(first, last, reach[first]) for first, last in zip(starts, [*starts[1:], len(reach)])]
    return jnp.concatenate(pieces, 1).astype(x.dtype)


def input_gradient(gradient: Float[Array, "b x2 y2 z2 o"], kernel: Float[Array, "kx ky kz i o"], pads: Pads) -> Float[Array, "b x y z i"]:
    """The gradient of the input: a convolution with the kernel flipped and transposed."""
    turned = tuple((k - 1 - before, k - 1 - after) for k, (before, after) in zip(kernel.shape, pads))
    return forward(gradient, kernel[::-1, ::-1, ::-1].swapaxes(-1, -2), turned)


def kernel_gradient(
    x: Float[Array, "b x y z i"], gradient: Float[Array, "b x2 y2 z2 o"], size: Sequence[int], pads: Pads
) -> Float[Array, "kx ky kz i o"]:
    """The gradient of the kernel, float32: matrix products of a plane's rows, few enough for the processor's cache, summed over all of them.

    Of the two, the array with fewer channels is seen at all shifts within the plane and the other one in as many planes as the kernel has.
    """
    b, (kx, ky, kz) = x.shape[0], size
    narrow_input = x.shape[-1] < gradient.shape[-1]
    narrow, wide = (x, gradient) if narrow_input else (gradient, x)
    (nx, _, _), (_, ny, nz) = narrow.shape[1:4], wide.shape[1:4]
    # Seen from the input, the gradient is shifted the other way.
    (in_x, in_y, in_z), (out_x, out_y, out_z) = pads, [(k - 1 - before, k - 1 - after) for k, (before, after) in zip(size, pads)]
    (px, py, pz) = (out_x, in_y, in_z) if narrow_input else (in_x, out_y, out_z)
    narrow = jnp.pad(narrow, ((0, 0), (0, 0), py, pz, (0, 0)))
    wide = jnp.pad(wide, ((0, 0), px) + ((0, 0),) * 3)
    rows = _rows_in_cache(ny, 4 * b * nz * (kx * wide.shape[-1] + ky * kz * narrow.shape[-1]))

    # Each sample has a sum of its own: samples may lie on several devices, which then need not meet before the end.
    def add_rows(totals, place):
        plane, row = place
        several = [lax.dynamic_slice(wide, (0, plane + k, row, 0, 0), (b, 1, rows, nz, wide.shape[-1])) for k in range(kx)]
        one = lax.dynamic_slice(narrow, (0, plane, row, 0, 0), (b, 1, rows + ky - 1, nz + kz - 1, narrow.shape[-1]))[:, 0]
        left = jnp.concatenate(several, -1).reshape(b, rows * nz, -1)
        right = jnp.concatenate([one[:, j : j + rows, k : k + nz] for j in range(ky) for k in range(kz)], -1).reshape(b, rows * nz, -1)
        return totals + jnp.einsum("bvi,bvo->bio", left, right, preferred_element_type=jnp.float32), None

    places = jnp.stack(jnp.meshgrid(jnp.arange(nx), jnp.arange(0, ny, rows), indexing="ij"), -1).reshape(-1, 2)
    totals = lax.scan(add_rows, jnp.zeros((b, kx * wide.shape[-1], ky * kz * narrow.shape[-1]), jnp.float32), places)[0]
    total = jnp.sum(totals, 0).reshape(kx, wide.shape[-1], ky, kz, narrow.shape[-1])
    # A shift of the gradient moves the tap the other way, so along the axes where the gradient is shifted the taps come in reverse order.
    return total[::-1].transpose(0, 2, 3, 4, 1) if narrow_input else total[:, :, ::-1, ::-1].transpose(0, 2, 3, 1, 4)


def _saved(x, kernel, pads):
    return forward(x, kernel, pads), (x, kernel)


def _gradients(pads, saved, gradient):
    x, kernel = saved
    return input_gradient(gradient, kernel, pads), kernel_gradient(x, gradient, kernel.shape[:3], pads).astype(kernel.dtype)


convolve.defvjp(_saved, _gradients)


def _rows_in_cache(rows: int, row_bytes: int) -> int:
    """The most rows of a plane, a divisor of all of them, that fit into a core's cache; at least one."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * row_bytes <= _CACHE))


def _conv2d(planes, kernel, pads):
    """A 2-D convolution of many planes with zeros around, by the faster of the two routines behind `lax.conv`, float32.

    XLA (jax 0.10) hands a 2-D convolution to YNNPACK, which reaches 90 GFLOP/s on large planes where Eigen reaches 140 to 190, unless there are
    more outputs than inputs along an axis: so large planes get one row more than is kept. Where XLA chooses by other rules this costs that row.
    """
    rows = planes.shape[1] + sum(pads[0]) - kernel.shape[0] + 1
    extra = max(0, planes.shape[1] + 1 - rows) if min(planes.shape[1:3]) >= _LARGE else 0
    padding, dims = ((pads[0][0], pads[0][1] + extra), pads[1]), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(planes, kernel, (1, 1), padding, dimension_numbers=dims, preferred_element_type=jnp.float32)[:, :rows]
