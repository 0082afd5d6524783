"""Strided and transposed convolutions as torch pads them, written for XLA's CPU backend as stride-1 convolutions. `models.conv` calls this.

With stride s a fine voxel is s * (coarse voxel) + phase. Fold the phases into channels and both convolutions become one of stride 1 on the
coarse grid, with a kernel of ceil(k / s) or so: on CPU the gradient of a strided `lax.conv` and every transposed one is 10 to 40 times slower.
GPU and TPU, whose libraries do both natively, get `lax.conv_general_dilated`, which needs less than half of the multiplications.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import conv_cpu, switches

Triple = tuple[int, int, int]
Pads = tuple[tuple[int, int], ...]
_DIMS = ("NHWDC", "HWDIO", "NHWDC")


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
    x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], strides: Triple, before: Triple
) -> Float[Array, "b x2 y2 z2 o"]:
    """Cross-correlate with `before` zeros in front and as many behind as give ceil(n / stride) outputs: torch's symmetric padding, for odd kernels."""
    outputs = [-(-n // s) for n, s in zip(x.shape[1:4], strides)]
    after = [(m - 1) * s + k - p - n for m, s, k, p, n in zip(outputs, strides, kernel.shape, before, x.shape[1:4])]
    # A kernel shorter than its stride may leave voxels at the end that no output sees; lax takes that as negative padding.
    return _by_platform(x, kernel, strides, before, tuple(zip(before, after)), False)


def transposed_conv(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], strides: Triple, before: Triple
) -> Float[Array, "b x2 y2 z2 o"]:
    """The adjoint: voxel j puts the taps of its `kernel` at stride * j - before, ...; n voxels become n * stride (what falls outside is dropped)."""
    sides = [(k - 1 - p, s + p - 1) for k, p, s in zip(kernel.shape, before, strides)]
    form = _by_platform if switches.allowed().convolution else _native
    return form(x, kernel, strides, before, tuple(sides), True)


def _native(x: Array, kernel: Array, strides: Triple, before: Triple, pads: Pads, transposed: bool) -> Array:
    if transposed:
        flipped = kernel[::-1, ::-1, ::-1]
        return lax.conv_general_dilated(x, flipped, (1, 1, 1), pads, lhs_dilation=strides, dimension_numbers=_DIMS)
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMS)


def _phases(x: Array, kernel: Array, strides: Triple, before: Triple, pads: Pads, transposed: bool) -> Array:
    del pads
    taps = [_Taps(k, s, p) for k, s, p in zip(kernel.shape, strides, before)]
    sx, sy, sz = strides
    blocks = jnp.pad(kernel, [*(each.padding for each in taps), (0, 0), (0, 0)])
    if transposed:
        blocks = rearrange(blocks, "(a i) (b j) (c k) m n -> a b c m (i j k n)", i=sx, j=sy, k=sz)[::-1, ::-1, ::-1]
        y = _coarse_conv(x, blocks, [(each.last, -each.first) for each in taps])
        return rearrange(y, "b x y z (i j k n) -> b (x i) (y j) (z k) n", i=sx, j=sy, k=sz)
    blocks = rearrange(blocks, "(a i) (b j) (c k) m n -> a b c (i j k m) n", i=sx, j=sy, k=sz)
    x = jnp.pad(x, [(0, 0), *((0, -n % s) for n, s in zip(x.shape[1:4], strides)), (0, 0)])
    x = rearrange(x, "b (x i) (y j) (z k) m -> b x y z (i j k m)", i=sx, j=sy, k=sz)
    return _coarse_conv(x, blocks, [(-each.first, each.last) for each in taps])


def _coarse_conv(x: Array, kernel: Array, pads: list[tuple[int, int]]) -> Array:
    if kernel.shape[:3] == (1, 1, 1) and not any(map(any, pads)):
        return jnp.einsum("bxyzi,io->bxyzo", x, kernel[0, 0, 0])
    return conv_cpu.convolve(x, kernel, tuple(pads))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _by_platform(x: Array, kernel: Array, strides: Triple, before: Triple, pads: Pads, transposed: bool) -> Array:
    how = {"strides": strides, "before": before, "pads": pads, "transposed": transposed}
    return lax.platform_dependent(x, kernel, cpu=partial(_phases, **how), default=partial(_native, **how))


def _forward(x: Array, kernel: Array, *how):
    return _by_platform(x, kernel, *how), (x, kernel)


def _backward(strides: Triple, before: Triple, pads: Pads, transposed: bool, saved, gradient: Array):
    # The choice of a platform inside, not outside of, the derivative: else the values that each form saves would be kept for all of them.
    def gradients(form: Callable[..., Array]):
        return lambda x, kernel, g: jax.vjp(lambda x, kernel: form(x, kernel, strides, before, pads, transposed), x, kernel)[1](g)

    return lax.platform_dependent(*saved, gradient, cpu=gradients(_phases), default=gradients(_native))


_by_platform.defvjp(_forward, _backward)
