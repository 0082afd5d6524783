"""Files made to run code, to exhaust memory, or broken in any other way: nothing of them is executed, and each is refused in one clear sentence."""

import io
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxseg.errors import CheckpointError, InputError
from jaxseg.zoo.torch_file import read_torch_file
from jaxseg.zoo.torch_file.pickle_machine import MOST_STEPS
from jaxseg.zoo.weight_file import read_weight_file
from tests.golden.make_torch_files import FILES
from tests.torch_writer import (
    call,
    integer,
    list_of,
    mapping,
    name,
    pickled,
    state,
    storage,
    tensor,
    text,
    tuple_of,
    write_legacy,
    write_zip,
)

# Every payload, executed, would make this file or import this module, which makes it.
CANARY, TRAP = "canary", "trap_that_no_test_imports"
COMMAND = f"touch {CANARY}"
SOURCE = f"open({CANARY!r}, 'w').close()"
RUN = call(name("os", "system"), text(COMMAND))
NEW, NEW_WITH_KEYWORDS = b"\x81", b"\x92"
ORDERED = name("collections", "OrderedDict")

EXECUTES = {
    "os.system": RUN,
    "posix.system": call(name("posix", "system"), text(COMMAND)),
    "builtins.eval": call(name("builtins", "eval"), text(SOURCE)),
    "builtins.exec": call(name("builtins", "exec"), text(SOURCE)),
    "__builtin__.eval": call(name("__builtin__", "eval"), text(SOURCE)),
    "builtins.getattr": call(name("builtins", "getattr"), name("collections", "OrderedDict"), text("__init__")),
    "importlib.import_module": call(name("importlib", "import_module"), text(TRAP)),
    "runpy.run_module": call(name("runpy", "run_module"), text(TRAP)),
    "functools.partial": call(call(name("functools", "partial"), name("os", "system"), text(COMMAND))),
    "operator.methodcaller": call(name("operator", "methodcaller"), text("touch")),
    "torch.storage._load_from_bytes": call(name("torch.storage", "_load_from_bytes"), b"C\x02\x80\x02"),
    "torch.hub.load": call(name("torch.hub", "load"), text("a/b"), text("c")),
    "numpy.load": call(name("numpy", "load"), text("x.npy"), b"N", b"\x88"),
    "subprocess.Popen": name("subprocess", "Popen")
    + tuple_of(text(COMMAND), integer(-1), b"N", b"N", b"N", b"N", b"N", b"\x88", b"\x88")
    + NEW,
    "a name alone, whose module is imported": name(TRAP, "thing"),
    "a name on the stack": text(TRAP) + text("thing") + b"\x93",
    "a name on the stack, remembered": text("system") + b"q\x01" + text("os") + b"h\x01\x93" + tuple_of(text(COMMAND)) + b"R",
    "an attribute of something allowed": text("collections") + text("OrderedDict.fromkeys.__self__") + b"\x93",
    "a way in through a module that is allowed": name("torch.serialization", "os.system"),
    "INST": b"(" + text(COMMAND) + b"ios\nsystem\n",
    "OBJ": b"(" + name("os", "system") + text(COMMAND) + b"o",
    "NEWOBJ_EX": name("os", "system") + tuple_of(text(COMMAND)) + b"}" + NEW_WITH_KEYWORDS,
    "an extension code": b"\x82\x01",
    "a persistent id in text": b"P0\n",
    "a persistent id with a module's source": tuple_of(text("module"), name("os", "system"), text("a.py"), text(SOURCE)) + b"Q",
    "a persistent id of another kind": tuple_of(text("storage"), name("os", "system"), text("0"), text("cpu"), integer(1)) + b"Q",
    "a persistent id that is no tuple": text("0") + b"Q",
    "a call of a type of numbers": name("torch", "float32") + tuple_of() + b"R",
    "a call of a class that is only named": call(name("torch", "Tensor"), integer(3)),
    "a call of a dictionary": b"}" + tuple_of() + b"R",
    "a call with arguments that are none": ORDERED + b"]R",
    "a state for a dictionary, of another kind": call(ORDERED) + tuple_of(b"}", mapping({"__setstate__": RUN})) + b"b",
    "a state for a name": ORDERED + mapping({"__setstate__": text("x")}) + b"b",
    "a state for a text": text("x") + b"}b",
    "slots for a namespace": name("argparse", "Namespace") + b")" + NEW + tuple_of(b"N", b"}") + b"b",
    "an argument for a namespace": call(name("argparse", "Namespace"), text("x")),
    "a reconstruction of another class": call(name("copyreg", "_reconstructor"), ORDERED, name("builtins", "object"), b"N"),
    "numpy objects": call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88"),
    "a numpy record": call(name("numpy", "dtype"), text("V8"), b"\x89", b"\x88"),
    "a tensor of another class": call(
        name("torch._tensor", "_rebuild_from_type_v2"), name("torch", "Size"), name("torch", "Tensor"), tuple_of(), b"N"
    ),
    "a default that is called": call(name("collections", "defaultdict"), name("os", "system")),
}


