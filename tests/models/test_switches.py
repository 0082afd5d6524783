"""Speed never changes results: a peer's stored numbers come out with every fast path on, off, and with many small blocks of attention."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models import attention
from jaxseg.models.switches import FastPaths, allowed, fast_paths
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.vit import ViT, ViTConfig
from jaxseg.zoo.convert.monai_unetr import convert_unetr
from jaxseg.zoo.names import param_shapes, unflatten_params

GOLDEN = Path(__file__).parents[1] / "golden"
OFF = {"attention": False, "convolution": False, "norm": False, "product": False}
SMALL = ViTConfig(in_channels=2, crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2, positions="none")


@pytest.fixture
def blocks_of_five_keys(monkeypatch):
    """A CPU takes attention block by block, and the blocks are so small that a few tokens need several."""
    monkeypatch.setattr(attention, "_BLOCK", 5)
    with fast_paths(attention_tokens=0):
        yield


def test_stored_logits_of_a_unetr_with_fast_paths_off():
    """With them on: `test_unetr.py`, from the same file."""
    spec = importlib.util.spec_from_file_location("make_unetr", GOLDEN / "make_unetr.py")
    assert spec and spec.loader
    golden = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    case = golden.CASES["conv"]
    config, arrays = convert_unetr(golden.make_state(case), heads=case.heads, crop=case.size)
    graph, params = nnx.split(nnx.eval_shape(lambda: UNETR(config, rngs=nnx.Rngs(0))))
    with fast_paths(**OFF):
        logits = jax.jit(lambda params, x: nnx.merge(graph, params)(x))(unflatten_params(params, arrays), golden.make_image(case))
    wanted = np.load(golden.FILE)["conv"]
    assert np.abs(logits[:, ::2, ::2, ::2] - wanted).max() <= 1e-5 * np.ptp(wanted)


def stored_vit_is_met():
    with np.load(GOLDEN / "vit_monai.npz") as archive:
        golden = dict(archive)
    x, output, _ = (jnp.asarray(golden.pop(name), jnp.float32) for name in ("image", "output", "state_1"))
    arrays = {name: array for name, array in golden.items() if not name.startswith("blocks.")}
    for name in golden.keys() - arrays.keys():
        arrays |= {name.replace("blocks.", f"blocks.{i}."): array for i, array in enumerate(golden[name])}
    config = ViTConfig.classic(in_channels=2, crop=(16, 16, 24), token=(8, 8, 8), width=24, depth=3, heads=2, mlp_ratio=2.0)
    graph, params = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))
    found = jax.jit(lambda params, x: nnx.merge(graph, params)(x))(unflatten_params(params, arrays), x)
    np.testing.assert_allclose(found, output, atol=1e-5 * np.abs(output).max())


def test_stored_tokens_of_a_vit_with_fast_paths_off():
    with fast_paths(**OFF):
        stored_vit_is_met()


def test_stored_tokens_of_a_vit_block_by_block(blocks_of_five_keys):
    stored_vit_is_met()


def gradients(**setting):
    """Of a small UNETR with every array drawn from numpy."""
    graph, params = nnx.split(nnx.eval_shape(lambda: UNETR(UNETRConfig(SMALL, feature=2, stride=2), rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for name, shape in param_shapes(params).items()}
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 8, 2)), jnp.float32)
    with fast_paths(**setting):
        found = jax.jit(jax.grad(lambda params: jnp.sum(nnx.merge(graph, params)(x) ** 2)))(unflatten_params(params, draw))
    return jax.tree.leaves(found)


def test_gradients_of_a_unetr_are_the_same_on_and_off():
    for fast, plain in zip(gradients(), gradients(**OFF), strict=True):
        np.testing.assert_allclose(fast, plain, atol=2e-5 * np.abs(plain).max())


def test_what_is_not_named_stays_and_everything_comes_back():
    assert allowed() == FastPaths()
    with fast_paths(attention=False), fast_paths(convolution=False, attention_tokens=7) as inner:
        assert inner == allowed() == FastPaths(attention=False, convolution=False, attention_tokens=7)
        with pytest.raises(ConfigError, match="attention_tokens is -1"), fast_paths(attention_tokens=-1):
            pass
    assert allowed() == dataclasses.replace(inner, attention=True, convolution=True, attention_tokens=4096)


def test_the_environment_turns_fast_paths_off_for_a_whole_command(monkeypatch):
    monkeypatch.setenv("JAXSEG_PLAIN", "attention, norm")
    assert allowed() == FastPaths(attention=False, norm=False)
    with fast_paths(norm=True):
        assert allowed() == FastPaths(attention=False)
    monkeypatch.setenv("JAXSEG_PLAIN", "all")
    assert allowed() == FastPaths(**OFF)
    monkeypatch.setenv("JAXSEG_PLAIN", "")
    assert allowed() == FastPaths()


def test_a_name_in_the_environment_that_is_no_fast_path(monkeypatch):
    monkeypatch.setenv("JAXSEG_PLAIN", "atention")
    with pytest.raises(ConfigError, match="JAXSEG_PLAIN names atention; expected all, or some of attention, convolution, norm, product"):
        allowed()


def test_what_the_environment_turns_off_is_not_in_the_program(monkeypatch):
    def program():
        return str(jax.make_jaxpr(lambda q: attention.attention(q, q, q))(jnp.ones((1, 8, 1, 8))))

    with fast_paths(**OFF):
        plain = program()
    assert program() != plain
    monkeypatch.setenv("JAXSEG_PLAIN", "all")
    assert program() == plain
