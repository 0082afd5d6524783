"""The encoder of a pretraining goes into a network by name; channels and position tables are adapted; the rest is refused with a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from finetune.classes import Classes
from finetune.transfer import resize_table, take_encoder, take_network
from jaxseg.errors import CheckpointError
from jaxseg.models import MAE, UNETR, MAEConfig, UNETRConfig, ViT, ViTConfig
from jaxseg.models.resunet import ResUNet, ResUNetConfig
from jaxseg.train import array_names

ENCODER = ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2, in_channels=2)


def mae(encoder=ENCODER, seed=0):
    config = MAEConfig(encoder=encoder, decoder_width=12, decoder_depth=1, decoder_heads=1)
    return nnx.state(MAE(config, rngs=nnx.Rngs(seed)))


def unetr(encoder=ENCODER, seed=0, outputs=2):
    return nnx.state(UNETR(UNETRConfig(encoder=encoder, feature=4, stride=2, num_classes=outputs), rngs=nnx.Rngs(seed)))


def named(tree):
    return dict(zip(array_names(tree), jax.tree.leaves(tree)))


def test_every_encoder_array_is_taken_and_nothing_else_changes():
    source, target = mae(seed=1), unetr(seed=2)
    before, after = named(target), named(take_encoder(target, ENCODER, source, ENCODER, channels="ab", source_channels="ab").params)
    for name, array in after.items():
        expected = named(source)[name] if name.startswith("encoder.") else before[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_whole_network_is_taken_and_its_head_starts_from_outlines():
    source, target = unetr(seed=1, outputs=3), unetr(seed=2, outputs=4)
    taken = take_network(target, source, channels="ab", source_channels="ab", outlines=(None, 0, 2, 2))
    before, after = named(target), named(taken.params)
    for name, array in after.items():
        if name == "head.kernel":
            found, given = np.reshape(array, (4, 8, 4)), np.reshape(named(source)[name], (4, 8, 3))
            np.testing.assert_array_equal(found, np.stack([0 * given[..., 0], given[..., 0], given[..., 2], given[..., 2]], -1))
        else:
            np.testing.assert_array_equal(array, (before if name == "head.bias" else named(source))[name], err_msg=name)
    assert taken.adapted == {"head.kernel": "outputs 0, outline 1, outline 3, outline 3"}


def test_a_network_whose_outputs_are_no_outlines_gives_all_but_its_head():
    source, target = unetr(seed=1), unetr(seed=2)
    before, after = named(target), named(take_network(target, source, channels="ab", source_channels="ab", outlines=None).params)
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name] if name.startswith("head.") else named(source)[name], err_msg=name)


def test_a_new_head_draws_the_outlines_that_it_was_made_of():
    """The same logits, voxel by voxel: folding voxels into channels and back must not mix them up."""
    source = UNETR(UNETRConfig(encoder=ENCODER, feature=4, stride=2, num_classes=3), rngs=nnx.Rngs(1))
    target = UNETR(UNETRConfig(encoder=ENCODER, feature=4, stride=2, num_classes=2), rngs=nnx.Rngs(2))
    taken = take_network(nnx.state(target), nnx.state(source), channels="ab", source_channels="ab", outlines=(2, 0)).params
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 8, 2))
    spacing = jnp.ones((1, 3))
    nnx.update(target, taken)
    np.testing.assert_allclose(target(x, spacing=spacing), source(x, spacing=spacing)[..., jnp.array([2, 0])], atol=1e-6)


def test_regions_start_from_outlines_in_order_of_size_and_classes_from_the_first():
    regions = Classes(("core", "whole", "living"), ((1, 3), (1, 2, 3), (3,)))
    assert regions.outlines(3) == (1, 0, 2) and regions.outlines(2) == (1, 0, 1)
    assert Classes(("tumour", "cyst"), None).outlines(3) == (None, 0, 0)


def test_a_network_that_is_another_or_for_other_channels_is_refused():
    outlines = (None, 0)
    with pytest.raises(CheckpointError, match="(?s)network is not this one.*decoder"):
        take_network(unetr(), mae(), channels="ab", source_channels="ab", outlines=outlines)
    with pytest.raises(CheckpointError, match="same channels alone: it has b, a, the scans have a, b.*--take encoder"):
        take_network(unetr(), unetr(seed=1), channels="ab", source_channels="ba", outlines=outlines)


def test_a_bare_encoder_is_taken_as_the_encoder():
    """As the zoo's converters leave a peer's ViT."""
    bare = nnx.state(ViT(ENCODER, rngs=nnx.Rngs(5)))
    taken = named(take_encoder(unetr(seed=2), ENCODER, bare, ENCODER, channels="ab", source_channels="ab").params)
    for name, array in named(bare).items():
        np.testing.assert_array_equal(taken[f"encoder.{name}"], array, err_msg=name)


def test_a_network_without_tokens_is_refused():
    config = ResUNetConfig(in_channels=2, channels=(4, 8), strides=(2,), num_res_units=0)
    source = nnx.state(ResUNet(config, rngs=nnx.Rngs(0)))
    with pytest.raises(CheckpointError, match="(?s)does not fit.*encoder.patch.kernel"):
        take_encoder(unetr(), ENCODER, source, config, channels="ab", source_channels="cd")


def test_an_encoder_that_was_never_trained_gives_the_scratch_network_to_the_bit():
    """Zero pretraining steps: the arms of a comparison must be equal, so both networks draw their encoder first from the same seed."""
    scratch = named(unetr(seed=3))
    taken = named(take_encoder(unetr(seed=3), ENCODER, mae(seed=3), ENCODER, channels="ab", source_channels="ab").params)
    for name, array in taken.items():
        np.testing.assert_array_equal(array, scratch[name], err_msg=name)


def test_a_position_table_is_interpolated_and_a_constant_one_stays():
    table = jnp.ones((2, 2, 2, 5)) * jnp.arange(5)
    resized = resize_table(table, (3, 4, 2))
    assert resized.shape == (3, 4, 2, 5)
    np.testing.assert_allclose(resized, jnp.broadcast_to(jnp.arange(5.0), (3, 4, 2, 5)), rtol=1e-6)


def test_a_learned_table_goes_into_a_larger_grid():
    small = dataclasses.replace(ENCODER, positions="learned")
    large = dataclasses.replace(small, crop=(16, 8, 8))
    transfer = take_encoder(unetr(large), large, mae(small), small, channels="ab", source_channels="ab")
    assert list(transfer.adapted) == ["encoder.positions.table"]


@pytest.mark.parametrize("change", [{"width": 48}, {"depth": 3}, {"token": (2, 2, 2)}, {"mlp": "gelu"}])
def test_another_architecture_is_refused_with_the_shapes_of_both(change):
    other = dataclasses.replace(ENCODER, **change)
    with pytest.raises(CheckpointError, match="(?s)does not fit.*in the pretraining.*encoder\\."):
        take_encoder(unetr(ENCODER), ENCODER, mae(other), other, channels="ab", source_channels="ab")


@pytest.mark.parametrize(
    "change",
    [{"heads": 1}, {"positions": "rope_index"}, {"positions": "sincos"}, {"rope_scale": 30.0}, {"rope_base": 50.0}, {"token": (2, 4, 8)}],
)
def test_equal_arrays_that_mean_something_else_are_refused(change):
    """Heads, positions and the sides of a token leave no trace in shapes: the features would come out scrambled, and pretraining look useless."""
    other = dataclasses.replace(ENCODER, **change)
    assert {k: v.shape for k, v in named(mae(other)).items() if "encoder." in k} == {
        k: v.shape for k, v in named(mae(ENCODER)).items() if "encoder." in k
    }
    with pytest.raises(CheckpointError, match=f"(?s)does not fit.*in the pretraining.*{next(iter(change))}"):
        take_encoder(unetr(ENCODER), ENCODER, mae(other), other, channels="ab", source_channels="ab")


def test_an_encoder_goes_into_tokens_of_other_sides_where_that_is_asked_for():
    """A scan of voxels half as large, in tokens of twice as many: the same mm a token, and so the same features."""
    source = ViT(ENCODER, rngs=nnx.Rngs(1))
    config = dataclasses.replace(ENCODER, crop=(16, 16, 16), token=(8, 8, 8))
    given = {"channels": "ab", "source_channels": "ab"}
    with pytest.raises(CheckpointError, match="(?s)does not fit.*encoder.patch.kernel"):
        take_encoder(unetr(config), config, nnx.state(source), ENCODER, **given)
    taken = take_encoder(unetr(config), config, nnx.state(source), ENCODER, resample=True, **given)
    assert taken.adapted == {"encoder.patch.kernel": "tokens of 4 x 4 x 4 voxels → 8 x 8 x 8"}
    fine = UNETR(UNETRConfig(encoder=config, feature=4, stride=2, num_classes=2), rngs=nnx.Rngs(2))
    nnx.update(fine, taken.params)

    coarse = jax.random.normal(jax.random.key(0), (2, 8, 8, 8, 2))
    constant = jnp.repeat(jnp.repeat(jnp.repeat(coarse[:, ::4, ::4, ::4], 8, 1), 8, 2), 8, 3)
    mm, half = jnp.full((2, 3), 2.0), jnp.full((2, 3), 1.0)
    expected = source(jnp.repeat(jnp.repeat(jnp.repeat(coarse[:, ::4, ::4, ::4], 4, 1), 4, 2), 4, 3), spacing=mm)
    np.testing.assert_allclose(fine.encoder(constant, spacing=half), expected, atol=2e-5)

    # A ramp is met but for the voxels at a patch's faces, where nothing lies beyond; scrambled rows would be far away.
    ramp = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 8)] * 3, indexing="ij"), -1)[None, ..., :2]
    finer = jax.image.resize(ramp, (1, 16, 16, 16, 2), "linear")
    found, wanted = fine.encoder(finer, spacing=half[:1]), source(ramp, spacing=mm[:1])
    assert float(jnp.abs(found - wanted).mean()) < 0.1 * float(wanted.std())


def test_channels_and_tokens_are_adapted_together():
    config = dataclasses.replace(ENCODER, crop=(8, 8, 8), token=(2, 4, 8), in_channels=1)
    taken = take_encoder(unetr(config), config, mae(seed=1), ENCODER, channels="b", source_channels="ab", resample=True)
    assert taken.adapted == {"encoder.patch.kernel": "tokens of 4 x 4 x 4 voxels → 2 x 4 x 8, channels a, b → b"}
    kernel = named(mae(seed=1))["encoder.patch.kernel"].reshape(4, 4, 4, 2, 24)[..., 1, :]
    found = named(taken.params)["encoder.patch.kernel"].reshape(2, 4, 8, 24)
    np.testing.assert_allclose(found.sum((0, 1, 2)), kernel.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    # From 2 voxels to 4 along x each is read once and a quarter in, as linear interpolation puts them.
    along = jnp.asarray([[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1]])
    np.testing.assert_allclose(found.sum((1, 2)), jnp.tensordot(along, kernel.sum((1, 2)), 1), rtol=1e-5, atol=1e-5)
