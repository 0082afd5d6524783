"""NT-Xent equals its formula written out, and views are parts of the crop that fit and overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models import ViTConfig
from jaxseg.models.sample_keys import CORNERS, keys_for
from jaxseg.models.simclr import SimCLR, SimCLRConfig, draw_corners, nt_xent

ENCODER = ViTConfig(crop=(8, 8, 4), token=(2, 2, 2), width=12, depth=1, heads=1)


def written_out(features, valid, temperature):
    """Equation 1 for every feature in turn; the views of sample k lie at 2 k and 2 k + 1."""
    losses = []
    for i in range(len(features)):
        j = i ^ 1
        if not (valid[i] and valid[j]):
            continue
        others = [k for k in range(len(features)) if k != i and valid[k]]
        scores = np.exp([features[i] @ features[k] / temperature for k in others])
        losses.append(-np.log(np.exp(features[i] @ features[j] / temperature) / scores.sum()))
    return sum(losses), len(losses)


@pytest.mark.parametrize("blank", [(), (2, 3), (1,)])
def test_nt_xent_is_the_formula(blank):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    valid = np.array([i not in blank for i in range(8)])
    valid &= valid.reshape(4, 2).all(1).repeat(2)  # as the objective says it: a sample counts with both views
    place = np.arange(8)
    known, own = jnp.asarray(features), jnp.asarray(place)
    total, count = nt_xent(known, known, own, own ^ 1, jnp.asarray(valid), 0.3)
    expected, number = written_out(features, valid, 0.3)
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(count) == number


def test_a_device_that_answers_for_its_own_gives_its_part_of_the_sum():
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(8, 5)))
    place, valid = jnp.arange(8), jnp.ones(8, bool)
    whole = nt_xent(features, features, place, place ^ 1, valid, 0.5)[0]
    parts = [nt_xent(features[i : i + 4], features, place[i : i + 4], place[i : i + 4] ^ 1, valid, 0.5)[0] for i in (0, 4)]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_views_fit_in_the_crop_and_lie_everywhere_in_it():
    config = SimCLRConfig(encoder=ENCODER)
    assert config.view == (6, 6, 4)
    corners = np.asarray(draw_corners(jax.random.split(jax.random.key(0), 200), ENCODER.crop, config.view))
    assert [set(corners[:, axis]) for axis in range(3)] == [{0, 1, 2}, {0, 1, 2}, {0}]


def test_features_have_length_one_and_forget_what_lies_outside_the_view():
    model, keys = SimCLR(SimCLRConfig(encoder=ENCODER), rngs=nnx.Rngs(0)), jax.random.split(jax.random.key(1), 2)
    x, mask = jax.random.normal(jax.random.key(2), (2, 8, 8, 4, 1)), jnp.ones((2, 8, 8, 4))
    features, valid = model.features(x, mask, None if ENCODER.positions != "rope_mm" else jnp.ones((2, 3)), keys)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert valid.all()
    corner = np.asarray(draw_corners(keys_for(keys, CORNERS), (8, 8, 4), (6, 6, 4)))
    outside = np.ones((2, 8, 8, 4, 1), bool)
    for sample, (i, j, k) in enumerate(corner):
        outside[sample, i : i + 6, j : j + 6, k : k + 4] = False
    changed, empty = model.features(jnp.where(outside, 9.0, x), jnp.asarray(outside[..., 0]), jnp.ones((2, 3)), keys)
    np.testing.assert_array_equal(changed, features)
    assert not empty.any()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="part is 0.2"):
        SimCLRConfig(part=0.2)
    with pytest.raises(ConfigError, match="temperature is 0"):
        SimCLRConfig(temperature=0)
