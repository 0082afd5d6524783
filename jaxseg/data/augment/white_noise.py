"""Normal numbers for a crop, at the price of their arithmetic: JAX's own generator takes three quarters of the time. Called by `intensity`."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32


def white_noise(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent normal numbers of mean 0 and deviation 1: of 65,536 values, the outermost at 4.3 deviations.

    A function of the key and the place alone, the same on every platform, under `vmap` and `jit`. For images; not for statistics.
    """
    count = math.prod(shape)
    halves = jax.lax.bitcast_convert_type(random_bits(key, (count + 1) // 2), jnp.uint16).reshape(-1)[:count].reshape(shape)
    return math.sqrt(2) * jax.lax.erf_inv((halves.astype(jnp.float32) + 0.5) * 2.0**-15 - 1)


def random_bits(key: Array, count: int) -> UInt32[Array, " n"]:
    """So many words: the place scrambled with one half of the key and then with the other."""
    first, second = jax.random.key_data(key).astype(jnp.uint32)[:2]
    return _scramble(_scramble(jax.lax.iota(jnp.uint32, count) + first) ^ second)


def _scramble(word: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """A bijection of 32-bit words in which every bit depends on every other (C. Wellons, "Prospecting for hash functions", 2018: lowbias32)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)
