"""Positions: only distances matter to rotary ones, millimetres where they are asked for, tables that stretch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.positions import gather_tokens, resize_table, rope_rotation, rotate, sincos_table, token_coordinates
from jaxseg.models.vit import ViT, ViTConfig

SMALL = {"crop": (16, 16, 16), "token": (8, 8, 4), "width": 48, "depth": 2, "heads": 2}


def vit(positions: str, **changes) -> ViT:
    return ViT(ViTConfig(**{**SMALL, "positions": positions, **changes}), rngs=nnx.Rngs(0))


def noise(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), shape)


def test_coordinates_are_distances_from_the_crop_centre():
    coordinates = token_coordinates((2, 1, 3), jnp.array([[4.0, 5.0, 6.0]]))
    np.testing.assert_allclose(coordinates[0, 0], [-2.0, 0.0, -6.0])
    np.testing.assert_allclose(coordinates[0, -1], [2.0, 0.0, 6.0])
    np.testing.assert_allclose(coordinates[0, 1] - coordinates[0, 0], [0.0, 0.0, 6.0])  # z is fastest


def test_mm_coordinates_are_in_units_of_the_scale():
    model = vit("rope_mm", rope_scale=4.0)
    coordinates = model.coordinates((2, 2, 4), jnp.array([[1.0, 0.5, 3.0]]))
    assert coordinates is not None
    np.testing.assert_allclose(coordinates[0, -1] - coordinates[0, 0], [8 * 1.0 / 4, 8 * 0.5 / 4, 3 * 4 * 3.0 / 4])


def test_rotation_is_the_closed_form():
    """With 6 channels a head there is one band of frequency 1 an axis, and pairs are (i, i + 3)."""
    at = jnp.array([[[0.3, -1.2, 2.0]]])
    turned = rotate(jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 6), rope_rotation(at, 6, 100.0))
    np.testing.assert_allclose(turned.reshape(6), [*np.cos([0.3, -1.2, 2.0]), *np.sin([0.3, -1.2, 2.0])], atol=1e-6)


def test_products_depend_on_distance_alone():
    q, k, at = noise(1, 5, 2, 20), noise(1, 5, 2, 20)[:, ::-1], noise(1, 5, 3)

    def scores(shift):
        rotation = rope_rotation(at + jnp.asarray(shift), 20, 100.0)
        return jnp.einsum("bnhd,bmhd->bhnm", rotate(q, rotation), rotate(k, rotation))

    np.testing.assert_allclose(scores([0.0, 0.0, 0.0]), scores([3.0, -2.0, 7.0]), atol=1e-5)
    assert float(jnp.abs(scores([0.0, 0.0, 0.0]) - jnp.einsum("bnhd,bmhd->bhnm", q, k)).max()) > 0.1


def test_shifting_all_tokens_leaves_the_encoder_unchanged():
    model = vit("rope_mm")
    tokens, at = noise(1, 6, 48), noise(1, 6, 3)
    moved = model.encode(tokens, at + jnp.array([5.0, -3.0, 2.0]))
    np.testing.assert_allclose(model.encode(tokens, at), moved, atol=1e-5)
    assert float(jnp.abs(model.encode(tokens, 2 * at) - moved).max()) > 1e-3


def test_spacing_matters_in_mm_and_not_by_index():
    x, fine, coarse = noise(1, 16, 16, 16, 1), jnp.ones((1, 3)), jnp.array([[1.0, 1.0, 5.0]])
    mm, index = vit("rope_mm"), vit("rope_index")
    assert float(jnp.abs(mm(x, spacing=fine) - mm(x, spacing=coarse)).max()) > 1e-3
    np.testing.assert_array_equal(index(x, spacing=fine), index(x, spacing=coarse))
    np.testing.assert_array_equal(index(x, spacing=fine), index(x))


def test_the_same_tissue_at_twice_the_spacing_has_the_same_distances():
    """Tokens of 8 voxels of 1 mm stand where tokens of 4 voxels of 2 mm stand."""
    fine, coarse = vit("rope_mm", token=(8, 8, 8)), vit("rope_mm", token=(4, 4, 4), crop=(8, 8, 8))
    ones = jnp.ones((1, 3))
    a, b = fine.coordinates((2, 2, 2), ones), coarse.coordinates((2, 2, 2), 2 * ones)
    assert a is not None and b is not None
    np.testing.assert_allclose(a, b)


def test_mm_without_spacing_is_refused():
    with pytest.raises(ShapeError, match="pass spacing"):
        vit("rope_mm")(noise(1, 16, 16, 16, 1))
    with pytest.raises(ShapeError, match=r"expected \(b, 3\)"):
        vit("rope_mm")(noise(1, 16, 16, 16, 1), spacing=jnp.ones(3))


def test_heads_too_narrow_to_rotate_are_refused():
    with pytest.raises(ConfigError, match="fewer heads"):
        vit("rope_mm", heads=12)


def test_no_positions_means_a_set():
    model = vit("none")
    tokens = noise(1, 6, 48)
    np.testing.assert_allclose(model.encode(tokens[:, ::-1], None), model.encode(tokens, None)[:, ::-1], atol=1e-5)


def test_tables_stretch_trilinearly():
    ramp = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 2, 2, 3))
    np.testing.assert_allclose(resize_table(ramp, (8, 2, 2))[1:-1, 0, 0, 0], np.arange(1, 7) / 2 - 0.25, atol=1e-6)
    assert resize_table(ramp, (4, 2, 2)) is ramp


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_sincos_equals_monai():
    pytest.importorskip("torch")
    monai = pytest.importorskip("monai.networks.blocks.pos_embed_utils")
    theirs = monai.build_sincos_position_embedding((2, 3, 4), 24).numpy()[0]
    np.testing.assert_allclose(sincos_table((2, 3, 4), 24).reshape(24, 24), theirs, atol=1e-6)


def test_gather_tokens_takes_rows_per_sample():
    values, index = noise(2, 5, 3), jnp.array([[4, 0], [1, 1]])
    np.testing.assert_array_equal(gather_tokens(values, index), np.stack([values[0][index[0]], values[1][index[1]]]))
    np.testing.assert_array_equal(gather_tokens(values[:1], index), values[0][index])


@pytest.mark.parametrize("taken", [1, 5, 12])
@pytest.mark.parametrize("lead", [1, 3])
def test_the_gradient_of_gathered_tokens_is_that_of_indexing_without_a_scatter(lead, taken):
    rng = np.random.default_rng(taken)
    values = rng.normal(size=(lead, 12, 4)).astype(np.float32)
    index = np.stack([rng.permutation(12)[:taken] for _ in range(3)])
    factor = rng.normal(size=(3, taken, 4)).astype(np.float32)
    wanted = np.zeros((3, 12, 4), np.float32)
    for sample, (places, rows) in enumerate(zip(index, factor)):
        wanted[sample, places] = rows
    wanted = wanted.sum(0, keepdims=True) if lead == 1 else wanted
    gradient = jax.grad(lambda values: jnp.sum(gather_tokens(values, index) * factor))
    np.testing.assert_allclose(gradient(values), wanted, rtol=1e-6)
    assert "scatter" not in str(jax.make_jaxpr(gradient)(values))