@pytest.fixture(autouse=True)
def trapped(tmp_path, monkeypatch):
    """Whatever a test reads, nothing of it was executed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{TRAP}.py").write_text(f"{SOURCE}\nthing = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert not (tmp_path / CANARY).exists()
    assert TRAP not in sys.modules


def refuses(path, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_weight_file(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_the_payloads_are_real(tmp_path):
    for payload in (EXECUTES["os.system"], EXECUTES["builtins.exec"], EXECUTES["a name on the stack"], EXECUTES["INST"]):
        pickle.loads(pickled(payload))
        assert (tmp_path / CANARY).exists()
        (tmp_path / CANARY).unlink()
    del sys.modules[TRAP]


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("payload", EXECUTES)
def test_nothing_that_a_pickle_names_is_executed(tmp_path, payload, form):
    arrays, raw = state({"w": np.zeros(3, np.float32)})
    content = mapping({"state_dict": arrays, "extra": EXECUTES[payload]})
    message = refuses((write_zip if form == "zip" else write_legacy)(tmp_path / "evil.pt", content, raw), "refused|instruction|arguments")
    if payload.count(".") and " " not in payload:
        assert f"'{payload}'" in message


def test_code_in_the_first_of_legacys_pickles_is_not_executed_either(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickled(RUN) + b"\0" * 16)
    refuses(tmp_path / "evil.pt", "'os.system'")


DEEP = 30_000
BOMBS = {
    "lists in lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "a list in itself": b"]q\x00h\x00a",
    "a dictionary in itself through a namespace": name("argparse", "Namespace") + b")" + NEW + b"q\x00}" + text("a") + b"h\x00sb",
    "a place in memory far away": text("x") + b"r\xff\xff\xff\xff" + RUN,
    "a long whole number": b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20),
    "a text longer than the file": b"X\xff\xff\xff\xff",
    "bytes longer than any memory": b"\x8e" + b"\xff" * 8,
    "a negative length": b"\x8b\xff\xff\xff\xff",
    "keys whose hash takes for ever": b"}" + b")" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(60)) + b"Ns",
    "a tensor as a key": b"}" + tensor(storage("FloatStorage", "0", 1), (1,)) + b"Ns",
    "one list copied again and again": list_of(*[b"K\x01"] * 50_000) + b"q\x000" + call(name("builtins", "list"), b"h\x00") * 200,
    "a stack that is taken from too often": b"0" * 10,
    "a mark that was never set": b"t",
    "an odd number of keys and values": b"}(" + text("a") + b"u",
    "a key that was never remembered": b"h\x05",
    "an append to a text": text("a") + b"Na",
    "a protocol of the future": b"\x80\x63N",
    "a name without an end": b"c" + b"a" * 5000,
    "no end": b"",
    "numpy bytes that do not fit": call(
        name("numpy._core.numeric", "_frombuffer"),
        b"C\x04abcd",
        call(name("numpy", "dtype"), text("f4"), b"\x89", b"\x88"),
        tuple_of(integer(1 << 59), integer(4)),
        text("C"),
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_would_exhaust_memory_or_patience_is_refused(tmp_path, bomb):
    path = write_zip(tmp_path / "bomb.pt", BOMBS[bomb], {"0": b"\0" * 4})
    tracemalloc.start()
    try:
        refuses(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_ten_lists_of_ten_lists_of_ten_are_read_in_no_time(tmp_path):
    doubled = b"]" + b"".join(b"q\x00" + list_of(*[b"h\x00"] * 10) for _ in range(60))
    found = read_torch_file(write_zip(tmp_path / "a.pt", doubled))
    assert len(found) == 10 and found[0] is found[9]


@pytest.mark.slow
def test_too_many_instructions_are_refused(tmp_path):
    refuses(write_zip(tmp_path / "long.pt", b"N0" * (MOST_STEPS // 2)), "instructions")


STORAGE = storage("FloatStorage", "0", 6)
TENSORS = {
    "more numbers than there are": (tensor(STORAGE, (7,)), "reaches beyond its storage '0' of 6 numbers"),
    "an absurd shape": (tensor(STORAGE, (1 << 40, 1 << 10), (0, 1)), "reaches beyond"),
    "a shape that is no number": (tensor(STORAGE, (1 << 70,), (0,)), "impossible"),
    "no number along one axis, too many along others": (tensor(STORAGE, (0, 1 << 50, 1 << 50), (0, 0, 0)), "impossible"),
    "a negative stride": (tensor(STORAGE, (3,), (-1,), 5), "impossible"),
    "a negative size": (tensor(STORAGE, (-1,), (1,)), "impossible"),
    "a negative offset": (tensor(STORAGE, (1,), (1,), -1), "impossible"),
    "fewer strides than axes": (tensor(STORAGE, (2, 3), (1,)), "impossible"),
    "more axes than anybody needs": (tensor(STORAGE, (1,) * 40), "impossible"),
    "one number as an endless array": (tensor(STORAGE, (1 << 40,), (0,)), "times its own size"),
    "the same numbers five thousand times": (list_of(*[tensor(STORAGE, (1 << 15,), (0,))] * 5_000), "times its own size"),
    "a storage that is larger than its bytes": (tensor(storage("FloatStorage", "0", 1 << 40), (1,)), "should have .* bytes .* found 24"),
    "a storage of a wider type": (tensor(storage("DoubleStorage", "0", 6), (6,)), "should have 48 bytes .* found 24"),
    "a storage of a narrower type": (tensor(storage("HalfStorage", "0", 6), (6,)), "should have 12 bytes .* found 24"),
    "a storage that is not there": (tensor(storage("FloatStorage", "1", 6), (6,)), "storage '1' are missing"),
    "a storage outside of the archive": (tensor(storage("FloatStorage", "../../../etc/passwd", 6), (6,)), "are missing"),
    "a storage of two sizes": (list_of(STORAGE, storage("FloatStorage", "0", 5)), "twice, differently"),
    "a storage of a negative size": (storage("FloatStorage", "0", -6), "no storage"),
    "a quantised storage": (storage("QInt8Storage", "0", 24), "QInt8Storage"),
    "a tensor of no storage": (tensor(text("0"), (6,)), "do not fit"),
    "a parameter of no tensor": (call(name("torch._utils", "_rebuild_parameter"), text("x"), b"\x88", b"N"), "do not fit"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path, case):
    content, match = TENSORS[case]
    refuses(write_zip(tmp_path / "a.pt", content, {"0": b"\0" * 24}), match)


def zipped(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive, pytest.warns() if len({n for n, _ in entries}) < len(entries) else io.BytesIO():
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


NOTHING = ("a/data.pkl", pickled(b"}"))
ARCHIVES = {
    "a name that climbs": ([NOTHING, ("a/../../evil", "x")], "leads out of the archive"),
    "an absolute name": ([NOTHING, ("/etc/passwd", "x")], "leads out of the archive"),
    "a name of Windows": ([NOTHING, ("c:\\evil", "x")], "leads out of the archive"),
    "two entries of one name": ([NOTHING, ("a/data/0", "x"), ("a/data/0", "y")], "two of its entries"),
    "two checkpoints": ([NOTHING, ("b/data.pkl", pickled(b"}"))], "2 checkpoints"),
    "an archive in an archive": ([("model.pt", FILES["zip"].read_bytes())], "model.pt.*Unpack it"),
    "TorchScript": ([NOTHING, ("a/constants.pkl", pickled(b")")), ("a/code/model.py", SOURCE)], "TorchScript"),
    "numpy's archive": ([("a.npy", b"x")], "npz"),
    "nothing": ([], "empty zip archive|without torch's"),
    "an unknown byte order": ([NOTHING, ("a/byteorder", "middle")], "neither little nor big"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_torch_has_not_written_is_refused(tmp_path, case):
    entries, match = ARCHIVES[case]
    refuses(zipped(tmp_path / "a.pt", entries), match)


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path):
    zeros = bytes(100 << 20)
    path = write_zip(tmp_path / "bomb.pt", b"N", {"0": zeros}, packed=True)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        refuses(path, "zip bomb")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def edited(path, place, form, value, magic=b"PK\1\2", which=0):
    """Write a number into the directory's entry number `which`."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(which + 1):
        at = data.index(magic, at + 1)
    struct.pack_into(form, data, at + place, value)
    path.write_bytes(data)
    return path


