"""safetensors files: read as mapped numpy arrays after every claim of their header was checked, and written one array at a time.

`zoo.weight_file` reads, `zoo.folder` and `zoo.export` write. The format's own package holds a file twice in memory when it writes one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.zoo.torch_file.tensors import is_shape

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNED = 8
_LONGEST_HEADER = 64 << 20


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays by name, read-only views of the mapped file. The header's free text (`__metadata__`) is left out.

    Raises CheckpointError if the header is not what the format asks for: each array inside the file, of as many bytes as its shape and type
    take, none of them overlapping and no byte left over.
    """
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(_LONGEST_HEADER, len(data) - 8):
        raise _broken(path, f"its header should have {length} bytes, in a file of {len(data)}: cut off?")
    header = _parse(path, data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    numbers, arrays, spans = data[8 + length :], {}, []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(path, name, entry)
        if end > len(numbers):
            raise _broken(path, f"{name[:80]!r} ends at byte {end} of {len(numbers)}: cut off?")
        raw = numbers[start:end]
        # A byte of a boolean that is neither 0 nor 1 would be undefined behaviour in numpy.
        arrays[name] = (raw != 0 if dtype.kind == "b" else raw.view(dtype)).reshape(shape)
        spans.append((start, end))
    spans.sort()
    ends = [0, *(end for _, end in spans)]
    if any(start != end for (start, _), end in zip(spans, ends)) or ends[-1] != len(numbers):
        raise _broken(path, "its arrays overlap, or leave bytes between or behind them")
    return arrays


def write_safetensors(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays by name, and free text about them. Raises OSError if the disk refuses."""
    # As the format's own writer does: the widest types first, so that every array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": _NAMES[arrays[name].dtype], "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stream.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)


def _parse(path: str | Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise _broken(path, "its header names something twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({type(error).__name__})") from None
    if type(header) is not dict:
        raise _broken(path, "its header is not a dictionary")
    return header


def _entry(path: str | Path, name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(end)], **rest} if not rest:
            dtype = _DTYPES.get(kind)
            if dtype is None:
                raise _broken(path, f"{name[:80]!r} is of the unknown type {kind[:20]!r}; known: {', '.join(_DTYPES)}")
            if is_shape(shape) and 0 <= start <= end and end - start == math.prod(shape) * dtype.itemsize:
                return dtype, tuple(shape), start, end
    raise _broken(path, f"the entry of {name[:80]!r} contradicts itself: {str(entry)[:200]}")


def _broken(path: str | Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a usable safetensors file: {what}; get the file from its source again")
