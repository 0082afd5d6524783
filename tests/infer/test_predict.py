"""From a scan to labels on its own grid, with a network whose right answer is known: it says whether the tissue is bright."""

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx

from jaxseg.data.io import load_volume, save_volume
from jaxseg.data.preprocess import Recipe
from jaxseg.data.volume import Volume
from jaxseg.errors import CheckpointError, InputError, ShapeError
from jaxseg.infer import predict, predict_probabilities, segment
from jaxseg.metrics import dice
from jaxseg.zoo import Model

LEVELS = (0.0, 40.0, 120.0, 220.0)  # HU of tissue and of three structures inside one another


class Nearest(nnx.Module):
    """Logits that are largest for the class whose level (in units of the recipe's ct:-200:400) is nearest to the voxel's."""

    def __init__(self, sharpness=500.0):
        self.sharpness = sharpness

    def __call__(self, x, *, spacing=None, key=None):
        assert spacing.shape == (x.shape[0], 3)
        return -self.sharpness * (x[..., :1] - scaled(np.asarray(LEVELS, np.float32))) ** 2


class Above(nnx.Module):
    """A region for every level: what is at least about as bright."""

    def __call__(self, x, *, spacing=None, key=None):
        return 500.0 * (x[..., :1] - scaled(np.asarray([20.0, 80.0, 170.0], np.float32)))


def scaled(hu):
    return (hu - 100) * 4 / 600


def model(network, spacing=(1.0, 1.0, 2.0), channels=("CT",), crop=(12, 10, 8), **changes):
    labels = {"outer": 7, "middle": 3, "inner": 9}
    recipe = {
        "channels": list(channels),
        "spacing": list(spacing),
        "intensity": ["ct:-200:400"] * len(channels),
        "labels": labels,
    } | changes
    return Model(network, {"channels": list(channels), "recipe": recipe, "crop": list(crop)})


def scan(tmp_path, spacing=(1.0, 1.0, 2.0), shape=(36, 30, 16), axes="LPS"):
    """A body with nested balls (off centre) on disk in the orientation `axes`; returns the path and the truth in disk order, as 0 to 3."""
    index = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    distance = np.linalg.norm(index - (14.0, 16.0, 18.0), axis=-1)
    truth = sum((distance < radius).astype(np.uint8) for radius in (11, 8, 4.5))
    image = np.asarray(LEVELS, np.float32)[truth]
    edge = np.ones(shape, bool)
    edge[2:-2, 2:-2, 1:-1] = False
    image[edge] = -1000
    flip = np.diag([*(-s if code in "LPI" else s for s, code in zip(spacing, axes, strict=True)), 1.0])
    flip[:3, 3] = (50, -20, 7)
    nifti = nib.Nifti1Image(image, flip)
    nifti.set_qform(flip, 1)
    nifti.set_sform(flip, 1)
    path = tmp_path / "scan.nii.gz"
    nib.save(nifti, path)
    return path, truth


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI"])
def test_labels_come_back_in_the_voxels_and_affine_of_the_file(tmp_path, axes):
    path, truth = scan(tmp_path, axes=axes)
    volume = load_volume({"CT": path})
    labels = segment(model(Nearest()), volume)
    assert labels.array.dtype == np.uint8 and labels.grid.same_as(volume.grid, 1e-6)
    saved = nib.load(save_volume(labels, tmp_path / "labels.nii.gz", like=labels.source))
    np.testing.assert_array_equal(saved.affine, nib.load(path).affine)
    np.testing.assert_array_equal(
        np.asarray(saved.dataobj), np.asarray([0, 3, 7, 9])[truth]
    )  # disk values in ascending order are the classes


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.8, 1.3, 1.5)])
def test_a_network_at_another_spacing_labels_the_same_places(tmp_path, spacing):
    path, truth = scan(tmp_path)
    labels = segment(model(Nearest(20.0), spacing=spacing), load_volume({"CT": path}, reorient=False))
    found = np.flip(labels.array[..., 0], (0, 1))
    assert dice(found > 0, truth > 0) > 0.9
    assert dice(found == 9, truth == 3) > 0.8


def test_regions_restore_nested_labels(tmp_path):
    path, truth = scan(tmp_path)
    labels = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}
    found = segment(model(Above(), labels=labels, regions=True), load_volume({"CT": path})).array[..., 0]
    np.testing.assert_array_equal(np.flip(found, (0, 1)), np.asarray([0, 2, 1, 4])[truth])


@pytest.mark.parametrize("order", [("enhancing", "core", "whole"), ("whole", "enhancing", "core"), ("core", "whole", "enhancing")])
def test_nested_regions_are_restored_in_whatever_order_the_card_names_them(order):
    sizes = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": [4]}
    recipe = Recipe(("CT",), (1, 1, 1), ("ct",), labels={name: sizes[name] for name in order}, regions=True)
    truth = np.zeros((8, 1, 1), np.uint8)
    truth[1:7, 0, 0] = (2, 2, 1, 4, 1, 2)
    inside = np.stack([np.isin(truth, sizes[name]) for name in order], -1).astype(np.float32)
    grid = Volume(truth[..., None], np.eye(4), ("label",)).grid
    label = np.zeros_like(truth)
    predict._paint_regions(
        label, Volume(inside, np.eye(4), order), grid, predict.region_values(recipe), order=predict.regions_outside_in(recipe)
    )
    np.testing.assert_array_equal(label, truth)


def test_region_values_follow_the_order_given():
    nested = Recipe(("CT",), (1, 1, 1), ("ct",), labels={"whole": [1, 2, 3], "core": [1, 3], "enhancing": 3, "ignore": 9}, regions=True)
    assert predict.region_values(nested) == (2, 1, 3)