def test_an_entry_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.pt", tensor(storage("FloatStorage", "0", 1), (1,)), {"0": bytes(1 << 20)}, packed=True)
    refuses(edited(path, 24, "<I", 4, which=2), "does not unpack to the 4 bytes")


@pytest.mark.parametrize(
    ("place", "form", "value", "match"),
    [
        (8, "<H", 1, "encrypted"),
        (10, "<H", 12, "method 12"),
        (24, "<I", 1 << 30, "longer than"),
        (20, "<I", 1 << 30, "longer than"),
        (20, "<I", 0xFFFFFFFF, "damaged"),
        (28, "<H", 0xFFFF, "damaged|cut off"),
        (42, "<I", 1 << 30, "outside of the file"),
        (42, "<I", 1, "not where the directory says"),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, place, form, value, match):
    arrays, raw = state({"w": np.zeros(64, np.float32)})
    refuses(edited(write_zip(tmp_path / "a.pt", arrays, raw), place, form, value, which=2), match)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    # The second entry's header is put inside the first one's content, as in the bombs that unpack the same bytes again and again.
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a/data/0", b"1234")
    path = write_zip(tmp_path / "a.pt", b"N", {"outer": inner.getvalue(), "0": b"1234"}, root="a")
    where = path.read_bytes().index(b"PK\3\4" + inner.getvalue()[4:30])
    refuses(edited(path, 42, "<I", where, which=4), "overlap")  # the directory inside has one entry too


@pytest.mark.parametrize("place", [8, 10])
def test_more_entries_than_the_directory_holds_are_refused(tmp_path, place):
    path = write_zip(tmp_path / "a.pt", b"N")
    refuses(edited(path, place, "<H", 60_000, magic=b"PK\5\6"), "part of several|cannot be right")


@pytest.mark.parametrize("form", FILES)
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, form):
    whole = FILES[form].read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refuses(path)
    path.write_bytes(whole + b"\0")
    refuses(path)


