"""Augmentation: what each transform must do to a crop, and that a sample never depends on its neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data.augment import IGNORE, Augment, augment
from jaxseg.data.resample import affine_coordinates, blur_matrix, coarse_matrix, sample_linear, sample_nearest, separable
from jaxseg.errors import ConfigError

run = jax.jit(augment, static_argnums=2)
INTENSITY = ("noise", "blur", "brightness", "contrast", "coarse", "gamma")


def only(**changes) -> Augment:
    return dataclasses.replace(Augment.none(), **changes)


def keys_of(n: int, seed: int = 0) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def ball(shape=(20, 22, 18), radius=6.0, offset=(2, -1, 1)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"), -1)
    return (np.linalg.norm((grid - offset) * (1, 1.3, 0.8), axis=-1) < radius).astype(np.uint8)


def make_batch(b=3, shape=(20, 22, 18), channels=2, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.stack([np.roll(ball(shape), k, 0) * (k + 1) for k in range(b)]).astype(np.uint8)
    return {
        "image": rng.normal(size=(b, *shape, channels)).astype(np.float16),
        "label": label,
        "mask": np.ones((b, *shape), np.uint8),
        "present": np.ones((b, channels), np.float32),
        "spacing": np.tile(np.float32([1.0, 1.0, 2.5]), (b, 1)),
        "air": np.full((b, channels), -3.0, np.float32),
        "id": np.arange(b, dtype=np.int32),
    }


def test_none_changes_nothing_but_the_dtype():
    batch = make_batch()
    out = run(batch, keys_of(3), Augment.none())
    assert out["image"].dtype == jnp.float32
    for name, array in batch.items():
        np.testing.assert_array_equal(np.asarray(out[name], array.dtype), array)


@pytest.mark.parametrize("preset", [Augment.default(), Augment.light()], ids=["default", "light"])
def test_presets_keep_shapes_dtypes_and_the_label_set(preset):
    batch = make_batch()
    sure = dataclasses.replace(preset, affine=1.0)
    out = run(batch, keys_of(3), sure)
    assert out["image"].shape == batch["image"].shape and out["image"].dtype == jnp.float32
    assert out["label"].dtype == jnp.uint8 and out["mask"].dtype == jnp.uint8
    assert bool(jnp.isfinite(out["image"]).all())
    for k in range(3):
        assert set(np.unique(out["label"][k])) <= {0, k + 1, IGNORE}
    np.testing.assert_array_equal(np.asarray(out["label"]) == IGNORE, np.asarray(out["mask"]) == 0)


def test_a_sample_does_not_depend_on_its_neighbours():
    batch, keys, config = make_batch(), keys_of(3), dataclasses.replace(Augment.default(), affine=1.0)
    together = run(batch, keys, config)
    others = make_batch(seed=5)
    swapped = {name: np.concatenate([array[:1], others[name][1:]]) for name, array in batch.items()}
    beside_others = run(swapped, jnp.concatenate([keys[:1], keys_of(5, seed=9)[3:]]), config)
    for name in ("image", "label", "mask"):
        np.testing.assert_array_equal(together[name][0], beside_others[name][0])
    alone = run({name: array[:1] for name, array in batch.items()}, keys[:1], config)
    # Another batch size is another program, which may round positions and powers differently.
    np.testing.assert_allclose(alone["image"][0], together["image"][0], atol=5e-5)
    np.testing.assert_array_equal(alone["label"][0], together["label"][0])
    assert np.abs(np.asarray(together["image"][0]) - np.asarray(together["image"][1])).max() > 0.1


def test_a_batch_spread_over_devices_gives_the_same():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    batch, keys, config = make_batch(b=4, shape=(8, 8, 8)), keys_of(4), only(affine=0.5, flip=(0.5, 0.5, 0.5))
    expected = run(batch, keys, config)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("data",))
    out = run(*jax.device_put((batch, keys), jax.sharding.NamedSharding(mesh, jax.P("data"))), config)
    np.testing.assert_allclose(out["image"], expected["image"], atol=5e-5)
    np.testing.assert_array_equal(out["label"], expected["label"])


def test_flips_are_exact_and_move_image_label_and_mask_together():
    batch = make_batch()
    batch["mask"] = batch["label"].copy()
    batch["image"] = batch["label"][..., None].astype(np.float16) * np.float16([1, 2])
    out = run(batch, keys_of(3), only(flip=(1.0, 0.0, 1.0)))
    for name in ("image", "label", "mask"):
        np.testing.assert_array_equal(np.asarray(out[name]), batch[name][:, ::-1, :, ::-1].astype(out[name].dtype))


def test_flips_are_drawn_per_axis_and_sample():
    batch = {name: np.repeat(array[:1], 256, 0) for name, array in make_batch(shape=(3, 2, 2)).items()}
    batch["image"] = np.tile(np.arange(12).reshape(3, 2, 2, 1).astype(np.float16), (256, 1, 1, 1, 2))
    out = np.asarray(run(batch, keys_of(256), only(flip=(0.5, 0.25, 0.0)))["image"][..., 0])
    first = out[:, 0, 0, 0].astype(int)
    # The corner's value tells the flips: 0, 8 (x), 2 (y), 10 (both).
    assert set(first) == {0, 8, 2, 10}
    assert abs(np.isin(first, (8, 10)).mean() - 0.5) < 0.12 and abs(np.isin(first, (2, 10)).mean() - 0.25) < 0.12


def test_image_and_label_move_together():
    batch = make_batch(shape=(32, 32, 32))
    batch["label"] = np.minimum(batch["label"], 1)
    batch["image"] = np.repeat(batch["label"][..., None], 2, -1).astype(np.float16)
    batch["air"][:] = 0
    out = run(batch, keys_of(3), only(affine=1.0, flip=(0.5, 0.5, 0.5)))
    label, image = np.asarray(out["label"]) == 1, np.asarray(out["image"])[..., 0] > 0.5
    dice = 2 * (label & image).sum((1, 2, 3)) / (label.sum((1, 2, 3)) + image.sum((1, 2, 3)))
    assert dice.min() > 0.95
    moved = 2 * (label & (batch["label"] == 1)).sum() / (label.sum() + batch["label"].sum())
    assert moved < 0.9


def test_outside_the_rotated_crop_lies_air_that_is_ignored():
    out = run(make_batch(), keys_of(3), only(affine=1.0, scale=(0.5, 0.6)))
    outside = np.asarray(out["mask"]) == 0
    assert 0.3 < outside.mean() < 0.95
    np.testing.assert_array_equal(np.asarray(out["image"])[outside], -3.0)


def test_rotation_is_rigid_in_millimetres():
    # A ball in mm on voxels of 1 x 1 x 2.5 mm stays the same ball when it is turned about its centre; in voxels it would be smeared.
    spacing = np.float32([1.0, 1.0, 2.5])
    shape = (40, 40, 16)
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)], indexing="ij"), -1)
    image = 1 / (1 + np.exp(np.linalg.norm(grid, axis=-1) - 12))
    where, inside = affine_coordinates(shape, jnp.asarray(spacing), jnp.float32([0.7, -0.4, 0.9]), jnp.float32(1.0))
    turned = np.where(inside, sample_linear(jnp.asarray(image[..., None], jnp.float32), where)[..., 0], image)
    assert np.abs(turned - image).max() < 0.12
    wrong, _ = affine_coordinates(shape, jnp.ones(3), jnp.float32([0.7, -0.4, 0.9]), jnp.float32(1.0))
    assert np.abs(np.asarray(sample_linear(jnp.asarray(image[..., None], jnp.float32), wrong)[..., 0]) - image).max() > 0.5


def test_scale_magnifies():
    out = run(
        {**make_batch(), "label": np.stack([ball(offset=(0, 0, 0), radius=4)] * 3)},
        keys_of(3),
        only(affine=1.0, rotation=(0, 0, 0), scale=(1.5, 1.5)),
    )
    before = ball(offset=(0, 0, 0), radius=4).sum()
    assert abs((np.asarray(out["label"][0]) == 1).sum() / before / 1.5**3 - 1) < 0.12


def test_quarter_turn_equals_rot90():
    image = np.random.default_rng(1).normal(size=(9, 9, 9, 2)).astype(np.float32)
    where, inside = affine_coordinates((9, 9, 9), jnp.ones(3), jnp.float32([0, 0, np.pi / 2]), jnp.float32(1.0))
    assert bool(inside.all())
    np.testing.assert_allclose(sample_linear(jnp.asarray(image), where), np.rot90(image, -1, (0, 1)), atol=1e-4)
    np.testing.assert_array_equal(sample_nearest(jnp.asarray(image[..., 0]), where), np.rot90(image[..., 0], -1, (0, 1)))


def test_linear_sampling_equals_scipy():
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(2)
    image = rng.normal(size=(7, 6, 5, 2)).astype(np.float32)
    where = rng.uniform(0, 1, (4, 5, 6, 3)).astype(np.float32) * np.float32([6, 5, 4])
    expected = np.stack([map_coordinates(image[..., c], np.moveaxis(where, -1, 0), order=1) for c in range(2)], -1)
    np.testing.assert_allclose(sample_linear(jnp.asarray(image), jnp.asarray(where)), expected, atol=1e-5)
    corner = jnp.float32([[[[6, 5, 4]]]])
    np.testing.assert_array_equal(sample_linear(jnp.asarray(image), corner)[0, 0, 0], image[-1, -1, -1])


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_transforms_leave_label_mask_and_missing_channels_alone(name):
    batch = make_batch()
    batch["present"][1, 1] = 0
    batch["image"][1, ..., 1] = 0
    out = run(batch, keys_of(3), only(**{name: 1.0}))
    np.testing.assert_array_equal(out["label"], batch["label"])
    np.testing.assert_array_equal(out["mask"], batch["mask"])
    image = np.asarray(out["image"])
    assert (image[1, ..., 1] == 0).all()
    assert np.abs(image[0] - batch["image"][0]).max() > 1e-3


def test_affine_leaves_missing_channels_at_zero():
    batch = make_batch()
    batch["present"][:, 0] = 0
    assert not np.asarray(run(batch, keys_of(3), only(affine=1.0, noise=1.0))["image"])[..., 0].any()


@pytest.mark.parametrize("name", INTENSITY)
def test_constant_images_stay_finite(name):
    batch = make_batch()
    batch["image"][:] = 2
    assert bool(jnp.isfinite(run(batch, keys_of(3), only(**{name: 1.0}))["image"]).all())


def test_gamma_keeps_mean_and_deviation_and_contrast_keeps_range():
    batch = make_batch()
    before = batch["image"].astype(np.float32)
    out = np.asarray(run(batch, keys_of(3), only(gamma=1.0))["image"])
    np.testing.assert_allclose(out.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(out.std((1, 2, 3)), before.std((1, 2, 3)), rtol=1e-3)
    order = np.argsort(before[0, ..., 0].ravel())
    assert (np.diff(out[0, ..., 0].ravel()[order]) > -1e-4).all()
    out = np.asarray(run(batch, keys_of(3), only(contrast=1.0, contrast_factor=(1.25, 1.25)))["image"])
    assert (out.max((1, 2, 3)) <= before.max((1, 2, 3)) + 1e-6).all() and (out.min((1, 2, 3)) >= before.min((1, 2, 3)) - 1e-6).all()


def test_noise_has_the_deviation_asked_for():
    batch = make_batch(b=4)
    batch["image"][:] = 0
    out = np.asarray(run(batch, keys_of(4), only(noise=1.0, noise_std=(0.2, 0.2)))["image"])
    np.testing.assert_allclose(out.std((1, 2, 3)), 0.2, rtol=0.05)


def test_blur_equals_scipy_and_keeps_constants():
    from scipy.ndimage import gaussian_filter

    image = np.zeros((21, 21, 21), np.float32)
    image[10, 9, 11] = 1
    out = separable(jnp.asarray(image[..., None]), [blur_matrix(21, jnp.float32(1.2))] * 3)[..., 0]
    np.testing.assert_allclose(out, gaussian_filter(image, 1.2, truncate=6), atol=1e-6)
    np.testing.assert_allclose(separable(jnp.ones((5, 6, 7, 1)), [blur_matrix(n, jnp.float32(2.0)) for n in (5, 6, 7)]), 1, atol=1e-6)


def test_coarse_matrix_is_the_identity_at_full_resolution_and_holds_every_second_voxel_at_half():
    np.testing.assert_allclose(coarse_matrix(9, jnp.float32(1.0)), np.eye(9), atol=1e-6)
    half = np.asarray(coarse_matrix(12, jnp.float32(0.5)))
    np.testing.assert_allclose(half.sum(1), 1, atol=1e-6)
    assert len(np.flatnonzero(half.sum(0))) == 6


def test_works_without_labels_and_without_air():
    batch = make_batch()
    del batch["label"], batch["air"]
    out = run(batch, keys_of(3), only(affine=1.0, scale=(0.5, 0.6), flip=(1.0, 1.0, 1.0)))
    assert "label" not in out and (np.asarray(out["image"])[np.asarray(out["mask"]) == 0] == 0).all()


def test_probability_is_the_share_of_samples_changed():
    batch = {name: np.repeat(array[:1], 200, 0) for name, array in make_batch(shape=(4, 4, 4)).items()}
    out = np.asarray(run(batch, keys_of(200), only(brightness=0.3))["image"])
    changed = (np.abs(out - batch["image"]) > 0).any((1, 2, 3, 4)).mean()
    assert 0.2 < changed < 0.4


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform):
    text = run.trace(make_batch(), keys_of(3), Augment.default()).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo" in text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"affine": 1.5}, "probability"),
        ({"flip": (1, 2, 0)}, "axis"),
        ({"scale": (0.0, 1.0)}, "above 0"),
        ({"gamma_power": (2.0, 1.0)}, "lowest"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        only(**change)
