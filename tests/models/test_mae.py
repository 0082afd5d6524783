"""The masked autoencoder: what the encoder sees, where the loss falls, exact counts, and that it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.mae import MAE, MAEConfig
from jaxseg.models.masked_model import patch_statistics
from jaxseg.models.positions import gather_tokens
from jaxseg.models.vit import ViTConfig, patchify

TOKEN = (4, 4, 4)
ENCODER = ViTConfig(in_channels=2, crop=(16, 16, 16), token=TOKEN, width=24, depth=2, heads=2)
KEYS = jax.random.split(jax.random.key(5), 2)
ONES = jnp.ones((2, 3))


def mae(encoder: ViTConfig = ENCODER, **changes) -> MAE:
    return MAE(MAEConfig(**{"encoder": encoder, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 1, **changes}), rngs=nnx.Rngs(0))


def scene() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two crops of two channels; air in a slab that cuts tokens in two; the second sample lacks its second channel."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 16, 2))
    mask = jnp.ones((2, 16, 16, 16), jnp.uint8).at[0, :6].set(0)
    return x, mask, jnp.array([[1.0, 1.0], [1.0, 0.0]])


def patches_of(volume: jax.Array) -> np.ndarray:
    return np.asarray(patchify(volume, TOKEN))


@pytest.mark.parametrize("positions", ["rope_mm", "learned"])
def test_the_encoder_sees_visible_voxels_alone(positions):
    model = mae(ViTConfig(**{**vars(ENCODER), "positions": positions}))
    x, mask, _ = scene()
    grid = model.encoder.grid_of(x)
    visible, hidden = model.draw_masks(KEYS, grid, patchify(mask[..., None], TOKEN))

    @jax.jit
    def latent(patches):
        return model.encode_visible(patches, grid, model.encoder.coordinates(grid, ONES), visible, None)

    patches, rows = model.encoder.patchify(x), jnp.arange(2)[:, None]
    np.testing.assert_array_equal(latent(patches), latent(patches.at[rows, hidden].set(99.0)))
    assert float(jnp.abs(latent(patches) - latent(patches.at[rows, visible[:, :1]].set(99.0))).max()) > 1e-3


def test_visible_tokens_alone_equal_the_whole_crop_when_all_attend_to_themselves():
    """Visible tokens keep their own coordinates: with all of them visible, in any order, the encoder is the plain ViT."""
    model, (x, _, _) = mae(), scene()
    grid, order = model.encoder.grid_of(x), jnp.stack([jax.random.permutation(key, 64) for key in KEYS])
    shuffled = model.encode_visible(model.encoder.patchify(x), grid, model.encoder.coordinates(grid, ONES), order, None)
    np.testing.assert_allclose(shuffled, gather_tokens(model(x, spacing=ONES), order), atol=1e-5)


@pytest.mark.parametrize("norm_target", [False, True])
def test_the_loss_falls_on_hidden_body_voxels_of_present_channels_alone(norm_target):
    model, (x, mask, present) = mae(norm_target=norm_target), scene()
    terms, where = model.loss(x, mask, present, ONES, KEYS)
    hidden = np.zeros((2, 64, 1), np.float32)
    np.put_along_axis(hidden[..., 0], np.asarray(where["hidden"]), 1, axis=1)
    weight = hidden[..., None] * patches_of(mask[..., None])[..., None] * np.asarray(present)[:, None, None]
    assert float(terms["mae"][1]) == weight.sum()
    # Against a prediction held still, the gradient of the loss by the scan is what the loss is computed from.
    predicted = jnp.ones((2, 48, 128))
    model.predict = lambda *_: predicted  # type: ignore[method-assign]
    slope = jax.grad(lambda x: model.loss(x, mask, present, ONES, KEYS)[0]["mae"][0])(x)
    touched = patches_of(slope).reshape(2, 64, 64, 2) != 0
    assert not touched[weight == 0].any()
    if not norm_target:  # normalised, a voxel can leave the loss unmoved: deviations of a patch's mean cancel
        assert touched[weight > 0].all()


def test_the_loss_is_the_closed_form():
    for distance, expected in (("l2", 9.0), ("l1", 3.0)):
        model, (_, mask, present) = mae(distance=distance), scene()
        model.predict = lambda *_: jnp.full((2, 48, 128), 1.0)  # type: ignore[method-assign]
        total, count = model.loss(jnp.full((2, 16, 16, 16, 2), 4.0), mask, present, ONES, KEYS)[0]["mae"]
        assert total.dtype == count.dtype == jnp.float32
        np.testing.assert_allclose(total / count, expected, rtol=1e-6)


def test_an_absent_channel_is_not_seen():
    model, (x, mask, present) = mae(), scene()
    loss = jax.jit(lambda x: model.loss(x, mask, present, ONES, KEYS)[0]["mae"][0])
    np.testing.assert_array_equal(loss(x), loss(x.at[1, ..., 1].set(7.0)))
    np.testing.assert_array_equal(loss(x), loss(x.at[1, ..., 1].set(jnp.nan)))
    assert float(loss(x)) != float(loss(x.at[0, ..., 1].set(7.0)))


def test_channels_that_are_not_those_of_the_image_are_refused():
    model, (x, mask, present) = mae(), scene()
    with pytest.raises(ShapeError, match="has 1 channels and `present` 2"):
        model.loss(x[..., :1], mask, present, ONES, KEYS)


def test_counts_are_exact_and_know_no_parameters():
    model, (x, _, _) = mae(predict=0.5, mask_ratio=0.6), scene()
    terms, where = model.loss(x, jnp.ones((2, 16, 16, 16)), jnp.ones((2, 2)), ONES, KEYS)
    assert where["visible"].shape == (2, 26) and where["hidden"].shape == (2, 19)  # round(0.6 * 64) = 38 hidden, half of them predicted
    assert float(terms["mae"][1]) == 2 * 19 * 64 * 2
    graph, params = nnx.split(model)
    slope = jax.grad(lambda p: nnx.merge(graph, p).loss(x, jnp.ones((2, 16, 16, 16)), jnp.ones((2, 2)), ONES, KEYS)[0]["mae"][1])(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(slope))


def test_a_crop_of_air_counts_nothing_and_stays_finite():
    model, (x, _, present) = mae(norm_target=True), scene()
    total, count = model.loss(x, jnp.zeros((2, 16, 16, 16), jnp.uint8), present, ONES, KEYS)[0]["mae"]
    assert float(total) == float(count) == 0.0


def test_each_sample_has_its_own_mask_whatever_its_place_in_the_batch():
    model, (x, mask, present) = mae(), scene()
    loss = jax.jit(lambda *batch: model.loss(*batch)[0]["mae"])
    both = loss(x, mask, present, ONES, KEYS)
    alone = [loss(x[i : i + 1], mask[i : i + 1], present[i : i + 1], ONES[:1], KEYS[i : i + 1]) for i in (0, 1)]
    np.testing.assert_allclose(both, np.sum(alone, axis=0), rtol=1e-5)


def test_patch_statistics_leave_air_out():
    target = jnp.array([1.0, 3.0, 100.0]).reshape(1, 1, 3, 1)
    mean, deviation = patch_statistics(target, jnp.array([1.0, 1.0, 0.0]).reshape(1, 1, 3, 1))
    np.testing.assert_allclose([mean.item(), deviation.item()], [2.0, 1.0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm_target", [False, True])
def test_it_overfits_one_crop_and_the_picture_shows_it(norm_target):
    axes = jnp.linspace(0, 6, 16)
    x = (jnp.sin(axes)[:, None, None] + jnp.cos(axes)[None, :, None] + 0 * axes)[None, ..., None]
    encoder = ViTConfig(crop=(16, 16, 16), token=TOKEN, width=48, depth=2, heads=2, positions="rope_index")
    model = mae(encoder, decoder_width=48, norm_target=norm_target, decoder_heads=2)
    graph, params = nnx.split(model)
    optimizer = optax.adam(3e-3)
    key = KEYS[:1]

    def loss(params):
        total, count = nnx.merge(graph, params).loss(x, jnp.ones(x.shape[:4]), jnp.ones((1, 1)), None, key)[0]["mae"]
        return total / count

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(80):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]
    picture, seen = nnx.merge(graph, params).reconstruct(x, key)
    assert seen.shape == x.shape[:4] and float(seen.mean()) == 0.25
    np.testing.assert_array_equal(picture[seen == 1], x[seen == 1])
    error = jnp.square(picture - x)[seen == 0].mean()
    assert 0 < float(error) < 0.15 * float(jnp.var(x))


def test_drop_path_changes_training_alone():
    model, (x, mask, present) = mae(ViTConfig(**{**vars(ENCODER), "drop_path": 0.5})), scene()
    losses = {float(model.loss(x, mask, present, ONES, jax.random.split(jax.random.key(seed), 2))[0]["mae"][0]) for seed in (1, 2)}
    assert len(losses) == 2
    np.testing.assert_array_equal(model.reconstruct(x, KEYS, spacing=ONES)[0], model.reconstruct(x, KEYS, spacing=ONES)[0])


@pytest.mark.parametrize(
    "wrong", [{"mask_ratio": 1.0}, {"predict": 0.0}, {"mask_unit": (0, 1, 1)}, {"mask_blocks": 0.7, "mask_slabs": 0.7}]
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MAEConfig(**wrong)