@pytest.mark.parametrize(("value", "kind"), [(255, "uint8"), (256, "uint16"), (65535, "uint16"), (70000, "int32")])
def test_labels_take_the_smallest_type_that_holds_their_values(tmp_path, value, kind):
    path, truth = scan(tmp_path)
    done = segment(model(Nearest(), labels={"outer": 7, "middle": 3, "inner": value}), load_volume(path, channels=["CT"]))
    assert done.array.dtype == kind and done.array.max() == value and (truth == 3).any()


def test_probabilities_lie_on_the_network_s_grid_and_add_up(tmp_path):
    path, _ = scan(tmp_path)
    result = predict_probabilities(model(Nearest(5.0), spacing=(2.0, 2.0, 2.0)), load_volume({"CT": path}), batch=3)
    assert result.channels == ("background", "middle", "outer", "inner")
    assert result.spacing == pytest.approx((2, 2, 2))
    np.testing.assert_allclose(result.array.sum(-1), 1, atol=1e-5)
    assert max(n / m for n, m in zip(result.shape, (18, 15, 16), strict=True)) <= 1


def test_the_network_is_compiled_once_for_scans_of_different_sizes(tmp_path):
    predict._forward.clear_cache()
    for shape in [(36, 30, 16), (30, 36, 18), (34, 34, 20)]:
        segment(model(Nearest()), load_volume({"CT": scan(tmp_path, shape=shape)[0]}))
    assert predict._forward._cache_size() == 1


def test_windows_on_air_are_skipped_unless_asked_for(tmp_path, monkeypatch):
    air, window, ran = np.full((48, 12, 12, 1), -1000, np.float32), predict.sliding_window, []
    air[:10], air[-10:] = 40, 120  # two lumps with air between them
    volume = Volume(air, np.diag([1.0, 1.0, 2.0, 1.0]), ("CT",))

    def counted(apply, *args, **options):
        def count(x):
            ran.append(len(x))
            return apply(x)

        return window(count, *args, **options)

    monkeypatch.setattr(predict, "sliding_window", counted)
    labels = [segment(model(Nearest(), crop=(12, 12, 12)), volume, overlap=0.0, skip_air=skip) for skip in (True, False)]
    # Windows begin at voxels 0, 12, 24 and 36 of the first axis.
    assert ran == [1] * 2 + [1] * 4
    for label in labels:
        assert set(np.unique(label.array[:10])) == {3} and set(np.unique(label.array[-10:])) == {7}
        np.testing.assert_array_equal(label.array[12:36], 0)


def volume_of(*channels):
    return Volume(np.random.default_rng(0).normal(size=(12, 12, 12, len(channels))).astype(np.float32), np.eye(4), channels)


@pytest.mark.parametrize(
    "channels, message",
    [
        (("T1",), r"1 channel \(T1\), but this model takes 2 \(T1, FLAIR\)"),
        (("T1", "FLAIR", "T2"), "3 channels .* takes 2"),
        (("T1", "T2"), "T1, FLAIR"),
    ],
)
def test_a_scan_with_other_channels_is_refused_in_one_line(channels, message):
    with pytest.raises(ShapeError, match=message) as caught:
        segment(model(Nearest(), channels=("T1", "FLAIR")), volume_of(*channels))
    assert "\n" not in str(caught.value)


def test_a_missing_channel_is_zero_where_that_is_allowed():
    seen = []

    class Watch(nnx.Module):
        def __call__(self, x, *, spacing=None, key=None):
            seen.append(x.shape)
            return x[..., :1] * 0 + 50 * (x[..., 1:2] == 0) * np.asarray([0.0, 0, 0, 1])

    labels = segment(model(Watch(), channels=("T1", "FLAIR"), intensity=["zscore"] * 2), volume_of("T1"), allow_missing=True)
    assert seen[0][-1] == 2
    assert (labels.array == 9).mean() > 0.5


def test_a_model_that_was_not_fine_tuned_cannot_segment():
    with pytest.raises(CheckpointError, match="fine-tune it first"):
        segment(Model(Nearest(), {"channels": ["CT"], "recipe": None, "crop": None}), volume_of("CT"))


def test_a_missing_ct_is_zero_beyond_the_scan_as_well():
    """Training multiplies an absent channel by 0, padding included; the air of a CT is -2."""
    seen = []

    class Watch(nnx.Module):
        def __call__(self, x, *, spacing=None, key=None):
            jax.debug.callback(lambda values: seen.append(np.asarray(values)), x)
            return x[..., :1] * np.ones(4)

    wide = model(Watch(), spacing=(1.0, 1.0, 1.0), channels=("CT", "PET"), crop=(16, 16, 16), intensity=["ct", "zscore"])
    segment(wide, volume_of("PET"), allow_missing=True)
    segment(wide, volume_of("CT"), allow_missing=True)
    jax.effects_barrier()
    without, with_ct = seen
    assert without.shape[1:] == (16, 16, 16, 2)
    np.testing.assert_array_equal(without[..., 0], 0)
    assert with_ct[..., 0].min() == -2 and not with_ct[..., 1].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scan_that_is_not_finite_is_refused(value):
    scan = volume_of("CT")
    scan.array[3, 4, 5] = value
    with pytest.raises(InputError, match="NaN or infinite voxels"):
        segment(model(Nearest()), scan)


@pytest.mark.parametrize("network", [Nearest, Above])
def test_an_answer_that_is_not_finite_is_no_background(network, tmp_path):
    class Broken(network):
        def __call__(self, x, *, spacing=None, key=None):
            return super().__call__(x, spacing=spacing) * np.nan

    changes = {"regions": True, "labels": {"whole": [1, 2, 3], "core": [1, 3], "inner": 3}} if network is Above else {}
    path, _ = scan(tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        segment(model(Broken(), **changes), load_volume(path))
