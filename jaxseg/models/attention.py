"""Multi-head attention: one function that chooses its form by platform, type and number of tokens. Called by `layers`, `eva` and `swin`.

Arrays are `(b, tokens, heads, d)`. The choice falls when a program is lowered, so one for a GPU or TPU can be made on any machine. cuDNN alone is
asked for when a program is traced: without JAX's CUDA packages on that machine a program for CUDA is blockwise.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.models import switches

_BLOCK = 512
"""Keys that are looked at together where there are many: the largest array then has b * heads * tokens * this many numbers."""

_ALONE = 1 << 17
"""From so many pairs of a query and a key a CPU computes one head after the other: its weights then stay in a core's cache."""

Sums = tuple[Array, Array, Array]
"""Of the keys so far, for each query: the sum of exp(score - largest), the largest score, and the sum of exp(score - largest) v."""


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    bias: Float[Array, "w h n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d + bias) v per head, the softmax and all sums in float32, the answer in the type of `v`.

    With CUDA, half-precision heads of a multiple of 8 numbers (up to 128) go to cuDNN through `jax.nn.dot_product_attention`. Everything else
    is blockwise, with memory linear in the tokens, in training too; a CPU takes one block of all keys up to `FastPaths.attention_tokens`, and
    then one head at a time where there are many pairs, which is faster. First derivatives in reverse mode only.

    Args:
        bias: added to the scores; row i of the batch gets number i % w (windows of an image, one after the other). As it is as large as
            the scores, they are computed at once on every platform.
    """
    setting = switches.allowed()
    if not setting.attention:
        return _plain(q, k, v, bias)
    if bias is not None:
        return _biased(q, k, v, bias)
    many = partial(blockwise_attention, block=_BLOCK)
    pairs = q.shape[1] * k.shape[1]
    cpu = partial(blockwise_attention, block=k.shape[1], apart=pairs >= _ALONE) if pairs <= setting.attention_tokens**2 else many
    return lax.platform_dependent(q, k, v, cpu=cpu, cuda=_fused if _fits_cudnn(q) else many, default=many)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def blockwise_attention(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], block: int, apart: bool = False
) -> Float[Array, "b n h d"]:
    """`attention` to at most `block` keys at a time, with a running maximum and sum; backward computes each block's weights again.

    With `apart` one head of one sample comes after the other, and there is one block.

    Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135 (their tiles; here XLA's operations). Inside, batch and heads are one
    leading axis and the division by the sum comes after the product with v: on CPU the gradient takes half of the time or less of that of
    `jax.nn.dot_product_attention`. What is kept for the derivative has the shapes of what cuDNN keeps, so that a program in which JAX chooses
    between the two keeps nothing for the other.
    """
    return _forward(q, k, v, block, apart)[0]


def _forward(q: Array, k: Array, v: Array, block: int, apart: bool) -> tuple[Array, tuple[Array, ...]]:
    (b, n, h, _), rows = q.shape, _heads(q * q.shape[-1] ** -0.5)
    if apart or block >= k.shape[1]:
        total, largest, mixed = _of_heads(_look, apart, rows, _heads(k), _heads(v))
    else:
        nothing = _zeros(rows)
        start = (nothing[..., :1], nothing[..., :1] - jnp.inf, nothing)
        total, largest, mixed = lax.scan(lambda sums, each: (_merge(sums, _look(rows, *each)), None), start, _blocks(k, v, block))[0]
    out = _tokens(mixed / total, q).astype(v.dtype)
    return out, (q, k, v, out, (largest + jnp.log(total)).reshape(b, h, n))


def _look(rows: Array, keys: Array, values: Array, real: Array | None = None) -> Sums:
    scores = _scores(rows, keys, real)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    return weights.sum(-1, keepdims=True), largest, _product(weights, values, 2, 1)


def _merge(sums: Sums, more: Sums) -> Sums:
    largest = jnp.maximum(sums[1], more[1])
    old, new = jnp.exp(sums[1] - largest), jnp.exp(more[1] - largest)
    return sums[0] * old + more[0] * new, largest, sums[2] * old + more[2] * new


def _backward(block: int, apart: bool, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_total = saved
    scale = q.shape[-1] ** -0.5
    rows, slopes = _heads(q * scale), _heads(gradient)
    log_total = log_total.reshape(*rows.shape[:2], 1)
    dot = (slopes.astype(jnp.float32) * _heads(out)).sum(-1, keepdims=True)
    queries = rows, slopes, log_total, dot
    if apart or block >= k.shape[1]:
        dq, dk, dv = _of_heads(_slopes, apart, *queries, _heads(k), _heads(v))
    else:

        def step(dq: Array, blocks: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            more, dk, dv = _slopes(*queries, *blocks)
            return dq + more, (dk, dv)

        dq, parts = lax.scan(step, _zeros(rows), _blocks(k, v, block))
        dk, dv = (part.swapaxes(0, 1).reshape(len(rows), -1, part.shape[-1])[:, : k.shape[1]] for part in parts)
    return _tokens(dq * scale, q).astype(q.dtype), _tokens(dk, k), _tokens(dv, v)


def _slopes(
    rows: Array, slopes: Array, log_total: Array, dot: Array, keys: Array, values: Array, real: Array | None = None
) -> tuple[Array, Array, Array]:
    """The gradients of the queries (float32, what these keys add to them), of the keys and of the values."""
    weights = jnp.exp(_scores(rows, keys, real) - log_total)
    dv = _summed_over_queries(weights, slopes)
    change = weights * (_product(slopes, values, 2, 2) - dot)
    dk = _summed_over_queries(change, rows)
    return _product(change, keys, 2, 1), dk.astype(keys.dtype), dv.astype(values.dtype)


blockwise_attention.defvjp(_forward, _backward)


def _of_heads(function: Callable[..., tuple[Array, ...]], apart: bool, *arrays: Array) -> tuple[Array, ...]:
    """`function` of arrays `(b * h, …)`: of all heads together, or of one head after the other."""
    if not apart:
        return function(*arrays)
    return jax.tree.map(lambda each: each[:, 0], lax.map(lambda each: function(*(array[None] for array in each)), arrays))


def _blocks(k: Array, v: Array, block: int) -> tuple[Array, Array, Array]:
    """Keys and values `(blocks, b * h, size, d)`, the last block filled up with zeros, and which of them are real."""
    m = k.shape[1]
    count = -(-m // block)
    size = -(-m // count)
    k, v = (jnp.pad(_heads(a), ((0, 0), (0, count * size - m), (0, 0))) for a in (k, v))
    k, v = (a.reshape(len(a), count, size, -1).swapaxes(0, 1) for a in (k, v))
    return k, v, jnp.arange(count * size).reshape(count, size) < m


def _heads(a: Array) -> Array:
    """`(b, n, h, d)` as `(b * h, n, d)`."""
    return a.swapaxes(1, 2).reshape(-1, a.shape[1], a.shape[3])


def _tokens(a: Array, like: Array) -> Array:
    """The inverse of `_heads`, for an array of the shape of `like`."""
    b, n, h, d = like.shape
    return a.reshape(b, h, n, d).swapaxes(1, 2)


def _zeros(rows: Array) -> Array:
    # Made of the queries, so that inside of a `shard_map` they vary over devices as these do; where a query is not finite, nor is its answer.
    return 0 * rows.astype(jnp.float32)


def _scores(rows: Array, keys: Array, real: Array | None) -> Array:
    scores = _product(rows, keys, 2, 2)
    return scores if real is None else jnp.where(real, scores, -jnp.inf)


def _product(left: Array, right: Array, axis: int, other: int) -> Array:
    """A product over these axes in the type of `right`, with float32 sums: matrix units multiply half precision although the softmax is float32."""
    axes = (((axis,), (other,)), ((0,), (0,)))
    return lax.dot_general(left.astype(right.dtype), right, axes, preferred_element_type=jnp.float32)


def _summed_over_queries(pairs: Array, rows: Array) -> Array:
    """`pairsᵀ rows`, for every head."""
    return lax.platform_dependent(pairs, rows, cpu=_rows_turned, default=partial(_product, axis=1, other=1))


def _rows_turned(pairs: Array, rows: Array) -> Array:
    # XLA's CPU backend is slow where its left factor is turned, and would turn the larger one: it sees neither of these two transposes.
    turned = lax.optimization_barrier(rows.swapaxes(1, 2))
    return lax.optimization_barrier(_product(turned, pairs, 2, 1)).swapaxes(1, 2)


def _biased(q: Array, k: Array, v: Array, bias: Array) -> Array:
    (b, n, h, _), m = q.shape, k.shape[1]
    scores = _scores(_heads(q * q.shape[-1] ** -0.5), _heads(k), None).reshape(-1, len(bias), h, n, m) + bias
    scores = scores.reshape(b * h, n, m)
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    return _tokens(_product(weights, _heads(v), 2, 1) / weights.sum(-1, keepdims=True), q).astype(v.dtype)


def _plain(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    if bias is not None:
        bias = jnp.tile(bias, (q.shape[0] // len(bias), 1, 1, 1))
    return jax.nn.dot_product_attention(q, k, v, bias, implementation="xla")


def _fused(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _fits_cudnn(q: Array) -> bool:
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and _has_cudnn()


@cache
def _has_cudnn() -> bool:
    """Whether JAX has cuDNN's attention here (it asks its library when a program is traced) and no GPU of this process is older than Ampere."""
    head = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(_fused, head, head, head)
    except RuntimeError:  # "cuDNN is not detected", or too old a one
        return False
    return all(float(device.compute_capability) >= 8 for device in jax.local_devices() if device.platform == "gpu")
