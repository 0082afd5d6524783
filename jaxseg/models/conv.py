"""3-D convolution, its cheap special cases (1x1x1, kernel = stride) and changes of resolution. UNETR calls these.

Arrays are `(b, x, y, z, c)` and kernels `(kx, ky, kz, in, out)`. One function, `conv3d`, chooses the form by the platform that a program
is lowered for: plain `lax.conv` on GPU and TPU; on CPU `models.conv_cpu` without strides and `models.conv_phases` with them, by
`models.conv_groups` where channels are in groups.
`switches.fast_paths(convolution=False)` leaves `lax.conv` alone, everywhere.
"""

import math
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import conv_cpu, conv_groups, conv_phases, switches
from jaxseg.models.by_platform import by_platform

Factors = tuple[int, int, int]
Pads = tuple[tuple[int, int], ...]


def conv3d(
    x: Float[Array, "b x y z i"],
    kernel: Float[Array, "kx ky kz j o"],
    bias: Float[Array, "o"] | None = None,
    *,
    stride: int | Factors = 1,
    padding: str | Factors = "SAME",
    groups: int = 1,
) -> Float[Array, "b x2 y2 z2 o"]:
    """Cross-correlate `x` with `kernel` (what every framework calls convolution), in the type of `x`, with float32 sums.

    Args:
        stride: voxels between outputs, one number or one an axis.
        padding: "SAME" (zeros; with an odd kernel and stride 1 equal to torch's padding = k // 2), "VALID", or as in torch the voxels of zeros
            on both sides of each axis. With a stride, "SAME" may pad the far side alone: then torch's padding = k // 2 is not "SAME".
        groups: parts of the channels that do not see each other, as in torch: j = i / groups, and the first o / groups outputs belong to the
            first part. With as many groups as channels each has a kernel of its own. (Between the two a CPU gets XLA's form, which is slow.)

    The fast forms agree with `lax.conv` to rounding and have first derivatives in reverse mode only.
    """
    sx, sy, sz = (stride,) * 3 if isinstance(stride, int) else stride
    strides = (sx, sy, sz)
    kernel = kernel.astype(x.dtype)
    pads = _zeros_around(x, kernel, strides, padding)
    on_cpu, native = _forms(strides, pads, groups)
    if not switches.allowed().convolution:
        out = native(x, kernel)
    elif groups == 1 and kernel.shape[:3] == strides == (1, 1, 1) and not any(map(any, pads)):
        out = _pointwise(x, kernel[0, 0, 0])
    else:
        out = by_platform(on_cpu, native, x, kernel)
    return out if bias is None else out + bias.astype(x.dtype)