@pytest.mark.parametrize("form", FILES)
def test_flipped_bytes_end_in_the_same_data_or_a_refusal(tmp_path, form):
    whole = np.frombuffer(FILES[form].read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.pt", 0
    for _ in range(100):
        broken = whole.copy()
        places = rng.integers(0, len(broken), rng.integers(1, 4))
        broken[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
        path.write_bytes(broken.tobytes())
        try:
            read_weight_file(path)
        except CheckpointError:
            refused += 1
    assert refused > 20


def test_a_flipped_number_is_noticed_in_the_zip_form(tmp_path):
    arrays, raw = state({"w": np.ones(64, np.float32)})
    path = write_zip(tmp_path / "a.pt", arrays, raw)
    data = bytearray(path.read_bytes())
    data[data.index(raw["0"]) + 10] ^= 1
    path.write_bytes(data)
    refuses(path, "have changed since they were written")


OTHERS = {
    "a page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "gzip": (b"\x1f\x8b\x08" + bytes(64), "gzip"),
    "tar": (b"x" * 257 + b"ustar" + bytes(300), "tar"),
    "an index of TensorFlow": (bytes(64) + bytes.fromhex("57fb808b247547db"), "TensorFlow"),
    "JSON": (b'{"state_dict": "no, only a text"}', "JSON"),
    "zeros": (bytes(64), "no known file"),
    "an unfinished download": (b"PK\3\4", "4 bytes"),
    "a pickle of somebody": (pickle.dumps({"weights": [1.0] * 10}, 2), "not one that torch.save wrote"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_named_by_their_first_bytes(tmp_path, case):
    content, match = OTHERS[case]
    (tmp_path / "weights.pth").write_bytes(content)
    refuses(tmp_path / "weights.pth", match)


def test_a_file_that_is_not_there_is_no_checkpoint_error(tmp_path):
    with pytest.raises(InputError, match="downloads nothing"):
        read_weight_file(tmp_path / "absent.pt")


def safetensors(header, numbers=b"\0" * 8):
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + numbers


def entry(dtype='"F32"', shape="[2]", offsets="[0, 8]", more=""):
    return f'{{"w": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": {offsets}{more}}}}}'


SAFETENSORS = {
    "a shape that needs more": (safetensors(entry(shape="[3]")), "contradicts itself"),
    "a shape that is absurd": (safetensors(entry(shape="[1099511627776, 1099511627776, 0, 2]")), "contradicts itself"),
    "a negative shape": (safetensors(entry(shape="[-2]")), "contradicts itself"),
    "a shape of fractions": (safetensors(entry(shape="[2.0]")), "contradicts itself"),
    "a shape of truths": (safetensors(entry(shape="[true]", offsets="[0, 4]")), "contradicts itself"),
    "offsets the wrong way round": (safetensors(entry(offsets="[8, 0]")), "contradicts itself"),
    "offsets before the beginning": (safetensors(entry(offsets="[-8, 0]")), "contradicts itself"),
    "offsets behind the end": (safetensors(entry(offsets="[8, 16]")), "cut off"),
    "bytes of no array": (safetensors(entry(), b"\0" * 12), "leave bytes"),
    "an unknown type": (safetensors(entry(dtype='"F128"')), "F128"),
    "an unknown field": (safetensors(entry(more=', "code": "x"')), "contradicts itself"),
    "no dictionary": (safetensors("[1, 2, 3, 4]{".rjust(20)), "first bytes|JSON"),
    "a header that is cut off": (safetensors(entry())[:40], "first bytes|cut off"),
    "a header longer than the file": (struct.pack("<Q", 1 << 40) + b'{"w": 1}' + bytes(32), "first bytes|cut off"),
    "a header that is no JSON": (safetensors(b'{"w": \xff\xfe}      '), "JSON"),
    "a header nested without end": (safetensors('{"w": ' + "[" * 100_000), "JSON"),
    "one name twice": (safetensors(entry()[:-1] + ", " + entry()[1:]), "twice"),
    "two arrays of the same bytes": (safetensors(entry()[:-1] + ", " + entry()[1:].replace('"w"', '"v"')), "overlap"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, case):
    content, match = SAFETENSORS[case]
    (tmp_path / "a.safetensors").write_bytes(content)
    refuses(tmp_path / "a.safetensors", match)


@pytest.mark.parametrize("length", [128, 384])
def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_read(tmp_path, length):
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors(entry().ljust(length)))
    assert file.read_bytes()[0] == 0x80
    read = read_weight_file(file)
    assert read.form == "safetensors" and read.content["w"].shape == (2,)
