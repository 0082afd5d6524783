"""NRRD in: agrees with pynrrd's files and SimpleITK's reading in every encoding, type and space; damage is refused by name."""

import bz2
import gzip
import itertools

import numpy as np
import pytest

from jaxseg.data.io import find_scans, load_label, load_volume, read_grid
from jaxseg.errors import GeometryError, InputError, JaxsegError
from tests.peers import import_peer

HEAD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(1.5,0,0) (0,2,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,-20,5)",
}
LPS = np.array([[-1.5, 0, 0, -10], [0, -2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def voxels(dtype="<i2", shape=(6, 5, 4)):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def nrrd(data: bytes | None = None, **fields) -> bytes:
    """Bytes of a sound file whose fields are then overwritten (None removes one)."""
    head = {
        key: value for key, value in (HEAD | {name.replace("_", " "): value for name, value in fields.items()}).items() if value is not None
    }
    lines = ["NRRD0004", "# a comment", *(f"{key}: {value}" for key, value in head.items()), "a key:=a value", "", ""]
    return "\n".join(lines).encode() + (voxels().tobytes(order="F") if data is None else data)


@pytest.fixture
def write(tmp_path):
    def write(data, name="scan.nrrd"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def refused(path, match, kind=InputError, load=load_volume, **options):
    with pytest.raises(kind, match=match) as caught:
        load(path, **options)
    assert path.name in str(caught.value)


def test_every_encoding_and_a_file_beside_the_header_hold_the_same_voxels(write):
    plain = voxels().tobytes(order="F")
    text = " ".join(map(str, voxels().ravel(order="F"))).encode()
    encodings = {"raw": plain, "gzip": gzip.compress(plain), "bzip2": bz2.compress(plain), "ascii": text}
    for encoding, data in encodings.items():
        volume = load_volume(write(nrrd(data, encoding=encoding)), reorient=False)
        np.testing.assert_array_equal(volume.array[..., 0], voxels())
        np.testing.assert_allclose(volume.affine, LPS)
        write(data, "voxels.bin")
        apart = load_volume(write(nrrd(b"", encoding=encoding, data_file="voxels.bin"), "scan.nhdr"), reorient=False)
        np.testing.assert_array_equal(apart.array, volume.array)
    assert volume.channels == ("scan",) and volume.source.dtype == "int16"


def test_slices_in_files_of_their_own_by_list_and_by_number(write, tmp_path):
    for z in range(4):
        write(b"xx" + voxels()[..., z].tobytes(order="F"), f"s{z + 1:02d}.raw")
    numbered = write(nrrd(b"", data_file="s%02d.raw 1 4 1 2", byte_skip="2"), "numbered.nhdr")
    names = "\n".join(f"s{z + 1:02d}.raw" for z in range(4))
    head = nrrd(b"", byte_skip="-1").rstrip(b"\n") + f"\ndata file: LIST 2\n{names}\n".encode()
    for path in (numbered, write(head, "listed.nhdr")):
        np.testing.assert_array_equal(load_volume(path, reorient=False).array[..., 0], voxels())
    assert [(ref.path.name, ref.format) for ref in find_scans(tmp_path)] == [("listed.nhdr", "NRRD"), ("numbered.nhdr", "NRRD")]


@pytest.mark.parametrize(
    ("name", "dtype"), [("uchar", "u1"), ("signed char", "i1"), ("uint16", ">u2"), ("int", ">i4"), ("float", ">f4"), ("double", "<f8")]
)
def test_number_types_and_byte_orders(write, name, dtype):
    data = voxels(dtype)
    path = write(nrrd(data.tobytes(order="F"), type=name, endian="big" if ">" in dtype else "little"))
    np.testing.assert_array_equal(load_volume(path, reorient=False).array[..., 0], data)


def test_spaces_differ_by_their_signs_and_units_scale(write):
    signs = {"RAS": (1, 1), "left-anterior-superior": (-1, 1), "LPS": (-1, -1)}
    for space, (x, y) in signs.items():
        affine = load_volume(write(nrrd(space=space)), reorient=False).affine
        np.testing.assert_allclose(affine, np.diag([-x, -y, 1, 1]) @ LPS)
    metres = write(nrrd(space_units='"cm" "cm" "cm"'))
    assert load_volume(metres).spacing == pytest.approx((15, 20, 30))


def test_an_axis_of_a_vector_or_a_list_becomes_channels_wherever_it_lies(write):
    for axis, kind in itertools.product((0, 3), ("vector", "list")):
        shape, directions, kinds = [6, 5, 4], ["(1.5,0,0)", "(0,2,0)", "(0,0,3)"], ["domain"] * 3
        for words, word in ((shape, 2), (directions, "none"), (kinds, kind)):
            words.insert(axis, word)
        data = voxels(shape=tuple(shape))
        fields = {"dimension": "4", "sizes": " ".join(map(str, shape)), "space directions": " ".join(directions), "kinds": " ".join(kinds)}
        path = write(nrrd(data.tobytes(order="F"), **fields))
        volume = load_volume(path, channels=["a", "b"], reorient=False)
        np.testing.assert_array_equal(volume.array, np.moveaxis(data, axis, -1))
        refused(path, "no channel was named")


def test_a_scan_without_a_space_needs_an_orientation(write):
    path = write(nrrd(space=None, space_directions=None, space_origin=None, spacings="1.5 2 3"))
    refused(path, "states no orientation", GeometryError)
    assert load_volume(path, assume_orientation="LPS").spacing == pytest.approx((1.5, 2, 3))


@pytest.mark.parametrize(
    ("changes", "match", "kind"),
    [
        ({"data": b"short"}, "truncated: 5 bytes of voxels, expected 240", InputError),
        ({"sizes": "60000 60000 60000"}, "more than the limit", InputError),
        ({"sizes": "6 0 4"}, "sizes", InputError),
        ({"sizes": "6 5", "dimension": "2", "kinds": "domain domain", "space_directions": None}, "expected a 3-D scan", InputError),
        ({"type": "block"}, "of type 'block'", InputError),
        ({"endian": None}, "endian", InputError),
        ({"encoding": "hex"}, "encoding 'hex'", InputError),
        ({"encoding": "gzip", "data": b"\x1f\x8bnonsense"}, "gzip stream", InputError),
        ({"encoding": "ascii", "data": b"1 2 x"}, "not all numbers", InputError),
        ({"space_directions": "(1,0,0) (0,nan,0) (0,0,1)"}, "not an invertible affine", GeometryError),
        ({"space_directions": "(1,0,0) (0.5,1,0) (0,0,1)"}, "sheared", GeometryError),
        ({"space_directions": "(1,0) (0,1) (0,1)"}, "not a vector of three", GeometryError),
        ({"space": "left-posterior-superior-time"}, "axis of time", GeometryError),
        ({"data_file": "../secret.raw"}, "outside its own folder", InputError),
        ({"data_file": "none.raw"}, "no such file", InputError),
        ({"data_file": "s%999999999d.raw 1 4 1"}, "does not name a series", InputError),
        ({"kinds": "RGB-color domain domain", "space_directions": "none (1,0,0) (0,1,0)"}, "2 axes of space", InputError),
    ],
)
def test_faults_are_refused(write, changes, match, kind):
    refused(write(nrrd(**changes)), match, kind)


def test_a_flipped_bit_in_a_gzip_stream_and_a_wrong_file_are_refused(write):
    data = bytearray(gzip.compress(voxels().tobytes(order="F")))
    data[-6] ^= 1
    refused(write(nrrd(bytes(data), encoding="gzip")), "damaged")
    refused(write(b"<html>login</html>"), "not an NRRD file")
    refused(write(nrrd()[:60]), "truncated")


def test_random_damage_to_the_header_ends_in_an_error_of_ours(write):
    rng, sound = np.random.default_rng(0), nrrd()
    for _ in range(300):
        data = bytearray(sound)
        for place in rng.integers(8, len(sound) - 240, rng.integers(1, 5)):
            data[place] = rng.integers(32, 127)
        path = write(bytes(data))
        try:
            load_volume(path)
        except JaxsegError as error:
            assert path.name in str(error)


@pytest.mark.parity
@pytest.mark.realdata
def test_real_files_equal_simpleitk(real_scans):
    sitk = import_peer("SimpleITK")
    folder = real_scans / "dicom" / "dcmqi" / "paramaps"
    for path in (real_scans / "misc" / "brain1_image.nrrd", real_scans / "misc" / "brain1_label.nrrd", folder / "pm-example.nrrd"):
        theirs, ours = sitk.ReadImage(str(path)), load_volume(path, reorient=False)
        np.testing.assert_array_equal(ours.array[..., 0], sitk.GetArrayFromImage(theirs).transpose(2, 1, 0))
        direction = np.reshape(theirs.GetDirection(), (3, 3)) * theirs.GetSpacing()
        np.testing.assert_allclose(ours.affine[:3], np.column_stack([direction, theirs.GetOrigin()]) * [[-1], [-1], [1]], atol=1e-9)
        assert read_grid(path).same_as(ours.grid, 1e-9)
    assert set(np.unique(load_label(real_scans / "misc" / "brain1_label.nrrd").array)) == {0, 1}
