"""Convolutions of groups of channels by convolutions of all channels, for XLA's CPU backend, whose own takes 10 to 70 times as long.

`models.conv` calls this.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NARROW = 8
"""Channels that a fast convolution takes in nearly the time of one: so many are convolved at once, with zeros between groups."""


def grouped_conv(
    convolve: Callable[[Array, Array], Array], x: Float[Array, "b x y z i"], kernel: Float[Array, "kx ky kz j o"], groups: int
) -> Float[Array, "b x2 y2 z2 o"]:
    """`convolve` each of `groups` parts of the channels of `x` with its part of the outputs of `kernel`, which sees j = i / groups channels.

    One part after the other in a loop, so that a program of hundreds of groups compiles as fast as one of two and works in the processor's
    cache. Narrow groups go through it several at a time.
    """
    inputs, outputs = kernel.shape[3], kernel.shape[4] // groups
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * inputs <= _NARROW))
    parts = groups // together
    images = jnp.moveaxis(x.reshape(*x.shape[:4], parts, together * inputs), 4, 0)
    kernels = jnp.moveaxis(kernel.reshape(*kernel.shape[:4], parts, together, outputs), 4, 0)
    # (part, kx, ky, kz, group, j, group, o): zero where the groups differ.
    apart = jnp.eye(together, dtype=kernel.dtype)[:, None, :, None] * kernels[:, :, :, :, None]
    kernels = apart.reshape(parts, *kernel.shape[:3], together * inputs, together * outputs)
    y = lax.map(lambda part: convolve(*part), (images, kernels))
    return jnp.moveaxis(y, 0, 4).reshape(*y.shape[1:5], -1)
