"""Every form of attention is the formula, in value and gradient; memory grows with the tokens; accelerators get no CPU form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.models import attention as forms
from jaxseg.models.attention import attention, blockwise_attention
from jaxseg.models.switches import fast_paths


def draw(b, n, m, heads, d, dtype=jnp.float32):
    """Queries, keys, values and a weight for each number of the answer; sharp scores, as trained heads have them."""
    rng = np.random.default_rng(n + m + d)
    q, k, v, g = (rng.normal(size=(b, tokens, heads, d)) for tokens in (n, m, m, n))
    return tuple(jnp.asarray(a, dtype) for a in (3 * q, k, v, g))


def formula(q, k, v, g, bias=None):
    """softmax(q kᵀ / √d) v and its gradients by the chain rule, in float64."""
    q, k, v, g = (np.asarray(a, np.float64) for a in (q, k, v, g))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    if bias is not None:
        scores += np.tile(bias, (len(q) // len(bias), 1, 1, 1))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    slope = np.einsum("bnhd,bmhd->bhnm", g, v)
    slope = weights * (slope - (weights * slope).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    out = np.einsum("bhnm,bmhd->bnhd", weights, v)
    gradients = np.einsum("bhnm,bmhd->bnhd", slope, k), np.einsum("bhnm,bnhd->bmhd", slope, q), np.einsum("bhnm,bnhd->bmhd", weights, g)
    return out, *gradients


def value_and_gradients(form, q, k, v, g):
    def all_four(q, k, v):
        out, pull = jax.vjp(form, q, k, v)
        return out, *pull(g)

    return jax.jit(all_four)(q, k, v)


def close(found, wanted, tolerance):
    for ours, exact in zip(found, wanted, strict=True):
        ours = np.asarray(ours, np.float64)
        assert ours.shape == exact.shape
        assert np.abs(ours - exact).max() <= tolerance * np.abs(exact).max()


SIZES = [(2, 53, 53, 3, 24), (1, 512, 512, 2, 64), (1, 1000, 1000, 1, 72), (1, 1, 7, 2, 40), (2, 30, 1100, 1, 32)]
SETTINGS = {"fast": {}, "blockwise": {"attention_tokens": 0}, "off": {"attention": False}}


@pytest.mark.parametrize(("name", "size"), [*(("fast", s) for s in SIZES[:4]), *(("blockwise", s) for s in SIZES[2:]), ("off", SIZES[0])])
def test_each_form_is_the_formula_in_value_and_gradients(name, size):
    arrays = draw(*size)
    with fast_paths(**SETTINGS[name]):
        close(value_and_gradients(attention, *arrays), formula(*arrays), 1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_keeps_its_type_and_sums_in_float32(name):
    arrays = draw(1, 600, 600, 1, 48, jnp.bfloat16)
    with fast_paths(**SETTINGS[name]):
        found = value_and_gradients(attention, *arrays)
    assert {a.dtype for a in found} == {jnp.dtype(jnp.bfloat16)}
    close(found, formula(*arrays), 2**-6)


def test_scores_of_any_size_stay_finite():
    q, k, v, g = draw(1, 600, 600, 1, 8)
    winner = jnp.argmax(jnp.einsum("nd,md->nm", q[0, :, 0], k[0, :, 0]), -1)
    for form in (attention, partial(blockwise_attention, block=70)):
        found = value_and_gradients(form, 1e6 * q, k, v, g)
        assert all(np.isfinite(a).all() for a in found)
        np.testing.assert_allclose(found[0], v[:, winner], atol=1e-5, err_msg="one key takes all the weight: the answer is its value")


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("allowed", [True, False])
def test_a_bias_belongs_to_every_wth_row_of_the_batch(windows, allowed):
    q, k, v, g = draw(6, 27, 27, 2, 24)
    bias = 2 * np.random.default_rng(0).normal(size=(windows, 2, 27, 27)).astype(np.float32)
    with fast_paths(attention=allowed):
        found = value_and_gradients(partial(attention, bias=jnp.asarray(bias)), q, k, v, g)
    close(found, formula(q, k, v, g, bias), 1e-5)


def peak(tokens, **setting):
    """Temporary bytes of the gradient of one attention."""
    shape = jax.ShapeDtypeStruct((1, tokens, 2, 24), jnp.float32)
    with fast_paths(**setting):
        gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v) ** 2), (0, 1, 2)))
        return gradient.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_tokens_where_there_are_many():
    small, middle, large = (peak(tokens, attention_tokens=1024) for tokens in (2048, 4096, 8192))
    assert middle / small < 2.1 and large / middle < 2.1
    squared = [peak(tokens) for tokens in (1024, 2048)]
    assert squared[1] / squared[0] > 3.5, "at once: with the square of the tokens"
    assert small < squared[1]


def test_where_there_are_many_pairs_a_head_s_weights_are_held_alone():
    def needed(heads):
        shape = jax.ShapeDtypeStruct((1, 512, heads, 24), jnp.float32)
        gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v) ** 2), (0, 1, 2)))
        return gradient.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert needed(12) - needed(4) < 8 * 512 * 512 * 4, "eight heads more, and no eight further squares of the tokens"


def test_stacked_layers_keep_nothing_for_forms_that_are_not_chosen():
    """The forms save values of equal shapes for their derivatives; else a scan would stack those of each form, layer by layer."""

    def needed(form):
        def run(x, w):
            layer = lambda x, w: (x + form(*jnp.einsum("bnhd,cde->cbnhe", x, w)), None)
            return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)

        shapes = jax.ShapeDtypeStruct((1, 256, 2, 24), jnp.float32), jax.ShapeDtypeStruct((8, 3, 24, 24), jnp.float32)
        return jax.jit(jax.grad(run)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    chosen = partial(blockwise_attention, block=64)
    among_others = partial(jax.lax.platform_dependent, cpu=chosen, default=partial(blockwise_attention, block=256))
    assert needed(among_others) <= 1.02 * needed(chosen)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowered_for_accelerators_it_never_holds_all_weights(platform, dtype):
    shape = jax.ShapeDtypeStruct((1, 2048, 2, 64), dtype)
    gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v).astype(jnp.float32)), (0, 1, 2)))
    text = gradient.trace(shape, shape, shape).lower(lowering_platforms=(platform,)).as_text()
    assert "2048x2048" not in text
    assert "2048x2048" in gradient.lower(shape, shape, shape).as_text()
    inputs = [line.split(":")[-1].split("->")[0] for line in text.splitlines() if "dot_general" in line]
    assert len(inputs) == 2 + 5
    assert all(line.count("xbf16>") == (2 if dtype == jnp.bfloat16 else 0) for line in inputs), (
        "matrix units want half precision on both sides"
    )


def test_cudnn_takes_half_precision_with_heads_of_a_multiple_of_eight(monkeypatch):
    monkeypatch.setattr(forms, "_has_cudnn", lambda: True)
    fits = {(d, dtype): forms._fits_cudnn(jnp.zeros((1, 1, 1, d), dtype)) for d in (24, 60, 72, 256) for dtype in ("bfloat16", "float32")}
    assert {key for key, answer in fits.items() if answer} == {(24, "bfloat16"), (72, "bfloat16")}


@pytest.mark.parametrize("across", [lambda f: f, jax.checkpoint, jax.vmap, jax.pmap], ids=["plain", "remat", "vmap", "pmap"])
def test_cudnn_is_in_the_program_for_cuda_forward_and_backward(monkeypatch, across):
    """Traced with the check of cuDNN's version answered, which needs the library; the program cannot run here."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(forms, "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91300)
    outer = (2, 1) if across in (jax.vmap, jax.pmap) else (1,)
    shape = jax.ShapeDtypeStruct((*outer, 512, 2, 72), jnp.bfloat16)
    gradient = across(jax.grad(lambda q, k, v: jnp.sum((attention(q, k, v) * q).astype(jnp.float32)), (0, 1, 2)))
    text = jax.jit(gradient).trace(shape, shape, shape).lower(lowering_platforms=("cuda",)).as_text()
    assert "fmhaSoftmax" in text and "fmhaSoftmaxBackward" in text
    assert "512x512" not in text


def test_head_by_head_under_vmap_and_pmap():
    many = draw(4, 400, 400, 1, 8)  # head by head
    for across in (jax.vmap, jax.pmap):
        found = across(attention)(*(a.reshape(2, 2, *a.shape[1:]) for a in many[:3]))
        close([found.reshape(many[0].shape)], formula(*many)[:1], 1e-5)


def test_under_vmap_remat_and_pmap():
    q, k, v, g = draw(4, 40, 40, 2, 24)
    wanted = formula(q, k, v, g)
    with fast_paths(attention_tokens=0):
        halves = [a.reshape(2, 2, *a.shape[1:]) for a in (q, k, v)]
        close([jax.vmap(attention)(*halves).reshape(q.shape)], wanted[:1], 1e-5)
        close([jax.pmap(attention)(*halves).reshape(q.shape)], wanted[:1], 1e-5)
        close(value_and_gradients(jax.checkpoint(attention), q, k, v, g), wanted, 1e-5)
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = jax.P("data")
        split = jax.shard_map(attention, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows)
        close(value_and_gradients(split, q, k, v, g), wanted, 1e-5)
