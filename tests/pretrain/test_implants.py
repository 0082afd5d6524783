"""Artificial lesions: layers inside each other and inside the body, sizes in mm, the signal that was asked for, nothing without a body."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import ConfigError
from pretrain.implants import Lesions, implant

SHAPE, CHANNELS, MANY = (24, 24, 16), 2, 16
SPACING = np.array([2, 2, 3], np.float32)


def body():
    mask = np.zeros(SHAPE, bool)
    mask[4:, :, :] = True
    return mask


@cache
def drawn(lesions_key: str, mask_key: str = "body"):
    lesions = {
        "plain": Lesions(radius=(6.0, 12.0)),
        "known": Lesions(radius=(20.0, 20.0), spread=0.0, signal={"a": (1.0, 2.0, -4.0)}),
        "small": Lesions(radius=(5.0, 5.0)),
    }[lesions_key]
    mask = body() if mask_key == "body" else np.zeros(SHAPE, bool)
    expected = jnp.asarray(lesions.expected(("a", "b")))
    one = partial(implant, lesions=lesions, expected=expected)
    draw = jax.jit(jax.vmap(lambda key: one(jnp.zeros((*SHAPE, CHANNELS)), jnp.asarray(mask), jnp.asarray(SPACING), key)))
    return [np.asarray(array) for array in draw(jax.random.split(jax.random.key(0), MANY))]


def grown(region):
    """With every neighbour of each voxel."""
    return np.any([np.roll(region, tuple(i - 1 for i in index), (1, 2, 3)) for index in np.ndindex(3, 3, 3)], axis=0)


def test_layers_lie_in_each_other_in_the_body_and_near():
    _, layers, near = drawn("plain")
    assert layers.shape == (MANY, *SHAPE, 3)
    assert (layers[..., 1] <= layers[..., 0]).all() and (layers[..., 2] <= layers[..., 1]).all()
    assert not layers[:, ~body()].any() and not near[:, ~body()].any()
    assert (layers[..., 0].sum((1, 2, 3)) > 0).all()
    assert (near.sum((1, 2, 3)) > layers[..., 0].sum((1, 2, 3))).all()
    # Rim, middle and core: a third layer that is never there would teach nothing.
    assert (layers[..., 2].sum((1, 2, 3)) > 0).mean() > 0.5


def test_samples_differ_and_a_key_gives_the_same_again():
    image, layers, _ = drawn("plain")
    assert len({array.tobytes() for array in layers}) == MANY
    drawn.cache_clear()
    np.testing.assert_array_equal(image, drawn("plain")[0])


def test_the_size_is_in_millimetres():
    _, layers, _ = drawn("small")
    volume = layers[..., 0].sum((1, 2, 3)) * SPACING.prod()
    sphere = 4 / 3 * np.pi * 5.0**3
    assert 0.4 * sphere < np.median(volume) < 2 * sphere


def test_signal_is_what_is_expected_by_layer_and_nothing_changes_far_away():
    image, layers, _ = drawn("known")
    whole, solid, core = np.moveaxis(layers, -1, 0)
    for region, change in ((whole & ~solid, 1.0), (solid & ~core, 3.0), (core, -1.0)):
        inside = ~grown(~region)
        assert inside.sum() > 20
        assert image[inside][:, 0].mean() == pytest.approx(change, abs=0.5)
    assert not image[..., 1].any()
    # Softened by one voxel and no more.
    assert not image[~grown(whole)].any()


def test_without_a_body_nothing_is_drawn():
    image, layers, near = drawn("plain", "none")
    assert not image.any() and not layers.any() and not near.any()


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"radius": (9.0, 3.0)}, "lesions.radius is"),
        ({"radius": (0.0, 3.0)}, "lesions.radius is"),
        ({"spread": -1.0}, "lesions.spread is -1.0"),
        ({"near": 0.0}, "lesions.near is 0.0"),
        ({"signal": {"a": (1.0,)}}, "lesions.signal of a has 1 numbers; expected 3"),
    ],
)
def test_settings_that_make_no_lesion_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        Lesions(**settings)


def test_a_signal_for_a_channel_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="names T9; the store's channels are a, b"):
        Lesions(signal={"T9": (1.0, 0.0, 0.0)}).expected(("a", "b"))
