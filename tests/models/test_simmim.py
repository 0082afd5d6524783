"""SimMIM: hidden voxels are not seen, every token is encoded, the loss falls on hidden voxels of the body, and it learns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.positions import gather_tokens
from jaxseg.models.simmim import SimMIM, SimMIMConfig
from jaxseg.models.vit import ViTConfig, patchify

TOKEN = (4, 4, 4)
ENCODER = ViTConfig(in_channels=2, crop=(16, 16, 8), token=TOKEN, width=24, depth=2, heads=2)
KEYS = jax.random.split(jax.random.key(5), 2)
SPACING = jnp.ones((2, 3))


def simmim(**changes) -> SimMIM:
    return SimMIM(SimMIMConfig(**{"encoder": ENCODER, **changes}), rngs=nnx.Rngs(0))


def scene() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two crops of two channels; air in a slab that cuts tokens in two; the second sample lacks its second channel."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 8, 2))
    mask = jnp.ones((2, 16, 16, 8), jnp.uint8).at[0, :6].set(0)
    return x, mask, jnp.array([[1.0, 1.0], [1.0, 0.0]])


def loss_of(model, *args):
    graph, params = nnx.split(model)
    return jax.jit(lambda params, *args: nnx.merge(graph, params).loss(*args, SPACING, KEYS))(params, *args)


@pytest.mark.parametrize("positions", ["rope_mm", "learned"])
def test_predictions_are_of_what_is_visible_and_of_nothing_else(positions):
    model = simmim(encoder=dataclasses.replace(ENCODER, positions=positions, class_token=positions == "learned"))
    x, mask, _ = scene()
    grid = model.encoder.grid_of(x)
    visible, hidden = model.draw_masks(KEYS, grid, patchify(mask[..., None], TOKEN))
    assert hidden.shape == (2, round(0.6 * 32)) and visible.shape[1] + hidden.shape[1] == 32
    predict = jax.jit(lambda patches: model.predict(patches, grid, SPACING, visible, hidden))
    patches, rows = model.encoder.patchify(x), jnp.arange(2)[:, None]
    predicted = predict(patches)
    np.testing.assert_array_equal(predicted, predict(patches.at[rows, hidden].set(99.0)))
    assert float(jnp.abs(predicted - predict(patches.at[rows, visible[:, :1]].set(9.0))).max()) > 1e-3


def test_the_loss_is_the_mean_distance_over_hidden_body_voxels_of_present_channels():
    """The closed form of the paper, eq. 2, for a head that predicts zero: the mean absolute value of the voxels it was asked for."""
    model, (x, mask, present) = simmim(), scene()
    model.head.kernel[...] = jnp.zeros_like(model.head.kernel[...])
    terms, where = loss_of(model, x, mask, present)
    total, count = terms["simmim"]
    asked = gather_tokens(patchify(mask[..., None], TOKEN), where["hidden"])[..., None] * present[:, None, None, :]
    target = gather_tokens(patchify(x * present[:, None, None, None], TOKEN), where["hidden"]).reshape(2, -1, 64, 2)
    assert float(count) == float(asked.sum()) > 0
    np.testing.assert_allclose(total, jnp.sum(jnp.abs(target) * asked), rtol=1e-5)


def test_the_mask_token_stands_at_the_hidden_tokens_places():
    """With a mask token that is the embedding of a constant patch, hiding tokens is the same as filling them with that constant."""
    model, (x, mask, _) = simmim(), scene()
    patches, grid = model.encoder.patchify(x), model.encoder.grid_of(x)
    model.mask_token[...] = model.encoder.patch(jnp.full((1, patches.shape[2]), 0.7))[0]
    visible, hidden = model.draw_masks(KEYS, grid, patchify(mask[..., None], TOKEN))
    filled = patches.at[jnp.arange(2)[:, None], hidden].set(0.7)
    tokens = model.encoder.encode(model.encoder.embed(filled, grid), model.encoder.coordinates(grid, SPACING))
    wanted = model.head(gather_tokens(tokens, hidden))
    np.testing.assert_allclose(model.predict(patches, grid, SPACING, visible, hidden), wanted, atol=1e-5)


def test_it_learns_one_crop():
    model, (x, mask, present) = simmim(), scene()
    x = jnp.broadcast_to(jnp.sin(jnp.arange(16) / 2)[None, :, None, None, None], x.shape)
    graph, params = nnx.split(model)
    optimizer = optax.adam(1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        def loss(params):
            total, count = nnx.merge(graph, params).loss(x, mask, present, SPACING, KEYS)[0]["simmim"]
            return total / count

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]
    picture, seen = nnx.merge(graph, params).reconstruct(x, KEYS, mask=mask, spacing=SPACING)
    np.testing.assert_array_equal(jnp.where(seen[..., None] == 1, picture, 0), jnp.where(seen[..., None] == 1, x, 0))


def test_settings_without_meaning_are_refused():
    with pytest.raises(ConfigError, match="mask_ratio is 1"):
        SimMIMConfig(mask_ratio=1.0)
    with pytest.raises(ConfigError, match="distance is 'l3'"):
        SimMIMConfig(distance="l3")  # pyright: ignore[reportArgumentType]
