"""Masks: exact numbers, whole units, one key per sample."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import ShapeError
from jaxseg.models import masking
from jaxseg.models.masking import visible_count

draw = partial(jax.jit, static_argnums=(1, 2), static_argnames=("unit", "blocks", "slabs", "body_first"))(masking.draw)


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def seen(visible: jax.Array, grid: tuple[int, int, int]) -> np.ndarray:
    volume = np.zeros((visible.shape[0], int(np.prod(grid))), bool)
    np.put_along_axis(volume, np.asarray(visible), True, axis=1)
    return volume.reshape(-1, *grid)


@pytest.mark.parametrize(("grid", "ratio"), [((6, 6, 6), 0.75), ((5, 3, 7), 0.6), ((1, 1, 2), 0.1), ((4, 4, 1), 0.99)])
def test_numbers_are_exact_and_every_token_is_on_one_side(grid, ratio):
    visible, hidden = draw(keys(3), grid, ratio)
    tokens = int(np.prod(grid))
    assert visible.shape[1] == visible_count(tokens, ratio) and visible.shape[1] + hidden.shape[1] == tokens
    np.testing.assert_array_equal(jnp.sort(jnp.concatenate([visible, hidden], 1)), np.tile(np.arange(tokens), (3, 1)))


def test_visible_tokens_are_whole_units_but_one():
    visible, _ = draw(keys(20), (6, 6, 6), 0.75)  # 54 visible tokens: 6 units of 8, and 6 tokens of a seventh
    per_unit = seen(visible, (6, 6, 6)).reshape(20, 3, 2, 3, 2, 3, 2).sum((2, 4, 6)).reshape(20, 27)
    np.testing.assert_array_equal(np.sort(per_unit)[:, -8:], [[0, 6, 8, 8, 8, 8, 8, 8]] * 20)


def test_units_that_do_not_divide_the_grid_are_cut_at_either_side():
    """A row of 3 tokens in units of 2 is cut as 2 + 1 or as 1 + 2, so that each token is alone in some masks and paired in others."""
    visible, _ = draw(keys(300), (3, 1, 1), 2 / 3, unit=(2, 1, 1))
    assert visible.shape == (300, 1)
    assert set(np.asarray(visible).ravel()) == {0, 1, 2}


def test_every_token_is_visible_equally_often():
    visible, _ = draw(keys(3000), (4, 4, 4), 0.75)
    np.testing.assert_allclose(seen(visible, (4, 4, 4)).mean(0), 0.25, atol=0.04)


def test_slabs_run_through_the_crop():
    volume = seen(draw(keys(30), (8, 8, 8), 0.75, slabs=1.0)[0], (8, 8, 8))  # one slab of two planes is visible
    whole = [volume.all(axis=tuple(a for a in (1, 2, 3) if a != axis)).sum(1) for axis in (1, 2, 3)]
    np.testing.assert_array_equal(np.sum(whole, axis=0), 2)
    assert all((count > 0).any() for count in whole)


def test_blocks_are_twice_as_large():
    volume = seen(draw(keys(10), (8, 8, 8), 0.75, blocks=1.0)[0], (8, 8, 8))
    per_block = volume.reshape(10, 2, 4, 2, 4, 2, 4).sum((2, 4, 6)).reshape(10, 8)
    np.testing.assert_array_equal(np.sort(per_block)[:, -3:], [[0, 64, 64]] * 10)


def test_kinds_are_mixed_by_their_probabilities():
    volume = seen(draw(keys(400), (8, 8, 8), 0.75, blocks=0.5)[0], (8, 8, 8))
    per_block = volume.reshape(400, 2, 4, 2, 4, 2, 4).sum((2, 4, 6)).reshape(400, 8)
    assert 0.4 < (np.sort(per_block)[:, -2] == 64).mean() < 0.6


def test_a_sample_depends_on_its_own_key_alone():
    many, few = draw(keys(3000), (4, 4, 4), 0.75), draw(keys(3000)[2:3], (4, 4, 4), 0.75)
    np.testing.assert_array_equal(many[0][2], few[0][0])
    np.testing.assert_array_equal(many[1][2], few[1][0])
    assert not np.array_equal(many[0][0], many[0][1])


def test_air_is_hidden_last_in_line_and_visible_last():
    body = jnp.arange(64)[None].repeat(50, 0) < 40
    visible, hidden = draw(keys(50), (4, 4, 4), 0.75, body=body)
    in_body = np.take_along_axis(np.asarray(body), np.asarray(hidden), 1)
    assert (np.diff(in_body.astype(int), axis=1) <= 0).all()  # body first, then air
    assert (np.asarray(visible) >= 40).any()
    assert (np.asarray(draw(keys(50), (4, 4, 4), 0.75, body=body, body_first=True)[0]) < 40).all()


def test_one_token_cannot_be_masked():
    with pytest.raises(ShapeError, match="smaller tokens"):
        draw(keys(1), (1, 1, 1), 0.75)
