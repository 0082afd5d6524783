"""The overlap of a part with the parts of a grid is that of voxels counted one by one, and cosines of it are what the loss asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ShapeError
from jaxseg.models import ViTConfig
from jaxseg.models.places import Places, PlacesConfig, draw_origins, grid_corners, overlaps, position_loss
from jaxseg.models.projected import cut_parts
from jaxseg.models.sample_keys import CORNERS, keys_for

SIDE = (4, 2, 3)


def test_overlaps_are_counted_voxels():
    origin = np.asarray(draw_origins(jax.random.split(jax.random.key(0), 40), SIDE))
    assert (origin >= 0).all() and (origin <= SIDE).all() and (origin.max(0) == SIDE).all() and (origin.min(0) == 0).all()
    part = np.zeros((8, 4, 6), np.int32)
    for number, corner in enumerate(grid_corners(SIDE)):
        part[tuple(slice(c, c + s) for c, s in zip(corner, SIDE))] = number
    found = np.asarray(cut_parts(jnp.broadcast_to(part, (40, *part.shape)), jnp.asarray(origin), SIDE)).reshape(40, -1)
    counted = np.stack([(found == number).mean(1) for number in range(8)], 1)
    np.testing.assert_allclose(overlaps(jnp.asarray(origin), SIDE), counted, atol=1e-6)


def test_the_losses_are_equations_3_and_5_of_the_paper(monkeypatch):
    """Written out for every part in turn, with features that are given; the first grid part of the second sample is air."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(2, 9, 4))
    given /= np.linalg.norm(given, axis=-1, keepdims=True)
    monkeypatch.setattr(Places, "features", lambda *_: jnp.asarray(given))
    model = Places(PlacesConfig(encoder=ViTConfig(crop=(8, 4, 6), token=(4, 2, 3), width=12, depth=1, heads=1)), rngs=nnx.Rngs(0))
    keys, mask = jax.random.split(jax.random.key(3), 2), np.ones((2, 8, 4, 6))
    mask[1, :4, :2, :3] = 0
    terms = model.loss(jnp.zeros((2, 8, 4, 6, 1)), jnp.asarray(mask), None, keys)
    shares, position, apart = np.asarray(overlaps(draw_origins(keys_for(keys, CORNERS), SIDE), SIDE)), [], []
    for sample in range(2):
        parts = range(sample, 8)
        for i in parts:
            likeness = max(0.0, given[sample, 0] @ given[sample, 1 + i])
            position.append(-np.log(1 - abs(shares[sample, i] - likeness)))
            apart += [max(0.0, given[sample, 1 + i] @ given[sample, 1 + j]) ** 2 for j in parts if j > i]
    for name, values in (("position", position), ("apart", apart)):
        assert float(terms[name][0]) == pytest.approx(sum(values), rel=1e-4)
        assert float(terms[name][1]) == len(values)


@pytest.mark.parametrize("likeness", [1.0, 1.0 + 3e-4])
def test_a_cosine_rounded_to_more_than_one_is_no_nan(likeness):
    """As matrix units that round float32 (TF32, bfloat16) give it; weighed by 0, where the part is air, a NaN would spoil the batch all the same."""
    loss, slope = jax.value_and_grad(lambda x: position_loss(jnp.zeros((1, 1)), x).sum())(jnp.full((1, 1), likeness))
    assert float(loss) == pytest.approx(-np.log(1e-6), rel=1e-3)
    assert np.isfinite(slope)


def test_a_sample_that_does_not_split_in_two_is_refused():
    model = Places(PlacesConfig(encoder=ViTConfig(crop=(24, 16, 16), token=(8, 8, 8), width=24, depth=1, heads=2)), rngs=nnx.Rngs(0))
    with pytest.raises(ShapeError, match="do not split in two"):
        model.loss(jnp.zeros((1, 24, 16, 16, 1)), jnp.ones((1, 24, 16, 16)), None, jax.random.split(jax.random.key(0), 1))
