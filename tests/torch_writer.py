"""PyTorch's files put together by hand, instruction by instruction, so that tests need no PyTorch and can write what it never would."""

import struct
import zipfile
from pathlib import Path

import numpy as np

KINDS = {
    "f8": "Double",
    "f4": "Float",
    "f2": "Half",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "i1": "Char",
    "u1": "Byte",
    "b1": "Bool",
    "V2": "BFloat16",
}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def storage(kind: str, key: str, count: int) -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(held: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))) if strides is None else strides
    sizes = (tuple_of(*map(integer, each)) for each in (shape, strides))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), held, integer(offset), *sizes, b"\x89", hooks)


def pickled(content: bytes) -> bytes:
    return b"\x80\x02" + content + b"."


def state(arrays: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """A state_dict and its storages."""
    items, storages = {}, {}
    for i, (key, array) in enumerate(arrays.items()):
        storages[str(i)] = np.ascontiguousarray(array).tobytes()
        items[key] = tensor(storage(f"{KINDS[array.dtype.str[1:]]}Storage", str(i), array.size), array.shape)
    return mapping(items), storages


def write_zip(
    path: Path,
    content: bytes,
    storages: dict[str, bytes] | None = None,
    *,
    root: str = "archive",
    order: str | None = "little",
    packed=False,
) -> Path:
    """A zip file as torch.save writes it, around any pickled content; `packed` as somebody who zips it again would."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled(content))
        if order:
            archive.writestr(f"{root}/byteorder", order)
        for key, raw in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", raw)
        archive.writestr(f"{root}/version", "3\n")
    return path


def write_legacy(path: Path, content: bytes, storages: dict[str, bytes] | None = None, *, size: int = 4, little: bool = True) -> Path:
    """A file as torch.save wrote it before PyTorch 1.6; every number of its storages has `size` bytes."""
    system = b"}(" + text("protocol_version") + integer(1001) + text("little_endian") + (b"\x88" if little else b"\x89") + b"u"
    keys = list_of(*(text(key) for key in (storages or {})))
    parts = [integer(0x1950A86A20F9469CFC6C), integer(1001), system, content, keys]
    numbers = (struct.pack("<q", len(raw) // size) + raw for raw in (storages or {}).values())
    path.write_bytes(b"".join(map(pickled, parts)) + b"".join(numbers))
    return path
