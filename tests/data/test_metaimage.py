"""MetaImage in: what SimpleITK writes is read as it was, in one file and in two; damage is refused by name."""

import zlib

import numpy as np
import pytest

from jaxseg.data.io import find_scans, load_volume, read_grid
from jaxseg.errors import GeometryError, InputError, JaxsegError
from tests.peers import import_peer

HEAD = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "10 -20 5",
    "ElementSpacing": "1.5 2 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
# the first axis runs along +y of LPS, the second along -x
AFFINE = np.array([[0, 2, 0, -10], [-1.5, 0, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def voxels(dtype="<i2", shape=(6, 5, 4)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def meta(data: bytes | None = None, **fields) -> bytes:
    """Bytes of a sound file whose fields are then overwritten (None removes one); ElementDataFile comes last."""
    head = {key: value for key, value in (HEAD | fields).items() if value is not None}
    head["ElementDataFile"] = head.pop("ElementDataFile")
    text = "".join(f"{key} = {value}\n" for key, value in head.items())
    return text.encode() + (voxels().tobytes(order="F") if data is None else data)


@pytest.fixture
def write(tmp_path):
    def write(data, name="scan.mha"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def refused(path, match, kind=InputError, **options):
    with pytest.raises(kind, match=match) as caught:
        load_volume(path, **options)
    assert path.name in str(caught.value)


def test_voxels_and_places_raw_compressed_as_text_and_apart(write, tmp_path):
    plain = voxels().tobytes(order="F")
    text = " ".join(map(str, voxels().ravel(order="F"))).encode()
    sound = [meta(), meta(zlib.compress(plain), CompressedData="True"), meta(text, BinaryData="False")]
    write(b"junk" + plain, "scan.raw")
    write(zlib.compress(plain), "scan.zraw")
    apart = [meta(b"", ElementDataFile="scan.raw", HeaderSize="-1"), meta(b"", ElementDataFile="scan.raw", HeaderSize="4")]
    apart.append(meta(b"", ElementDataFile="scan.zraw", CompressedData="True"))
    for data, name in [(data, "scan.mha") for data in sound] + [(data, "scan.mhd") for data in apart]:
        volume = load_volume(write(data, name), reorient=False)
        np.testing.assert_array_equal(volume.array[..., 0], voxels())
        np.testing.assert_allclose(volume.affine, AFFINE)
    assert read_grid(tmp_path / "scan.mhd").same_as(volume.grid, 1e-9) and volume.channels == ("scan",)
    assert [(ref.path.name, ref.format) for ref in find_scans(tmp_path)] == [("scan.mha", "MetaImage"), ("scan.mhd", "MetaImage")]


def test_slices_in_files_of_their_own_by_list_and_by_number(write):
    for z in range(4):
        write(voxels()[..., z].tobytes(order="F"), f"s{z}.raw")
    listed = write(meta(b"s0.raw\ns1.raw\ns2.raw\ns3.raw\n", ElementDataFile="LIST"), "listed.mhd")
    numbered = write(meta(b"", ElementDataFile="s%d.raw 0 3 1"), "numbered.mhd")
    for path in (listed, numbered):
        np.testing.assert_array_equal(load_volume(path, reorient=False).array[..., 0], voxels())


def test_byte_order_types_and_channels(write):
    for name, dtype in (("MET_UCHAR", "u1"), ("MET_FLOAT", ">f4"), ("MET_ULONG", ">u4"), ("MET_DOUBLE", "<f8")):
        data = voxels(dtype)
        path = write(meta(data.tobytes(order="F"), ElementType=name, BinaryDataByteOrderMSB=str(">" in dtype)))
        np.testing.assert_array_equal(load_volume(path, reorient=False).array[..., 0], data)
    pairs = voxels(shape=(2, 6, 5, 4))
    path = write(meta(pairs.tobytes(order="F"), ElementNumberOfChannels="2"))
    np.testing.assert_array_equal(load_volume(path, channels=["a", "b"], reorient=False).array, np.moveaxis(pairs, 0, -1))
    refused(path, "no channel was named")


@pytest.mark.parametrize(
    ("changes", "match", "kind"),
    [
        ({"data": b"short"}, "truncated: 5 bytes of voxels, expected 240", InputError),
        ({"data": zlib.compress(voxels().tobytes())[:-3], "CompressedData": "True"}, "truncated", InputError),
        ({"data": zlib.compress(bytes(1000)), "CompressedData": "True"}, "more than the 240 bytes", InputError),
        ({"DimSize": "60000 60000 60000"}, "more than the limit", InputError),
        ({"DimSize": "6 5 0"}, "DimSize", InputError),
        ({"DimSize": "6 5 4 2"}, "NDims", InputError),
        ({"DimSize": "6 5", "NDims": "2", "TransformMatrix": None, "Offset": None, "ElementSpacing": "1 1"}, "2-D", InputError),
        ({"ElementType": "MET_OTHER"}, "MET_OTHER", InputError),
        ({"ElementSpacing": "1 0 1"}, "ElementSpacing", GeometryError),
        ({"ElementSpacing": None}, "ElementSize", InputError),
        ({"TransformMatrix": "1 0 0 0.5 0.866025 0 0 0 1"}, "sheared", GeometryError),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "length 1", GeometryError),
        ({"ElementDataFile": "/etc/hostname"}, "outside its own folder", InputError),
        ({"ObjectType": "Mesh"}, "of type 'Mesh'", InputError),
    ],
)
def test_faults_are_refused(write, changes, match, kind):
    refused(write(meta(**changes)), match, kind)


def test_random_damage_to_the_header_ends_in_an_error_of_ours(write):
    rng, sound = np.random.default_rng(0), meta()
    for _ in range(300):
        data = bytearray(sound)
        for place in rng.integers(0, len(sound) - 240, rng.integers(1, 5)):
            data[place] = rng.integers(32, 127)
        path = write(bytes(data))
        try:
            load_volume(path)
        except JaxsegError as error:
            assert path.name in str(error)


@pytest.mark.parity
def test_what_simpleitk_writes_is_read_as_it_was(tmp_path):
    sitk = import_peer("SimpleITK")
    image = sitk.GetImageFromArray(voxels("f4", (4, 5, 6)))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-3, 4, 5))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    for name, compress in (("a.mha", True), ("b.mhd", False), ("c.mhd", True), ("d.nrrd", True), ("e.nii.gz", True)):
        sitk.WriteImage(image, str(tmp_path / name), compress)
        ours = load_volume(tmp_path / name, reorient=False)
        np.testing.assert_array_equal(ours.array[..., 0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
        direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        expected = np.column_stack([direction, image.GetOrigin()]) * [[-1], [-1], [1]]
        np.testing.assert_allclose(ours.affine[:3], expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.realdata
def test_a_real_file_equals_simpleitk(real_scans):
    sitk = import_peer("SimpleITK")
    path = real_scans / "misc" / "3DCT_lung_baseline_small.mha"
    theirs, ours = sitk.ReadImage(str(path)), load_volume(path, reorient=False)
    np.testing.assert_array_equal(ours.array[..., 0], sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
    np.testing.assert_allclose(ours.affine[:3, 3], np.multiply(theirs.GetOrigin(), (-1, -1, 1)))
    assert ours.spacing == pytest.approx(theirs.GetSpacing())