def transposed_conv(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz i o"], bias: Float[Array, "o"] | None = None, *, stride: int | Factors
) -> Float[Array, "b x2 y2 z2 o"]:
    """Transposed convolution from n to n * stride voxels along each axis, for odd kernels: torch's with padding k // 2 and output_padding stride - 1.

    Torch's kernel `(in, out, kx, ky, kz)` is this one with its axes moved only (nothing is flipped). First derivatives in reverse mode only.
    """
    strides = (stride, stride, stride) if isinstance(stride, int) else stride
    kx, ky, kz = kernel.shape[:3]
    out = conv_phases.transposed_conv(x, kernel.astype(x.dtype), strides, (kx // 2, ky // 2, kz // 2))
    return out if bias is None else out + bias.astype(x.dtype)


def upsample_conv(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "fx fy fz i o"], bias: Float[Array, "o"] | None = None
) -> Float[Array, "b x2 y2 z2 o"]:
    """Transposed convolution with kernel = stride = the kernel's first three axes: each voxel becomes a block, no two blocks overlap.

    So it is one matrix product and a pixel shuffle, exactly. Torch's kernel `(in, out, fx, fy, fz)` is this one with its axes moved only.
    """
    kernel = kernel.astype(x.dtype)
    if switches.allowed().convolution:
        fx, fy, fz, inputs, _ = kernel.shape
        y = _pointwise(x, jnp.moveaxis(kernel, 3, 0).reshape(inputs, -1))
        # Products are written to memory anyway. Without this, XLA (jaxlib 0.11.2) simplifies the indices of two or more of these in a row for hours.
        y = depth_to_space(lax.optimization_barrier(y), (fx, fy, fz))
    else:
        fx, fy, fz = kernel.shape[:3]
        y = conv_phases.transposed_conv(x, kernel, (fx, fy, fz), (0, 0, 0))
    return y if bias is None else y + bias.astype(x.dtype)


def space_to_depth(x: Float[Array, "b x y z c"], factors: Factors) -> Float[Array, "b x2 y2 z2 f"]:
    """Fold blocks of `factors` voxels into channels, ordered (fx fy fz c); the sides must be multiples of the factors."""
    fx, fy, fz = factors
    return rearrange(x, "b (x i) (y j) (z k) c -> b x y z (i j k c)", i=fx, j=fy, k=fz)


def depth_to_space(x: Float[Array, "b x y z f"], factors: Factors) -> Float[Array, "b x2 y2 z2 c"]:
    """The inverse of `space_to_depth`: channels (fx fy fz c) become blocks of voxels (pixel shuffle)."""
    fx, fy, fz = factors
    return rearrange(x, "b x y z (i j k c) -> b (x i) (y j) (z k) c", i=fx, j=fy, k=fz)


def upsample(
    x: Float[Array, "b x y z c"], factors: Factors, *, method: Literal["linear", "nearest"] = "linear"
) -> Float[Array, "b x2 y2 z2 c"]:
    """Interpolate without weights; voxel centres aligned as in torch with align_corners=False, borders repeated."""
    if method == "nearest":
        for axis, factor in zip((1, 2, 3), factors):
            x = jnp.repeat(x, factor, axis)
        return x
    shape = (x.shape[0], *(n * f for n, f in zip(x.shape[1:4], factors)), x.shape[4])
    return jax.image.resize(x, shape, "linear", antialias=False).astype(x.dtype)


def average_pool(x: Float[Array, "b x y z c"], factors: Factors) -> Float[Array, "b x2 y2 z2 c"]:
    """The mean of each block of `factors` voxels; the sides must be multiples of the factors."""
    return reduce(x, "b (x i) (y j) (z k) c -> b x y z c", "mean", i=factors[0], j=factors[1], k=factors[2])


def kernel_init(key: Array, shape: tuple[int, ...], *, fan_in: int | None = None) -> Float[Array, "..."]:
    """Uniform in +-1/sqrt(fan in), as torch's convolutions by default; the fan in is given, or all of `shape` (..., in, out) but the last."""
    bound = 1 / math.sqrt(fan_in or math.prod(shape[:-1]))
    # Drawn in one row: the same numbers, and a tenth of the time to compile them that five axes take.
    return jax.random.uniform(key, (math.prod(shape),), jnp.float32, -bound, bound).reshape(shape)


def _zeros_around(x: Array, kernel: Array, strides: Factors, padding: str | Factors) -> Pads:
    """The zeros in front of and behind each axis."""
    if isinstance(padding, str):
        return tuple((before, after) for before, after in lax.padtype_to_pads(x.shape[1:4], kernel.shape[:3], strides, padding))
    return tuple((p, p) for p in padding)


def _pointwise(x, matrix):
    # As one axis: over several, the gradient of the matrix would be a product of transposed copies.
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


@lru_cache
def _forms(strides: Factors, pads: Pads, groups: int):
    """The convolution for CPUs and for all others. The same two functions each time, so that what JAX traced of them is found again."""
    return partial(_on_cpu, strides=strides, pads=pads, groups=groups), partial(_native, strides=strides, pads=pads, groups=groups)


def _native(x: Array, kernel: Array, strides: Factors, pads: Pads, groups: int) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWDC", "HWDIO", "NHWDC"), feature_group_count=groups)


def _on_cpu(x: Array, kernel: Array, strides: Factors, pads: Pads, groups: int) -> Array:
    sizes = kernel.shape[:3]
    if any(n + before + after < k for n, k, (before, after) in zip(x.shape[1:4], sizes, pads)):
        return _native(x, kernel, strides, pads, groups)  # no voxel comes out
    # Zeros further out than a kernel reaches from a voxel are part of the image for the fast forms.
    beyond = tuple((max(0, before - k + 1), max(0, after - k + 1)) for k, (before, after) in zip(sizes, pads))
    if any(map(any, beyond)):
        x = jnp.pad(x, ((0, 0), *beyond, (0, 0)))
        pads = tuple((before - b, after - a) for (before, after), (b, a) in zip(pads, beyond))
    if sizes == (1, 1, 1):
        sx, sy, sz = strides
        x, convolve = x[:, ::sx, ::sy, ::sz], lambda x, kernel: _pointwise(x, kernel[0, 0, 0])
    elif strides == (1, 1, 1):
        convolve = partial(conv_cpu.convolve, pads=pads)
    else:
        convolve = partial(conv_phases.strided_conv, strides=strides, pads=pads)
    return convolve(x, kernel) if groups == 1 else conv_groups.grouped_conv(convolve, x, kernel, groups)
