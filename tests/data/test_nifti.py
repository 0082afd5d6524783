"""NIfTI in and out: sound files agree with nibabel, damaged ones are refused with a message that names file and numbers."""

import gzip
import itertools
import pickle
import struct

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxseg.data.io import load_label, load_volume, read_grid, save_volume
from jaxseg.data.io.nifti import encode
from jaxseg.data.volume import Grid, Source, Volume, spacing_grid, to_grid
from jaxseg.errors import GeometryError, InputError, JaxsegError

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
SHAPE = (6, 5, 4)


def voxels(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def raw(array=None, affine=AFFINE, **fields):
    """Bytes of a sound file whose header fields are then overwritten."""
    array = voxels() if array is None else array
    data = bytearray(encode(array, Grid(array.shape[:3], affine), zipped=False))
    head = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        head.structarr[name] = value
    return head.structarr.tobytes() + bytes(data[348:])


@pytest.fixture
def write(tmp_path):
    def write(data, name="scan.nii"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def refused(path, match, kind=InputError, load=load_volume, **options):
    with pytest.raises(kind, match=match) as caught:
        load(path, **options)
    assert path.name in str(caught.value) and caught.value.exit_code == 2


# Sound files


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_agrees_with_nibabel_for_every_number_type_and_byte_order(write, dtype, order):
    image = nib.Nifti1Image(voxels(dtype), AFFINE, nib.Nifti1Header(endianness=order), dtype=dtype)
    path = write(gzip.compress(image.to_bytes()), "scan.nii.gz")
    ours, theirs = load_volume(path, reorient=False), nib.load(path)
    np.testing.assert_array_equal(ours.array[..., 0], theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.array.dtype == np.float32 and ours.source.dtype == np.dtype(dtype).name and ours.channels == ("scan",)


def test_scaling_nifti2_and_reorientation_agree_with_nibabel(write, tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.set_slope_inter(0.25, -10)
    nib.save(nib.Nifti2Image(voxels("f4"), AFFINE), tmp_path / "two.nii.gz")
    for path in (write(image.to_bytes()), tmp_path / "two.nii.gz"):
        theirs, ours = nib.as_closest_canonical(nib.load(path)), load_volume(path)
        np.testing.assert_allclose(ours.array[..., 0], theirs.get_fdata(), rtol=1e-6)
        np.testing.assert_allclose(ours.affine, theirs.affine)
        assert read_grid(path).orientation == "LAS" and ours.grid.orientation == "RAS"


def test_qform_alone_agrees_with_nibabel(tmp_path):
    for turn in [(10, 20, 30), (170, 5, -80), (0, 0, 180)]:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag([1, 2, -3])
        image = nib.Nifti1Image(voxels(), None)
        image.header.set_qform(affine, 1)
        image.header.set_sform(None, 0)
        nib.save(image, tmp_path / "q.nii")
        np.testing.assert_allclose(load_volume(tmp_path / "q.nii", reorient=False).affine, affine, atol=1e-5)


@pytest.mark.parametrize("a", [0.0, 1e-5, 2e-4, 5e-4, 7e-4, 1.3e-3, 3e-3, 1e-2])
def test_a_slight_tilt_beside_a_half_turn_is_no_conflict_and_is_kept(write, a):
    """LPS scans turned by a fraction of a degree: the quaternion's scalar part is what its float32 leave of 1, which once was taken for rounding."""
    turn = Rotation.from_quat([0.02, -0.012, np.sqrt(1 - 0.02**2 - 0.012**2 - a * a), a]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, 1, 2])
    image = nib.Nifti1Image(np.arange(240 * 240 * 2, dtype=np.int32).reshape(240, 240, 2), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    np.testing.assert_allclose(load_volume(write(image.to_bytes()), reorient=False).affine, affine, atol=1e-6)
    image.set_sform(None, 0)
    alone = load_volume(write(image.to_bytes()), reorient=False).affine
    # What three float32 can say of it.
    assert Grid((240, 240, 2), alone).offset_from(Grid((240, 240, 2), affine)) < 0.5
    saved = write(encode(voxels(shape=(240, 240, 2)), Grid((240, 240, 2), affine), zipped=False), "saved.nii")
    np.testing.assert_allclose(load_volume(saved, reorient=False).affine, affine, atol=1e-6)


def test_a_trailing_one_is_squeezed_and_names_tell_nothing_about_compression(write):
    path = write(gzip.compress(raw(voxels(shape=(6, 5, 4, 1)))), "named.nii")
    assert load_volume(path).array.shape == (6, 5, 4, 1)


def test_four_dimensions_need_channel_names(write):
    path = write(raw(voxels(shape=(6, 5, 4, 2))))
    refused(path, "4-D image with 2 volumes, but no channel was named")
    refused(path, "3 were named", channels=["a", "b", "c"])
    assert load_volume(path, channels=["T1", "T2"]).channels == ("T1", "T2")
    with pytest.raises(InputError, match="one file was given for several channels"):
        load_volume({"T2": path, "T1": path})


def test_several_files_become_channels_on_the_first_grid(write):
    one, two = write(raw(), "t1.nii"), write(raw(voxels(shape=(3, 5, 4)), np.diag([3.0, 2, 3, 1])), "pet.nii")
    both = load_volume([one, two])
    assert both.channels == ("t1", "pet") and both.grid.same_as(load_volume(one).grid) and both.source.paths == (one, two)
    assert load_volume({"T1": one, "PET": two}).channels == ("T1", "PET")
    with pytest.raises(InputError, match="2 files were given with 1"):
        load_volume([one, two], channels=["x"])


def test_scl_slope_zero_or_nan_means_unscaled(write):
    for slope, inter in [(0, 5), (np.nan, np.nan), (np.inf, 0)]:
        np.testing.assert_array_equal(load_volume(write(raw(scl_slope=slope, scl_inter=inter)), reorient=False).array[..., 0], voxels())


def test_microns_become_millimetres(write):
    assert load_volume(write(raw(affine=np.diag([500.0, 500, 500, 1]), xyzt_units=3))).spacing == pytest.approx((0.5, 0.5, 0.5))


# Damaged files (rows 1-6, 18, 19 of the fault table)


def test_truncated_files_say_how_many_bytes(write):
    data = raw()
    refused(write(data[:-100]), r"truncated: 140 bytes of voxels, expected 240")
    zipped = gzip.compress(raw(np.random.default_rng(0).integers(0, 9999, (20, 20, 20)).astype(np.int16)))
    for keep in (0.3, 0.9, 0.999):
        refused(write(zipped[: int(keep * len(zipped))], "scan.nii.gz"), "truncated")
    refused(write(data[:200]), "truncated: 200 bytes")
    refused(write(b""), "empty file")


def test_a_flipped_bit_in_gzip_is_noticed(write):
    zipped = bytearray(gzip.compress(raw()))
    for place in (-6, -2):
        broken = zipped.copy()
        broken[place] ^= 1
        refused(write(bytes(broken), "scan.nii.gz"), "gzip stream is damaged")
    stored = bytearray(gzip.compress(raw(), compresslevel=0))
    stored[-40] ^= 1
    refused(write(bytes(stored), "scan.nii.gz"), "gzip stream is damaged.*CRC")


def test_impossible_offsets(write):
    refused(write(raw(vox_offset=1e6)), "said to begin at byte 1,000,000, but the file holds 592")
    for offset in (np.inf, np.nan, -5, 100, 352.5):
        refused(write(raw(vox_offset=offset)), "damaged header: the voxels are said to begin")


def test_huge_dimensions_are_refused_before_memory_is_taken(write):
    path = write(gzip.compress(raw(dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])), "bomb.nii.gz")
    refused(path, "32,768,000,000,000 voxels .* more than the limit of 2,147,483,648")
    refused(write(raw()), "120 voxels .* limit of 100 voxels", max_voxels=100)
    refused(write(raw()), "or 200 bytes; if that is true", max_bytes=200)
    refused(
        write(gzip.compress(raw(dim=[3, 1200, 1200, 1200, 1, 1, 1, 1])), "b.nii.gz"),
        "truncated: 240 bytes of voxels, expected 3,456,000,000",
    )


@pytest.mark.parametrize(
    "dim", [[3, 0, 5, 4, 1, 1, 1, 1], [3, -6, 5, 4, 1, 1, 1, 1], [9, 6, 5, 4, 1, 1, 1, 1], [0] * 8, [4, 6, 5, 4, 0, 1, 1, 1]]
)
def test_impossible_dimensions(write, dim):
    refused(write(raw(dim=dim)), "damaged header: ")


def test_two_and_five_dimensions(write):
    refused(write(raw(dim=[2, 6, 5, 1, 1, 1, 1, 1])), "a 2-D image of 6×5 pixels; expected a 3-D scan")
    refused(write(raw(dim=[5, 6, 5, 2, 1, 2, 1, 1])), "a 5-D image")


@pytest.mark.parametrize(
    ("code", "word"), [(128, "RGB"), (2304, "RGBA"), (32, "complex"), (1792, "complex"), (1, "1-bit"), (77, "unknown")]
)
def test_voxels_that_are_not_one_number(write, code, word):
    refused(write(raw(datatype=code)), f"voxels are .*{word}.*datatype {code}")


def test_other_files_under_a_nifti_name(write):
    for name in ("x.nii", "x.nii.gz"):
        refused(write(b"<!DOCTYPE html><html><body>404</body></html>" * 20, name), "this is an HTML page")
        refused(write(pickle.dumps({"a": list(range(500))}), name), "Python pickle")
        refused(write(b"id,age\n1,40\n" * 50, name), "this is text that begins 'id,age")
        refused(write(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", name), "Git LFS pointer")
        refused(write(b"PK\x03\x04" + bytes(500), name), "zip archive")
        refused(write(bytes(128) + b"DICM" + bytes(500), name), "DICOM file")
        refused(write(bytes(600), name), "sizeof_hdr is 0, expected 348")
    refused(write(raw(sizeof_hdr=349)), "sizeof_hdr is 349")
    refused(write(raw(magic=b"ni1")), "separate .img file")
    refused(write(raw(magic=b"xyz")), "not a NIfTI file: its magic")
    refused(write(b"\x1f\x8b" + b"nonsense" * 80, "x.nii.gz"), "gzip stream is damaged")


def test_a_missing_file_or_a_folder(tmp_path):
    refused(tmp_path / "none.nii", "no such file")
    refused(tmp_path / "none.nii", "no such file", load=read_grid)
    (tmp_path / "folder.nii").mkdir()
    refused(tmp_path / "folder.nii", "without any DICOM file")


def test_random_damage_never_ends_in_anything_but_an_error_of_ours(write):
    rng, sound = np.random.default_rng(3), raw()
    for _ in range(300):
        data = bytearray(sound)
        for place in rng.integers(0, 352, rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        try:
            volume = load_volume(write(bytes(data)))
        except JaxsegError:
            continue
        assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()


# Geometry (rows 7-11)


@pytest.mark.parametrize("value", [0.0, np.nan, -1.5, np.inf])
def test_bad_pixdim(write, value):
    refused(write(raw(pixdim=[1, value, 2, 3, 0, 0, 0, 0])), "voxel sizes", GeometryError)


@pytest.mark.parametrize("row", [[np.nan, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0], [np.inf, 0, 0, 0]])
def test_unusable_sform(write, row):
    refused(write(raw(srow_x=row, qform_code=0)), "not an invertible affine", GeometryError)


def test_a_bad_sform_can_be_passed_over_by_choice(write):
    path = write(raw(srow_x=[0, 0, 0, 0]))
    refused(path, "sform is not an invertible", GeometryError)
    np.testing.assert_allclose(load_volume(path, policy="qform", reorient=False).affine, AFFINE, atol=1e-5)


def test_a_sheared_affine_is_refused_and_said(write):
    refused(write(raw(srow_x=[-1.5, 0.3, 0, 10], qform_code=0)), r"sheared: two axes are 8\.5.° away", GeometryError)


def test_contradicting_forms_need_a_policy(write):
    flipped = write(raw(srow_x=[1.5, 0, 0, 10]))
    refused(flipped, "mirror image", GeometryError)
    assert np.sign(load_volume(flipped, policy="sform", reorient=False).affine[0, 0]) == 1
    assert np.sign(load_volume(flipped, policy="qform", reorient=False).affine[0, 0]) == -1
    refused(write(raw(srow_x=[-1.5, 0, 0, 11])), "corners up to 0.7 voxels apart", GeometryError)
    load_volume(write(raw(srow_x=[-1.5, 0, 0, 10.5])))
    refused(write(raw(qform_code=0, pixdim=[1, 3, 2, 3, 0, 0, 0, 0])), "sform and pixdim contradict", GeometryError)
    alone = write(raw(qform_code=0))
    np.testing.assert_array_equal(load_volume(alone, policy="qform").affine, load_volume(alone).affine)  # it states one form, and has that


def test_no_orientation_stated(write):
    path = write(raw(qform_code=0, sform_code=0))
    refused(path, "states no orientation", GeometryError)
    for codes in ("LAS", "PSR", "ras"):
        volume = load_volume(path, assume_orientation=codes, reorient=False)
        assert volume.grid.orientation == codes.upper() and volume.spacing == pytest.approx((1.5, 2, 3))
        np.testing.assert_allclose(volume.grid.corners().mean(0), 0, atol=1e-9)
    with pytest.raises(GeometryError, match="expected three letters"):
        load_volume(path, assume_orientation="LRS")


# Values (rows 13, 22)


def test_voxels_that_are_not_finite_are_counted(write):
    array = voxels("f4")
    array[0, 0, :3], array[1, 1, 1] = np.nan, np.inf
    path = write(raw(array))
    refused(path, r"4 of 120 voxels are not finite \(3 NaN, 1 infinite\)")
    assert load_volume(path, nonfinite=0.0, reorient=False).array[0, 0, :3].sum() == 0


def test_labels_are_whole_numbers_from_zero(write):
    whole = voxels("f4") % 3
    label = load_label(write(raw(whole)), reorient=False)
    assert label.array.dtype == np.uint8 and label.channels == ("label",)
    np.testing.assert_array_equal(label.array[..., 0], whole)
    soft = whole.copy()
    soft[0, 0, :2] = 0.999
    refused(write(raw(soft)), "2 of 120 label values are not whole numbers, such as 0.999", load=load_label)
    refused(write(raw((voxels() % 3 - 1).astype(np.int16))), r"label values are negative \(down to -1\)", load=load_label)
    assert load_label(write(raw(voxels() + np.int16(900)))).array.dtype == np.uint16


# Saving


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -35, 50)])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_round_trip_over_48_orientations_is_exact(write, tmp_path, order, turn):
    for signs in itertools.product((1, -1), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = (
            Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.eye(3)[:, list(order)] @ np.diag(np.multiply(signs, (1, 2, 3)))
        )
        affine[:3, 3] = (3, -8, 15)
        path = write(raw(affine=affine))
        volume = load_volume(path)
        saved = nib.load(save_volume(volume, tmp_path / "back.nii.gz", like=volume.source))
        np.testing.assert_array_equal(np.asarray(saved.dataobj), voxels())
        np.testing.assert_array_equal(saved.affine, nib.load(path).affine)
        np.testing.assert_allclose(saved.get_qform(), saved.get_sform(), atol=1e-5)
        assert saved.get_data_dtype() == np.int16


def test_scaled_integers_come_back_as_they_were(write, tmp_path):
    path = write(raw(scl_slope=0.01, scl_inter=-3))
    volume = load_volume(path)
    again = save_volume(volume, tmp_path / "again.nii", like=volume.source)
    assert again.read_bytes()[352:] == path.read_bytes()[352:]
    np.testing.assert_allclose(load_volume(again).array, volume.array)


def test_labels_keep_their_type_and_probabilities_are_not_rounded(write, tmp_path):
    volume = load_volume(write(raw()))
    label = Volume((volume.array > 50).astype(np.uint8), volume.affine, ("label",))
    assert nib.load(save_volume(label, tmp_path / "l.nii.gz", like=volume.source)).get_data_dtype() == np.uint8
    soft = Volume(volume.array / np.float32(101), volume.affine, ("p",))
    saved = nib.load(save_volume(soft, tmp_path / "p.nii.gz", like=volume.source))
    assert saved.get_data_dtype() == np.float32
    np.testing.assert_array_equal(load_volume(tmp_path / "p.nii.gz").array, soft.array)
    assert nib.load(save_volume(Volume(label.array > 0, label.affine, ("b",)), tmp_path / "b.nii")).get_data_dtype() == np.uint8
    for wrong in ("float16", "bool", "complex64"):
        with pytest.raises(InputError, match=f"no numbers of type {wrong}"):
            save_volume(volume, tmp_path / "x.nii", dtype=wrong)
    with pytest.raises(InputError, match="do not fit uint8"):
        save_volume(Volume(volume.array * 10, volume.affine, ("x",)), tmp_path / "x.nii", dtype="uint8")


def test_a_result_on_another_grid_goes_back_by_world_position(write, tmp_path):
    volume = load_volume(write(raw(voxels(shape=(20, 18, 16)))))
    coarse = to_grid(volume, spacing_grid(volume.grid, (3, 3, 3)))
    with pytest.raises(GeometryError, match="resample it with to_grid"):
        save_volume(coarse, tmp_path / "x.nii", like=volume.source)
    saved = load_volume(save_volume(to_grid(coarse, volume.grid), tmp_path / "y.nii", like=volume.source))
    assert saved.grid.same_as(volume.grid, tol=1e-3)


def test_saved_files_carry_no_text_and_are_the_same_each_time(write, tmp_path):
    volume = load_volume(write(raw(descrip=b"SENTINEL^NAME", db_name=b"SENTINEL", aux_file=b"SENTINEL", intent_name=b"SENTINEL")))
    one, two = (save_volume(volume, tmp_path / name, like=volume.source).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert one == two and b"SENTINEL" not in gzip.decompress(one)
    assert struct.unpack("<i", gzip.decompress(one)[:4])[0] == 348
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "scan.nii"]


def test_what_cannot_be_saved(tmp_path):
    volume = Volume(voxels("f4")[..., None], AFFINE, ("a",))
    with pytest.raises(InputError, match=r"ends in \.nii\.gz or \.nii"):
        save_volume(volume, tmp_path / "a.png")
    sheared = AFFINE.copy()
    sheared[0, 1] = 1.0
    with pytest.raises(GeometryError, match="sheared"):
        save_volume(Volume(volume.array, sheared, ("a",)), tmp_path / "a.nii")
    assert not list(tmp_path.iterdir())
    several = Volume(np.concatenate([volume.array] * 2, -1), AFFINE, ("a", "b"))
    assert load_volume(
        save_volume(several, tmp_path / "two.nii", like=Source((), several.grid, "float32")), channels=["a", "b"]
    ).channels == ("a", "b")
