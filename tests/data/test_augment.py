"""Augmentation: what each transform must do to a crop, and that a sample never depends on its neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import as_json, from_json
from jaxseg.data import resample
from jaxseg.data.augment import IGNORE, Augment, augment
from jaxseg.data.augment.field import smooth_field
from jaxseg.data.augment.spatial import draw_motion
from jaxseg.data.augment.white_noise import random_bits, white_noise
from jaxseg.data.resample import affine_coordinates, blur_matrix, coarse_matrix, sample_linear, sample_nearest, separable
from jaxseg.errors import ConfigError, ShapeError

run = jax.jit(augment, static_argnums=2)
INTENSITY = ("bias", "noise", "blur", "brightness", "contrast", "coarse", "gamma")


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
    batch, keys = make_batch(shape=(10, 12, 9)), keys_of(3)
    config = dataclasses.replace(Augment.default(), affine=1.0, elastic=0.5, bias=0.5, channel_share=0.5)
    together = run(batch, keys, config)
    others = make_batch(shape=(10, 12, 9), seed=5)
    swapped = {name: np.concatenate([array[:1], others[name][1:]]) for name, array in batch.items()}
    beside_others = run(swapped, jnp.concatenate([keys[:1], keys_of(5, seed=9)[3:]]), config)
    for name in ("image", "label", "mask"):
        np.testing.assert_array_equal(together[name][0], beside_others[name][0])
    alone = run({name: array[:1] for name, array in batch.items()}, keys[:1], config)
    # Another batch size is another program, which may round positions and powers differently.
    np.testing.assert_allclose(alone["image"][0], together["image"][0], atol=5e-5)
    np.testing.assert_array_equal(alone["label"][0], together["label"][0])
    assert np.abs(np.asarray(together["image"][0]) - np.asarray(together["image"][1])).max() > 0.1


def test_samples_in_turn_give_what_they_give_at_once():
    batch, keys = make_batch(b=8, shape=(9, 10, 11)), keys_of(8, seed=3)
    config = dataclasses.replace(Augment.nnunet(), elastic=0.4, bias=0.4, noise=0.5, contrast=0.5, brightness=0.5, flip=(0.5, 0.0, 0.5))
    config = dataclasses.replace(config, spacing_jitter=(0.8, 1.1))
    by = jax.jit(augment, static_argnums=2, static_argnames="one_by_one")
    at_once, in_turn = (by(batch, keys, config, one_by_one=each) for each in (False, True))
    assert set(in_turn) == set(batch) and int(in_turn["id"][5]) == 5
    np.testing.assert_allclose(in_turn["image"], at_once["image"], atol=5e-5)
    np.testing.assert_allclose(in_turn["spacing"], at_once["spacing"], rtol=1e-6)
    for name in ("label", "mask"):
        assert in_turn[name].dtype == at_once[name].dtype
        np.testing.assert_array_equal(in_turn[name], at_once[name])
    assert np.abs(at_once["image"] - batch["image"]).max() > 0.5


def test_alone_on_a_cpu_samples_are_augmented_in_turn(monkeypatch):
    batch, keys, config = make_batch(b=2, shape=(6, 6, 6)), keys_of(2), only(flip=(0.5, 0.5, 0.5))
    lowered = [jax.jit(augment, static_argnums=2).trace(batch, keys, config).lower(lowering_platforms=("cpu",)).as_text()]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    again = jax.jit(lambda *arrays: augment(*arrays, config))
    lowered += [again.trace(batch, keys).lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")]
    at_once, in_turn, on_gpu = (text.count("stablehlo.reverse") for text in lowered)
    # At once, arrays are mirrored along three axes, one after the other; one sample alone takes one of seven mirrored copies.
    assert at_once == on_gpu < in_turn


def test_a_batch_spread_over_devices_gives_the_same():
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    batch, keys, config = make_batch(b=4, shape=(8, 8, 8)), keys_of(4), only(affine=0.5, elastic=0.5, flip=(0.5, 0.5, 0.5), blur=0.5)
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


@pytest.mark.parametrize("shape", [(7, 5, 6), (1, 4, 1)])
def test_separable_operators_by_planes_equal_the_whole(shape):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*shape, 3)).astype(np.float32)
    matrices = [rng.normal(size=(n + 2 - axis, n)).astype(np.float32) for axis, n in enumerate(shape)]
    expected = np.einsum("ax,by,cz,xyzk->abck", *matrices, image)
    for form in (separable, resample._separable_by_planes, resample._separable_whole):
        found = form(image, matrices) if form is separable else form(image, *matrices)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_linear_sampling_equals_scipy():
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(2)
    image = rng.normal(size=(7, 6, 5, 2)).astype(np.float32)
    where = rng.uniform(0, 1, (4, 5, 6, 3)).astype(np.float32) * np.float32([6, 5, 4])
    expected = np.stack([map_coordinates(image[..., c], np.moveaxis(where, -1, 0), order=1) for c in range(2)], -1)
    np.testing.assert_allclose(sample_linear(jnp.asarray(image), tuple(jnp.moveaxis(where, -1, 0))), expected, atol=1e-5)
    corner = tuple(jnp.full((1, 1, 1), place, jnp.float32) for place in (6, 5, 4))
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


def test_white_noise_is_normal_and_neither_places_nor_keys_know_of_each_other():
    """Bounds are four to five deviations of what truly independent numbers do; keys are those that samples get."""
    shape, keys = (40, 30, 20, 3), jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(32))
    noise = np.asarray(jax.jit(jax.vmap(lambda key: white_noise(key, shape)))(keys), np.float64).reshape(len(keys), -1)
    n = noise[0].size
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and np.abs(noise.mean(1)).max() < 4.5 / np.sqrt(n)
    assert noise.var() == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size) + 2e-4)
    assert (noise**4).mean() == pytest.approx(3, abs=0.02)
    # Places beside each other along every axis, and words one after the other of which each holds two numbers.
    for lag in (1, 2, 3, 60, 1800):
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) < 5 / np.sqrt(noise.size), lag
    # The same place under other keys, and under every pair of them.
    alike = np.corrcoef(noise) - np.eye(len(keys))
    assert np.abs(alike).max() < 5 / np.sqrt(n)
    squares = np.corrcoef(noise**2) - np.eye(len(keys))
    assert np.abs(squares).max() < 5 / np.sqrt(n)
    np.testing.assert_allclose(noise[5].reshape(shape), white_noise(keys[5], shape), rtol=1e-6, atol=1e-6)


def test_every_bit_of_the_noise_is_set_as_often_as_not_and_apart_from_the_others():
    words = np.asarray(random_bits(jax.random.key(7), 1 << 16))
    assert len(np.unique(words)) == len(words)  # a bijection of the places
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(np.float64) - 0.5
    assert np.abs(bits.mean(0)).max() < 5 * 0.5 / np.sqrt(len(words))
    together = 4 * bits.T @ bits / len(words) - np.eye(32)
    assert np.abs(together).max() < 5 / np.sqrt(len(words))
    following = 4 * bits[1:].T @ bits[:-1] / (len(words) - 1)
    assert np.abs(following).max() < 5 / np.sqrt(len(words))
    # Keys that differ in one bit have nothing to do with each other.
    other = np.asarray(random_bits(jax.random.wrap_key_data(jax.random.key_data(jax.random.key(7)) ^ jnp.uint32(1)), 1 << 16))
    changed = (words[:, None] ^ other[:, None]) >> np.arange(32, dtype=np.uint32) & 1
    assert np.abs(changed.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))


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


def test_zero_strength_is_the_identity():
    strengths = {"rotation": (0, 0, 0), "scale": (1, 1), "elastic_strain": (0, 0), "bias_strength": (0, 0), "noise_std": (0, 0)}
    factors = {
        "brightness_factor": (1, 1),
        "contrast_factor": (1, 1),
        "coarse_zoom": (1, 1),
        "gamma_power": (1, 1),
        "blur_sigma": (0.01,) * 2,
    }
    always = dict.fromkeys(("affine", "elastic", *INTENSITY), 1.0)
    batch = make_batch(b=2, shape=(9, 8, 7))
    batch["label"][:, :2] = IGNORE
    out = run(batch, keys_of(2), only(**always, **strengths, **factors))
    np.testing.assert_allclose(out["image"], batch["image"].astype(np.float32), atol=1e-5)
    np.testing.assert_array_equal(out["label"], batch["label"])
    np.testing.assert_array_equal(out["mask"], batch["mask"])


def test_nnunet_turns_and_scales_independently_within_its_ranges():
    n = 20_000
    config = dataclasses.replace(Augment.nnunet(), scale_each_axis=0.25, elastic=0.1)
    motion = {
        name: np.asarray(a) for name, a in jax.jit(jax.vmap(lambda key: draw_motion(key, config)))(keys_of(n)).items() if name != "noise"
    }
    turned, scaled, bent = motion["angles"].any(-1), (motion["scale"] != 1).any(-1), motion["amplitude"] > 0
    for share, expected in ((turned, 0.2), (scaled, 0.2), (turned & scaled, 0.04), (bent, 0.1), (motion["hit"], 1 - 0.8 * 0.8 * 0.9)):
        assert abs(share.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    angles, logs = np.rad2deg(motion["angles"][turned]), np.log(motion["scale"][scaled])
    np.testing.assert_allclose(angles.std(0), 30 / np.sqrt(3), rtol=0.04)
    assert np.abs(angles).max() <= 30.001 and np.abs(angles.mean(0)).max() < 1.2
    assert np.log(0.7) - 1e-6 <= logs.min() and logs.max() <= np.log(1.4) + 1e-6
    np.testing.assert_allclose(logs.mean(0), (np.log(0.7) + np.log(1.4)) / 2, atol=0.015)
    assert abs((np.ptp(logs, axis=1) > 1e-6).mean() - 0.25) < 0.03
    width = motion["width"]
    assert (motion["amplitude"][bent] <= 0.2 * np.sqrt(2) * width[bent] + 1e-6).all() and 0.1 <= width.min() <= width.max() <= 0.25


@pytest.mark.parametrize(("affine", "rotate", "rescale"), [(0.3, 0.3, 0.0), (0.5, 0.2, 0.4), (0.0, 0.4, 0.4)])
def test_affine_rotate_and_rescale_are_drawn_independently(affine, rotate, rescale):
    n, config = 20_000, Augment(affine=affine, rotate=rotate, rescale=rescale)
    motion = jax.jit(jax.vmap(lambda key: draw_motion(key, config)))(keys_of(n))
    turned, scaled = np.asarray(motion["angles"]).any(-1), (np.asarray(motion["scale"]) != 1).any(-1)
    # Together where `affine` falls, or both of the others.
    for share, expected in (
        (turned, 1 - (1 - affine) * (1 - rotate)),
        (scaled, 1 - (1 - affine) * (1 - rescale)),
        (turned & scaled, affine + (1 - affine) * rotate * rescale),
    ):
        assert abs(share.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_scaling_per_axis_and_shifts_in_closed_form():
    shift = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    where, _ = affine_coordinates((5, 6, 7), jnp.float32([1, 2, 3]), jnp.zeros(3), jnp.float32([2, 1, 4]), jnp.asarray(shift))
    centre = np.float32([2, 2.5, 3])
    offset = np.stack(np.meshgrid(*map(np.arange, (5, 6, 7)), indexing="ij"), -1) - centre + shift
    np.testing.assert_allclose(np.stack(where, -1), np.clip(centre + offset / [2, 1, 4], 0, [4, 5, 6]), atol=1e-5)


def test_another_voxel_size_is_told_and_changes_no_size_in_millimetres():
    batch = make_batch(b=4, shape=(32, 30, 28))
    batch["label"] = np.stack([ball((32, 30, 28), radius=5.0, offset=(1, 0, 0))] * 4)
    batch["image"] = (batch["label"][..., None] * np.ones(2)).astype(np.float16)
    out = run(batch, keys_of(4), only(spacing_jitter=(0.6, 0.9)))
    factor = np.asarray(out["spacing"]) / batch["spacing"]
    assert ((factor > 0.6) & (factor < 0.9)).all() and len(np.unique(factor)) == factor.size
    for before, after, old, new in zip(batch["label"], np.asarray(out["label"]), batch["spacing"], np.asarray(out["spacing"])):
        for axis in range(3):
            across = [np.ptp(np.nonzero(label == 1)[axis]) + 1 for label in (before, after)]
            # The extent in mm, to a voxel at each end.
            assert abs(across[0] * old[axis] - across[1] * new[axis]) <= old[axis] + new[axis]
        assert (after == 1).sum() > 1.3 * (before == 1).sum()
    assert (np.asarray(out["mask"]) == 1).all(), "smaller voxels see nothing but the crop"


def test_larger_voxels_see_air_around_the_crop():
    out = run(make_batch(), keys_of(3), only(spacing_jitter=(1.5, 1.5)))
    np.testing.assert_allclose(out["spacing"], 1.5 * make_batch()["spacing"], rtol=1e-6)
    mask, image, label = (np.asarray(out[name]) for name in ("mask", "image", "label"))
    assert (mask[:, 0] == 0).all() and (image[:, 0] == -3).all() and (label[:, 0] == IGNORE).all()
    # A crop of 20 voxels of 1 is seen by the middle 13 or 14 of 1.5.
    assert abs((mask[0, :, 11, 9] == 1).sum() - 20 / 1.5) < 1


def test_smooth_fields_have_the_deviation_and_the_correlation_they_state():
    width = 0.2
    draw = jax.jit(jax.vmap(lambda key: smooth_field(key, (20, 10, 11), 2, jnp.float32(width), 0.1)))
    field = np.asarray(draw(keys_of(1500)))
    np.testing.assert_allclose(field.std(0), 1, atol=0.09)
    np.testing.assert_allclose(field.mean(0), 0, atol=0.14)
    # In the middle, a quarter of the edge apart; and the two parts of one voxel know nothing of each other.
    near = (field[:, 7, 5, 5] * field[:, 12, 5, 5]).mean(0)
    np.testing.assert_allclose(near, np.exp(-(0.25**2) / (4 * width**2)), atol=0.1)
    assert abs((field[..., 0] * field[..., 1])[:, 10, 5, 5].mean()) < 0.1


def test_elastic_deformation_moves_image_and_label_together_and_folds_nothing():
    from scipy.ndimage import binary_erosion

    shape = (32, 32, 32)
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float32)
    batch = make_batch(b=2, shape=shape, channels=3)
    batch["image"] = np.stack([place, place]).astype(np.float16)
    batch["label"] = (place[..., 0] > 15.5).astype(np.uint8)[None].repeat(2, 0)
    batch["label"][:, :, :4] = IGNORE
    out = {name: np.asarray(a) for name, a in run(batch, keys_of(2), only(elastic=1.0, elastic_strain=(0.2, 0.2))).items()}
    inside = out["mask"] == 1
    # The image holds each voxel's place, so the result is the map itself: its Jacobian is positive, and it stretches as asked for.
    jacobian = np.stack([np.stack(np.gradient(out["image"][..., a], axis=(1, 2, 3)), -1) for a in range(3)], -1)[:, 4:-4, 4:-4, 4:-4]
    kept = np.stack([binary_erosion(crop, np.ones((3, 3, 3))) for crop in inside])[:, 4:-4, 4:-4, 4:-4]
    assert np.linalg.det(jacobian)[kept].min() > 0
    assert 0.1 < (jacobian - np.eye(3))[kept].std() < 0.3
    assert np.abs(out["image"] - place)[inside].max() > 1
    assert set(np.unique(out["label"])) == {0, 1, IGNORE}
    sure = inside & (out["label"] != IGNORE) & (np.abs(out["image"][..., 0] - 15.5) > 0.51)
    np.testing.assert_array_equal(out["label"][sure], out["image"][..., 0][sure] > 15.5)
    assert (out["label"][inside & (out["image"][..., 1] < 2.9)] == IGNORE).all() and (out["label"][~inside] == IGNORE).all()


def test_bias_is_a_positive_factor_on_what_lies_above_air():
    batch = make_batch(b=8, shape=(8, 8, 8))
    batch["image"][:] = -2.0
    batch["image"][:, 0] = -3.0
    field = np.asarray(run(batch, keys_of(8), only(bias=1.0, bias_strength=(0.3, 0.3)))["image"]) + 3
    np.testing.assert_array_equal(field[:, 0], 0)
    logs = np.log(field[:, 1:])
    assert 0.15 < logs.std() < 0.45 and np.abs(np.diff(logs, axis=1)).max() < 0.4
    assert np.abs(logs[..., 0] - logs[..., 1]).max() > 0.05


@pytest.mark.parametrize("name", ["blur", "coarse"])
def test_a_share_of_the_channels_draws_strengths_of_its_own(name):
    batch = make_batch(b=64, shape=(8, 8, 8), channels=4)
    batch["image"][:] = batch["image"][:1, ..., :1]
    config = only(**{name: 1.0}, channel_share=0.5, coarse_zoom=(0.5, 0.6))
    out = np.asarray(run(batch, keys_of(64), config)["image"])
    changed = np.abs(out - batch["image"]).max((1, 2, 3)) > 1e-3
    assert abs(changed.mean() - 0.5) < 0.13
    assert len(np.unique(out[changed.nonzero()[0], 1, 2, 3, changed.nonzero()[1]].round(4))) > (30 if name == "blur" else 1)


def test_factors_lie_below_one_as_often_as_above():
    batch = {name: np.repeat(array[:1], 400, 0) for name, array in make_batch(shape=(2, 2, 2)).items()}
    batch["image"][:] = 1
    factor = np.asarray(run(batch, keys_of(400), only(brightness=1.0, brightness_factor=(0.9, 2.0)))["image"])[:, 0, 0, 0]
    below = factor < 1
    assert abs(below.mean() - 0.5) < 0.08
    assert factor.min() >= 0.9 and factor.max() <= 2
    assert abs(factor[below].mean() - 0.95) < 0.01 and abs(factor[~below].mean() - 1.5) < 0.06


def test_a_stored_config_without_the_younger_fields_means_what_it_meant():
    old = as_json(Augment.light())
    for name in ("rotate", "rescale", "scale_each_axis", "elastic", "elastic_width", "elastic_strain", "bias", "channel_share"):
        del old[name]
    assert from_json(Augment, old) == Augment.light()
    assert from_json(Augment, as_json(Augment.nnunet())) == Augment.nnunet()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators_without_a_loop_over_samples(platform):
    traced = run.trace(make_batch(), keys_of(3), dataclasses.replace(Augment.nnunet(), elastic=0.2, bias=0.2))
    on_cpu, text = (traced.lower(lowering_platforms=(each,)).as_text() for each in ("cpu", platform))
    assert "stablehlo.while" in on_cpu and "stablehlo.while" not in text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"affine": 1.5}, "probability"),
        ({"flip": (1, 2, 0)}, "axis"),
        ({"scale": (0.0, 1.0)}, "above 0"),
        ({"gamma_power": (2.0, 1.0)}, "lowest"),
        ({"elastic_width": (0.0, 0.2)}, "above 0"),
        ({"channel_share": -0.1}, "probability"),
        ({"spacing_jitter": (1.2, 0.8)}, "lowest"),
        ({"spacing_jitter": (0.0, 0.8)}, "above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        only(**change)


def test_whole_numbers_and_lists_are_settings_like_others():
    """As people write them in a config or a notebook."""
    plain = Augment(affine=1, noise=0, gamma=1, flip=[1, 0, 0], scale=[0.7, 1], rotation=(10, 0, 0), channel_share=0)
    assert plain == Augment(
        affine=1.0, noise=0.0, gamma=1.0, flip=(1.0, 0.0, 0.0), scale=(0.7, 1.0), rotation=(10.0, 0.0, 0.0), channel_share=0.0
    )
    out = run(make_batch(), keys_of(3), plain)
    assert bool(jnp.isfinite(out["image"]).all())
    for wrong in ({"affine": "often"}, {"scale": 2}, {"flip": ("a", 0, 0)}, {"noise": None}):
        with pytest.raises(ConfigError, match=f"Augment.{next(iter(wrong))} is .*: expected (a number|numbers)"):
            Augment(**wrong)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_channel_that_is_not_there_is_zero_whatever_it_holds(one_by_one):
    batch = make_batch()
    batch["image"][1, ..., 1] = np.nan
    batch["present"][1, 1] = 0
    out = augment(batch, keys_of(3), Augment.none(), one_by_one=one_by_one)["image"]
    assert not out[1, ..., 1].any() and bool(jnp.isfinite(out).all())
    np.testing.assert_array_equal(out[0], batch["image"][0].astype(np.float32))


def test_channels_and_labels_that_do_not_fit_are_refused():
    batch = make_batch()
    with pytest.raises(ShapeError, match=r"has 1 channel and `present` 2"):
        augment({**batch, "image": batch["image"][..., :1]}, keys_of(3), Augment.none())
    for kind in (bool, np.int8, np.float32):
        with pytest.raises(ShapeError, match=f"labels are {np.dtype(kind)}: expected integers that can hold 255"):
            augment({**batch, "label": batch["label"].astype(kind)}, keys_of(3), Augment.none())
