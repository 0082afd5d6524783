"""Strided and transposed convolutions written for XLA's CPU backend as stride-1 convolutions. `models.conv` calls this.

With stride s a fine voxel is s * (coarse voxel) + phase. Fold the phases into channels and both convolutions become one of stride 1 on the
coarse grid, with a kernel of ceil(k / s) or so: on CPU the gradient of a strided `lax.conv` and every transposed one is 10 to 70 times slower.
GPU and TPU, whose libraries do both natively, get `lax.conv_general_dilated`, which needs less than half of the multiplications.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import conv_cpu, switches
from jaxseg.models.by_platform import by_platform

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], ...]


class _Taps(NamedTuple):
    """Along one axis: how a kernel of `size` taps at offsets -before, ... lies on blocks of `stride` voxels."""

    size: int
    stride: int
    before: int

    @property
    def first(self) -> int:
        """The first block that a tap falls into, relative to the output's own."""
        return -self.before // self.stride

    @property
    def last(self) -> int:
        return (self.size - 1 - self.before) // self.stride

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros that make whole blocks of the taps."""
        before = -self.first * self.stride - self.before
        return before, (self.last - self.first + 1) * self.stride - self.size - before


def strided_conv(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], strides: Triple, pads: Pads
) -> Float[Array, "b x2 y2 z2 o"]:
    """Cross-correlate with so many zeros in front of and behind each axis (fewer than the kernel is long); the form for CPUs, which others can run too."""
    sizes = kernel.shape[:3]
    outputs = [(n + before + after - k) // s + 1 for n, k, s, (before, after) in zip(x.shape[1:4], sizes, strides, pads)]
    taps = [_Taps(k, s, before) for k, s, (before, _) in zip(sizes, strides, pads)]
    # Blocks of which an output sees something. What lies behind them is left out, what they lack is zero.
    blocks = [min(-(-n // s), m + each.last) for n, s, m, each in zip(x.shape[1:4], strides, outputs, taps)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((0, c * s - n, 0) for c, s, n in zip(blocks, strides, x.shape[1:4])), (0, 0, 0)])
    sx, sy, sz = strides
    x = rearrange(x, "b (x i) (y j) (z k) m -> b x y z (i j k m)", i=sx, j=sy, k=sz)
    folded = rearrange(_in_blocks(kernel, taps), "(a i) (b j) (c k) m n -> a b c (i j k m) n", i=sx, j=sy, k=sz)
    return _coarse_conv(x, folded, [(-each.first, m + each.last - c) for m, each, c in zip(outputs, taps, blocks)])


def transposed_conv(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], strides: Triple, before: Triple
) -> Float[Array, "b x2 y2 z2 o"]:
    """The adjoint: voxel j puts the taps of its `kernel` at stride * j - before, ...; n voxels become n * stride (what falls outside is dropped)."""
    on_cpu, native = _transposed_forms(strides, before)
    return by_platform(on_cpu, native, x, kernel) if switches.allowed().convolution else native(x, kernel)


@lru_cache
def _transposed_forms(strides: Triple, before: Triple):
    """The same two functions each time, so that what JAX traced of them is found again."""
    return partial(_transposed, strides=strides, before=before), partial(_native_transposed, strides=strides, before=before)


def _transposed(x: Array, kernel: Array, strides: Triple, before: Triple) -> Array:
    taps = [_Taps(k, s, p) for k, s, p in zip(kernel.shape, strides, before)]
    sx, sy, sz = strides
    folded = rearrange(_in_blocks(kernel, taps), "(a i) (b j) (c k) m n -> a b c m (i j k n)", i=sx, j=sy, k=sz)[::-1, ::-1, ::-1]
    y = _coarse_conv(x, folded, [(each.last, -each.first) for each in taps])
    return rearrange(y, "b x y z (i j k n) -> b (x i) (y j) (z k) n", i=sx, j=sy, k=sz)


def _native_transposed(x: Array, kernel: Array, strides: Triple, before: Triple) -> Array:
    pads = [(k - 1 - p, s + p - 1) for k, p, s in zip(kernel.shape, before, strides)]
    flipped = kernel[::-1, ::-1, ::-1]
    return lax.conv_general_dilated(x, flipped, (1, 1, 1), pads, lhs_dilation=strides, dimension_numbers=("NHWDC", "HWDIO", "NHWDC"))


def _in_blocks(kernel: Array, taps: list[_Taps]) -> Array:
    return jnp.pad(kernel, [*(each.padding for each in taps), (0, 0), (0, 0)])


def _coarse_conv(x: Array, kernel: Array, pads: list[tuple[int, int]]) -> Array:
    if kernel.shape[:3] == (1, 1, 1) and not any(map(any, pads)):
        return jnp.einsum("bxyzi,io->bxyzo", x, kernel[0, 0, 0])
    return conv_cpu.convolve(x, kernel, tuple(pads))
