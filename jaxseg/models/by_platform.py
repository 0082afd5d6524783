"""One function of two arrays in two forms, of which a program gets the one for the platform that it is lowered for. The convolutions use this."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
from jax import lax
from jaxtyping import Array

Form = Callable[[Array, Array], Array]


def by_platform(cpu: Form, default: Form, x: Array, kernel: Array) -> Array:
    """`cpu(x, kernel)` in programs lowered for CPUs, `default(x, kernel)` in all others, and so the gradients of each (reverse mode, first order)."""
    return cast(Array, _by_platform(cpu, default, x, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_platform(cpu: Form, default: Form, x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _forward(cpu: Form, default: Form, x: Array, kernel: Array):
    return _by_platform(cpu, default, x, kernel), (x, kernel)


def _backward(cpu: Form, default: Form, saved: tuple[Array, Array], gradient: Array):
    # The choice of a platform inside, not outside of, the derivative: else the values that each form saves would be kept for both.
    return lax.platform_dependent(*saved, gradient, cpu=_gradients(cpu), default=_gradients(default))


def _gradients(form: Form):
    return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)


_by_platform.defvjp(_forward, _backward)
