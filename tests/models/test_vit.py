"""The ViT against MONAI's own, and the switches that must not change its numbers."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.layers import survival
from jaxseg.models.vit import ViT, ViTConfig, patchify, unpatchify

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {"crop": (16, 16, 16), "token": (8, 8, 4), "width": 48, "depth": 3, "heads": 2}


def vit(**changes) -> ViT:
    return ViT(ViTConfig(**{**SMALL, **changes}), rngs=nnx.Rngs(0))


def image(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def run(model: ViT, x: jax.Array, **kwargs):
    graph, params = nnx.split(model)
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x, **kwargs))(params, x)


def load(model: ViT, arrays: dict[str, np.ndarray]) -> ViT:
    graph, params = nnx.split(model)
    named = {
        ".".join(str(getattr(step, "key", getattr(step, "name", ""))) for step in path[:-1])
        for path, _ in jax.tree.leaves_with_path(params)
    }
    assert named == set(arrays)
    return nnx.merge(graph, jax.tree.map_with_path(lambda path, old: _named(path, old, arrays), params))


def _named(path, old: jax.Array, arrays: dict[str, np.ndarray]) -> jax.Array:
    new = arrays[".".join(str(getattr(step, "key", getattr(step, "name", ""))) for step in path[:-1])]
    assert new.shape == old.shape, path
    return jnp.asarray(new)


def golden_module():
    spec = importlib.util.spec_from_file_location("make_vit", GOLDEN / "make_vit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classic() -> ViT:
    config = ViTConfig.classic(in_channels=2, crop=(16, 16, 24), token=(8, 8, 8), width=24, depth=3, heads=2, mlp_ratio=2.0)
    return ViT(config, rngs=nnx.Rngs(0))


def test_equals_monai_golden():
    with np.load(GOLDEN / "vit_monai.npz") as archive:
        golden = dict(archive)
    x = golden.pop("image").astype(np.float32)
    output, state_1 = golden.pop("output"), golden.pop("state_1")
    ours, taps = run(load(classic(), golden), jnp.asarray(x), taps=(1,))
    np.testing.assert_allclose(ours, output, atol=1e-5 * np.abs(output).max())
    np.testing.assert_allclose(taps[0], state_1, atol=1e-5 * np.abs(state_1).max())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("embed", ["conv", "perceptron"])
def test_equals_monai(embed):
    pytest.importorskip("torch")
    pytest.importorskip("monai")
    golden = golden_module()
    theirs = golden.monai_vit(embed, seed=3)
    x = np.asarray(image(2, 16, 16, 24, 2))
    output, states = golden.run(theirs, x)
    model = load(classic(), golden.arrays_in_our_layout(theirs.state_dict(), embed=embed, depth=3, crop=golden.CROP, token=golden.TOKEN))
    ours, taps = run(model, jnp.asarray(x), taps=(1, 2, 3))
    for mine, peer in zip([ours, *taps], [output, *states]):
        np.testing.assert_allclose(mine, peer, atol=1e-5 * np.abs(peer).max())


def test_scan_equals_a_python_loop():
    model, x, spacing = vit(), image(2, 16, 16, 16, 1), jnp.ones((2, 3))
    grid = model.grid_of(x)
    tokens, rotation = model.embed(model.patchify(x), grid), model.positions.rotation(model.coordinates(grid, spacing))
    states = []
    for i in range(3):
        block = jax.tree.map(lambda a, i=i: a[i], model.blocks)
        tokens = block(tokens, rotation)
        states.append(tokens)
    output, taps = run(model, x, spacing=spacing, taps=(1, 3))
    np.testing.assert_allclose(output, model.norm(tokens), atol=2e-5)
    np.testing.assert_allclose(taps[0], states[0], atol=2e-5)
    np.testing.assert_allclose(taps[1], states[2], atol=2e-5)


def test_what_is_recomputed_in_the_backward_pass_is_a_choice_that_changes_no_gradient():
    x, spacing = image(2, 16, 16, 16, 1), jnp.ones((2, 3))
    gradients, kept = [], []
    for again in ({}, {"remat": True, "remat_keep": "products"}, {"remat": True}):
        graph, params = nnx.split(vit(**again))
        loss = lambda p, graph=graph: (nnx.merge(graph, p)(x, spacing=spacing) ** 2).mean()
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params))))
    assert kept[0] > 1.2 * kept[1] and kept[1] > 1.2 * kept[2]
    for plain, *others in zip(*gradients):
        for other in others:
            np.testing.assert_allclose(plain, other, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    x, spacing = image(1, 16, 16, 16, 1), jnp.ones((1, 3))
    exact, model = vit(), vit(dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))
    program = str(jax.make_jaxpr(lambda x: model(x, spacing=spacing))(x))
    assert "bf16" in program and "bf16" not in str(jax.make_jaxpr(lambda x: exact(x, spacing=spacing))(x))
    # exp is the softmax's and rsqrt LayerNorm's: both stay in float32.
    assert ":f32" in next(line for line in program.splitlines() if " = exp " in line)
    assert ":f32" in next(line for line in program.splitlines() if " = rsqrt " in line)
    output = run(model, x, spacing=spacing)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), run(exact, x, spacing=spacing), atol=0.1)


@pytest.mark.parametrize("positions", ["rope_mm", "learned", "sincos"])
def test_other_sizes_than_the_crop(positions):
    output = run(vit(positions=positions), image(1, 16, 24, 8, 1), spacing=jnp.ones((1, 3)))
    assert output.shape == (1, 2 * 3 * 2, 48) and bool(jnp.isfinite(output).all())


def test_registers_are_not_returned_and_matter():
    x, spacing = image(1, 16, 16, 16, 1), jnp.ones((1, 3))
    model = vit(registers=2)
    output, taps = run(model, x, spacing=spacing, taps=(2,))
    assert output.shape == taps[0].shape == (1, 16, 48)
    model.registers[...] = image(2, 48)
    assert float(jnp.abs(run(model, x, spacing=spacing) - output).max()) > 1e-3


def test_drop_path_is_per_sample_and_off_without_a_key():
    model, x, spacing = vit(drop_path=0.5), image(1, 16, 16, 16, 1).repeat(3, 0), jnp.ones((3, 3))
    keys = jax.random.split(jax.random.key(0), 3).at[2].set(jax.random.key(9)).at[1].set(jax.random.key(7)).at[0].set(jax.random.key(7))
    first, second, third = run(model, x, spacing=spacing, key=keys)
    np.testing.assert_array_equal(first, second)
    assert float(jnp.abs(first - third).max()) > 1e-3
    np.testing.assert_allclose(run(model, x, spacing=spacing), run(vit(), x, spacing=spacing), atol=1e-6)


def test_drop_path_rates_grow_with_depth_and_keep_the_mean():
    factors = survival(jax.random.split(jax.random.key(0), 4000), 3, 0.4)
    np.testing.assert_allclose((factors == 0).mean((1, 2)), [0.0, 0.2, 0.4], atol=0.02)
    np.testing.assert_allclose(factors.mean((1, 2)), 1.0, atol=0.03)


def test_patchify_orders_voxels_as_said():
    x = jnp.arange(2 * 4 * 4 * 6 * 3.0).reshape(2, 4, 4, 6, 3)
    patches = patchify(x, (2, 4, 3))
    assert patches.shape == (2, 4, 72)
    np.testing.assert_array_equal(patches[1, 3], x[1, 2:4, :, 3:6].reshape(-1))  # token (1, 0, 1) of a (2, 1, 2) grid
    np.testing.assert_array_equal(unpatchify(patches, (2, 1, 2), (2, 4, 3)), x)


def test_errors_say_what_fits():
    model = vit()
    with pytest.raises(ShapeError, match=r"expected \(b, x, y, z, 1\)"):
        model(image(1, 16, 16, 16, 2), spacing=jnp.ones((1, 3)))
    with pytest.raises(ShapeError, match=r"tokens of \(8, 8, 4\)"):
        model(image(1, 16, 16, 18, 1), spacing=jnp.ones((1, 3)))
    with pytest.raises(ConfigError, match="between 1 and"):
        model(image(1, 16, 16, 16, 1), spacing=jnp.ones((1, 3)), taps=(4,))
    with pytest.raises(ConfigError, match="multiple of token"):
        ViTConfig(crop=(20, 16, 16), token=(8, 8, 8))
    with pytest.raises(ConfigError, match="heads"):
        ViTConfig(width=100, heads=12)
