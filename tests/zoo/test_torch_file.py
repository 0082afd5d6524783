"""PyTorch's files are read without PyTorch: every type of number, views and shared storages, both forms, both byte orders."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxseg.errors import CheckpointError
from jaxseg.zoo.safetensors_file import read_safetensors, write_safetensors
from jaxseg.zoo.torch_file import read_torch_file
from tests.golden.make_torch_files import DTYPES, FILES, expected
from tests.peers import import_peer
from tests.torch_writer import list_of, mapping, state, storage, tensor, text, write_legacy, write_zip


@pytest.mark.parametrize("form", FILES)
def test_what_pytorch_saved_comes_back(form):
    content = read_torch_file(FILES[form])
    for name, array in expected().items():
        found = content["state_dict"][name]
        assert found.dtype == array.dtype and found.shape == array.shape, name
        np.testing.assert_array_equal(found, array, err_msg=name)
    assert content["state_dict"].keys() == expected().keys()
    assert (content["epoch"], content["score"], content["device"]) == (3, 0.25, "cpu")
    np.testing.assert_array_equal(content["curve"], [0.0, 1.0, 2.0])


@pytest.mark.parametrize("form", FILES)
def test_arrays_are_views_of_the_mapped_file_and_views_of_one_storage_share_it(form):
    arrays = read_torch_file(FILES[form])["state_dict"]
    root = arrays["base"]
    while isinstance(root.base, np.ndarray):
        root = root.base
    assert isinstance(root, np.memmap)
    assert all(np.shares_memory(arrays["base"], arrays[name]) for name in ("every.second", "transposed", "row"))
    with pytest.raises(ValueError, match="read-only"):
        arrays["base"][0] = 1


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"])
def test_every_type_in_every_form_and_byte_order(tmp_path, dtype, little):
    array = np.array([[0, 1, 2], [100, 5, 1]]).astype(f"{'<' if little else '>'}{dtype}")
    content, storages = state({"a": array})
    order = "little" if little else "big"
    files = [
        write_zip(tmp_path / "zip.pt", content, storages, order=order),
        write_zip(tmp_path / "packed.pt", content, storages, order=order, packed=True),
        write_legacy(tmp_path / "legacy.pt", content, storages, size=array.itemsize, little=little),
    ]
    for file in files:
        found = read_torch_file(file)["a"]
        assert found.dtype.name == array.dtype.name
        np.testing.assert_array_equal(found, array, err_msg=file.name)


@pytest.mark.parametrize("little", [True, False])
def test_bfloat16_and_complex_numbers_in_both_byte_orders(tmp_path, little):
    numbers = np.float32([1.5, -2.0, 3e38])
    brain = numbers.astype(ml_dtypes.bfloat16)
    pairs = np.array([1 + 2j, -3.5j]).astype("<c8" if little else ">c8")
    words = brain.view(np.uint16)
    storages = {"b": (words if little else words.byteswap()).tobytes(), "c": pairs.tobytes()}
    content = mapping(
        {"brain": tensor(storage("BFloat16Storage", "b", 3), (3,)), "pairs": tensor(storage("ComplexFloatStorage", "c", 2), (2,))}
    )
    found = read_torch_file(write_zip(tmp_path / "a.pt", content, storages, order="little" if little else "big"))
    np.testing.assert_array_equal(found["brain"], brain)
    np.testing.assert_array_equal(found["pairs"], pairs)


def test_files_of_before_the_byte_order_entry_are_little_endian(tmp_path):
    content, storages = state({"a": np.arange(3, dtype="<f4")})
    np.testing.assert_array_equal(read_torch_file(write_zip(tmp_path / "a.pt", content, storages, order=None))["a"], [0, 1, 2])


def test_one_dictionary_met_twice_is_one_and_texts_keep_their_letters(tmp_path):
    shared = mapping({"ü": text("naïve")}) + b"q\x07"
    found = read_torch_file(write_zip(tmp_path / "a.pt", list_of(shared, b"h\x07")))
    assert found == [{"ü": "naïve"}] * 2 and found[0] is found[1]


def test_safetensors_keep_bfloat16_and_their_order_in_the_file_does_not_matter(tmp_path):
    numbers = np.float32([1.5, -2.0]).astype(ml_dtypes.bfloat16)
    header = {
        "__metadata__": {"format": "pt"},
        "second": {"dtype": "F32", "shape": [1, 2], "data_offsets": [4, 12]},
        "first": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "none": {"dtype": "I64", "shape": [0], "data_offsets": [12, 12]},
    }
    raw = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(raw)) + raw + numbers.tobytes() + np.float32([3, 4]).tobytes())
    found = read_safetensors(tmp_path / "a")
    assert found["first"].dtype == numbers.dtype and found.keys() == {"first", "second", "none"}
    np.testing.assert_array_equal(found["first"], numbers)
    np.testing.assert_array_equal(found["second"], [[3, 4]])


def test_what_is_written_as_safetensors_is_what_the_formats_own_package_reads(tmp_path):
    arrays = {
        "b": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "a": np.array(3, np.int64),
        "c": np.zeros((0, 2), np.int8),
        "ü": np.ones(3, np.uint8),
    }
    write_safetensors(tmp_path / "a", arrays, {"licence": "MIT"})
    ours, theirs = read_safetensors(tmp_path / "a"), load_file(tmp_path / "a")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
    with safe_open(tmp_path / "a", "numpy") as opened:
        assert opened.metadata() == {"licence": "MIT"} and set(opened.keys()) == arrays.keys()


def test_a_tensor_must_lie_inside_its_storage(tmp_path):
    held = storage("FloatStorage", "0", 6)
    raw = {"0": np.arange(6, dtype="<f4").tobytes()}
    last = read_torch_file(write_zip(tmp_path / "fits.pt", tensor(held, (2, 2), (3, 2), offset=0), raw))
    np.testing.assert_array_equal(last, [[0, 2], [3, 5]])
    # The same with one step more, along each way out: shape, stride, offset.
    for shape, strides, offset in [((2, 3), (3, 2), 0), ((2, 2), (4, 2), 0), ((2, 2), (3, 2), 1)]:
        path = write_zip(tmp_path / "beyond.pt", tensor(held, shape, strides, offset), raw)
        with pytest.raises(CheckpointError, match="reaches beyond its storage '0' of 6 numbers"):
            read_torch_file(path)


@pytest.mark.parity
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_equal_to_torch_load_for_random_views_of_every_type(tmp_path, form, protocol):
    torch = import_peer("torch")
    rng = np.random.default_rng(protocol)
    content = {}
    for i, dtype in enumerate(DTYPES * 3):
        base = torch.from_numpy(rng.integers(0, 100, (5, 4, 6))).to(getattr(torch, dtype))
        x, y, z = (sorted(rng.choice(n + 1, 2, replace=False)) for n in base.shape)
        content[f"{i}.{dtype}"] = base[x[0] : x[1], y[0] : y[1], z[0] : z[1] : 2].permute(*rng.permutation(3).tolist())
    nested = {"weights": content, "parameter": torch.nn.Parameter(torch.rand(3)), "shape": torch.Size([1, 2]), "of": np.int32(5)}
    torch.save(nested, tmp_path / "a.pt", _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "a.pt")
    for name, theirs in torch.load(tmp_path / "a.pt", weights_only=False)["weights"].items():
        ours = found["weights"][name]
        assert ours.dtype.name == name.split(".")[1] and ours.shape == tuple(theirs.shape)
        np.testing.assert_array_equal(ours.astype(np.complex128), theirs.to(torch.complex128).numpy(), err_msg=name)
    np.testing.assert_array_equal(found["parameter"], nested["parameter"].detach().numpy())
    assert (found["shape"], found["of"]) == ((1, 2), 5)


@pytest.mark.parity
def test_files_without_checksums_and_small_types_are_read(tmp_path):
    torch = import_peer("torch")
    tiny = {name: torch.arange(8).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32")}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tiny, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for name, array in read_torch_file(tmp_path / "a.pt").items():
        assert array.dtype.name == name
        np.testing.assert_array_equal(array.astype(np.float32), np.arange(8))
