"""Artificial lesions: layers inside each other and inside the body, sizes in mm, growth along like tissue, the signal asked for."""

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


KNOWN = {"a": (1.0, 3.0, -2.0)}


@cache
def drawn(lesions_key: str, mask_key: str = "body"):
    lesions = {
        "plain": Lesions(radius=(6.0, 12.0)),
        "known": Lesions(radius=(14.0, 14.0), spread=0.0, signal=KNOWN),
        "small": Lesions(radius=(5.0, 5.0)),
        "all core": Lesions(core=(1.0, 1.0)),
    }[lesions_key]
    mask = body() if mask_key == "body" else np.zeros(SHAPE, bool)
    return draw(lesions, np.zeros((*SHAPE, CHANNELS), np.float32), mask)


def draw(lesions, image, mask, many=MANY):
    expected = jnp.asarray(lesions.expected(("a", "b")))
    one = partial(implant, lesions=lesions, expected=expected)
    batched = jax.jit(jax.vmap(lambda key: one(jnp.asarray(image), jnp.asarray(mask), jnp.asarray(SPACING), key)))
    return [np.asarray(array) for array in batched(jax.random.split(jax.random.key(0), many))]


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
    # Margin, living and dead part are often there, and each is sometimes missing, as in true lesions.
    margin, living, dead = layers[..., 0] & ~layers[..., 1], layers[..., 2], layers[..., 1] & ~layers[..., 2]
    for part in (margin, living, dead):
        assert (part.sum((1, 2, 3)) > 0).mean() > 0.5
    assert not dead.any((1, 2, 3)).all() and not drawn("all core")[1][..., 0].sum() - drawn("all core")[1][..., 1].sum()


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


def test_signal_is_what_is_expected_by_part_and_nothing_changes_far_away():
    image, layers, _ = drawn("known")
    whole, core, living = np.moveaxis(layers, -1, 0)
    for region, signal in zip((whole & ~core, living, core & ~living), KNOWN["a"]):
        inside = ~grown(~region)
        assert inside.sum() > 20
        # Lesions differ in how much of the anatomy shines through, and in grain.
        assert np.median(image[inside][:, 0]) == pytest.approx(signal, rel=0.4)
    assert not image[..., 1].any()
    # Softened by one voxel and no more.
    assert not image[~grown(whole)].any()


def test_a_lesion_takes_the_place_of_tissue_and_lies_above_what_is_around_it():
    """A step between two tissues is gone in a dense lesion of no signal of its own: there is one mean of both."""
    image = np.zeros((*SHAPE, CHANNELS), np.float32)
    image[..., ::2, :] = 1.0  # stripes
    changed, layers, _ = draw(Lesions(radius=(14.0, 14.0), core=(1.0, 1.0), spread=0.0, tissue=0.0), image, body())
    inside = ~grown(~layers[..., 0])
    assert changed[inside].std() < 0.2 * image.std() and changed[inside].mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(changed[0][~grown(layers[..., 0])[0]], image[~grown(layers[..., 0])[0]])


def test_lesions_grow_along_tissue_like_that_at_their_centre():
    image = np.zeros((*SHAPE, CHANNELS), np.float32)
    image[12:] = 3.0  # two tissues
    shares = {}
    for tissue in (0.0, 2.0):
        _, layers, _ = draw(Lesions(radius=(9.0, 9.0), tissue=tissue), image, body(), many=32)
        sides = np.stack([layers[:, :12, ..., 0].sum((1, 2, 3)), layers[:, 12:, ..., 0].sum((1, 2, 3))])
        shares[tissue] = (sides.max(0) / sides.sum(0)).mean()
    assert shares[2.0] > shares[0.0] + 0.03 and shares[2.0] > 0.9


def test_without_a_body_nothing_is_drawn():
    image, layers, near = drawn("plain", "none")
    assert not image.any() and not layers.any() and not near.any()


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"radius": (9.0, 3.0)}, "lesions.radius is"),
        ({"radius": (0.0, 3.0)}, "lesions.radius is"),
        ({"decoder": "unet"}, "lesions.decoder is 'unet'; expected unetr or unetr_plus"),
        ({"spread": -1.0}, "lesions.spread is -1.0"),
        ({"tissue": -1.0}, "lesions.tissue is -1.0"),
        ({"near": 0.0}, "lesions.near is 0.0"),
        ({"core": (0.0, 0.5)}, "lesions.core is"),
        ({"core": (0.5, 1.5)}, "lesions.core is"),
        ({"signal": {"a": (1.0,)}}, "lesions.signal of a has 1 numbers; expected 3: margin, living, dead"),
    ],
)
def test_settings_that_make_no_lesion_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        Lesions(**settings)


def test_a_signal_for_a_channel_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="names T9; the store's channels are a, b"):
        Lesions(signal={"T9": (1.0, 0.0, 0.0)}).expected(("a", "b"))
