"""Which fast forms the networks may take: one setting that a `with` block changes, and for a whole command the environment variable
`JAXSEG_PLAIN`. Read by `models.attention`, `conv`, `instance_norm` and `matrix_product`.

Every fast form gives the numbers of the plain one up to rounding. To turn them off is for finding out where a difference comes from.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxseg.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class FastPaths:
    """What is allowed now.

    attention: fused (cuDNN), blockwise and CPU forms; without, `jax.nn.dot_product_attention` of XLA's operations, whose memory grows with
        the square of the tokens.
    convolution: matrix products, folded strides and the CPU forms with their own gradients; without, `jax.lax` convolutions alone.
    norm: instance normalisation with a hand-written gradient; without, JAX's derivative of the formula.
    product: linear maps with the CPU's own order of factors and gradients; without, `jax.lax.dot_general` and JAX's derivative.
    attention_tokens: up to so many tokens a CPU computes all weights of a head at once, which is faster and needs more memory.
    """

    attention: bool = True
    convolution: bool = True
    norm: bool = True
    product: bool = True
    attention_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.attention_tokens < 0:
            raise ConfigError(f"attention_tokens is {self.attention_tokens}; expected a number of tokens, 0 or more")


VARIABLE = "JAXSEG_PLAIN"
_SWITCHES = ("attention", "convolution", "norm", "product")

# A context of JAX's own: a function that was compiled under one setting is compiled again under another.
_context = jax.make_user_context(None)


def allowed() -> FastPaths:
    """What is allowed where the caller is being traced: what the innermost `with fast_paths(...)` says, or else the environment.

    Raises:
        ConfigError: `JAXSEG_PLAIN` names something that is no fast path.
    """
    return _context.value or from_environment()


def from_environment() -> FastPaths:
    """Every fast path but those in `JAXSEG_PLAIN`: names with commas between them (`attention,norm`), or `all`.

    Raises:
        ConfigError: a name that is none.
    """
    named = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    off = set(_SWITCHES) if named == {"all"} else named
    if off - set(_SWITCHES):
        unknown = ", ".join(sorted(off - set(_SWITCHES)))
        raise ConfigError(f"the environment variable {VARIABLE} names {unknown}; expected all, or some of {', '.join(_SWITCHES)}")
    return FastPaths(**{name: name not in off for name in _SWITCHES})


@contextmanager
def fast_paths(
    *,
    attention: bool | None = None,
    convolution: bool | None = None,
    norm: bool | None = None,
    product: bool | None = None,
    attention_tokens: int | None = None,
) -> Iterator[FastPaths]:
    """Allow or forbid fast forms in this thread, for what is traced inside the `with` block; what is not named stays as it was.

    Raises:
        ConfigError: `attention_tokens` is negative.
    """
    given = {"attention": attention, "convolution": convolution, "norm": norm, "product": product, "attention_tokens": attention_tokens}
    setting = dataclasses.replace(allowed(), **{name: value for name, value in given.items() if value is not None})
    with _context(setting):
        yield setting
