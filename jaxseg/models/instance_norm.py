"""Instance normalisation with a hand-written gradient, and the LeakyReLU that follows it. The convolutional models call these."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models import switches

EPSILON = 1e-5
SLOPE = 0.01


def instance_norm(
    x: Float[Array, "b x y z c"], scale: Float[Array, "c"] | None = None, bias: Float[Array, "c"] | None = None
) -> Float[Array, "b x y z c"]:
    """Normalise each channel of each sample over its voxels: float32 statistics, biased variance, eps 1e-5, the type of `x` kept.

    Ulyanov et al., arXiv 1607.08022; equal to `torch.nn.InstanceNorm3d`, which has no scale and bias by default.
    """
    y = _normalise(x) if switches.allowed().norm else _formula(x)
    if scale is not None:
        y = y * scale.astype(y.dtype)
    return y if bias is None else y + bias.astype(y.dtype)


def leaky_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x where it is positive, 0.01 x elsewhere."""
    return jnp.where(x > 0, x, SLOPE * x)


def _mean(x):
    # Two stages, a plane's mean and then the mean of planes: XLA's CPU backend runs one long sum on one core, planes on all of them.
    return jnp.mean(jnp.mean(x, (2, 3)), 1)[:, None, None, None, :]


def _statistics(x):
    x = x.astype(jnp.float32)
    mean = _mean(x)
    return mean, jax.lax.rsqrt(_mean(jnp.square(x - mean)) + EPSILON)


def _formula(x):
    mean, scale = _statistics(x)
    return ((x.astype(jnp.float32) - mean) * scale).astype(x.dtype)


_normalise = jax.custom_vjp(_formula)


def _forward(x):
    mean, scale = _statistics(x)
    return ((x.astype(jnp.float32) - mean) * scale).astype(x.dtype), (x, mean, scale)


def _backward(saved, gradient):
    x, mean, scale = saved
    gradient = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * scale
    return ((scale * (gradient - _mean(gradient) - normal * _mean(gradient * normal))).astype(x.dtype),)


_normalise.defvjp(_forward, _backward)
