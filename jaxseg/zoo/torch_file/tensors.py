"""Tensors as PyTorch stores them: a storage of numbers, and views into it by offset, shape and strides. `rules` makes them."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from jaxseg.errors import CheckpointError

# torch's name of a number → numpy's dtype
DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}
# torch's name of a storage → torch's name of its numbers; an untyped one holds bytes, and the tensor says what they are
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_MOST_AXES = 32
_LARGEST = 1 << 56


@dataclasses.dataclass(eq=False)
class Storage:
    """Numbers in a file: `count` of `dtype` under `key`. Its bytes are set when they have been found."""

    key: str
    dtype: str
    count: int
    data: np.ndarray | None = None
    big_endian: bool = False
    _seen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How many bytes the numbers take."""
        return self.count * DTYPES[self.dtype].itemsize

    def numbers(self, dtype: str) -> np.ndarray:
        """All numbers, one axis, read-only; a view of the file unless their byte order is foreign."""
        if dtype not in self._seen:
            assert self.data is not None, "a storage is read after its bytes were found"
            self._seen[dtype] = _decode(self.data, DTYPES[dtype], self.big_endian)
        return self._seen[dtype]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view into a storage, with offset and strides counted in numbers."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What the tensor takes when it is copied out of its storage."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def array(self) -> np.ndarray:
        """The numbers, read-only."""
        numbers = self.storage.numbers(self.dtype)
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, numbers.dtype)
        size = numbers.dtype.itemsize
        return np.ndarray(self.shape, numbers.dtype, numbers, self.offset * size, tuple(stride * size for stride in self.strides))


def is_shape(sizes: Iterable[Any]) -> bool:
    """Whether these are the sizes of an array that numpy can make; with an axis of 0 the others still count."""
    sizes = list(sizes)
    return len(sizes) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in sizes) and math.prod(n or 1 for n in sizes) < _LARGEST


def make_tensor(where: str, storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor whose every number lies inside its storage; CheckpointError otherwise."""
    fits = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
    if not fits or not all(type(n) is int and 0 <= n < 1 << 60 for n in (offset, *strides)) or not is_shape(shape):
        raise CheckpointError(
            f"{where}: a tensor of storage {storage.key!r} has an impossible shape, strides or offset; the file is damaged"
        )
    available = storage.nbytes // DTYPES[dtype].itemsize
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(shape) and last >= available:
        raise CheckpointError(
            f"{where}: a tensor of shape {shape} and strides {strides} at {offset} reaches beyond its storage {storage.key!r} "
            f"of {available} numbers; the file is damaged, or made to do harm"
        )
    # The stride of an axis of one is never used, and may be anything in torch.
    return Tensor(storage, dtype, offset, shape, tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides)))


def _decode(data: np.ndarray, dtype: np.dtype, big_endian: bool) -> np.ndarray:
    data = data[: len(data) - len(data) % dtype.itemsize]
    if big_endian and dtype.itemsize > 1:
        word = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        data = data.view(f"u{word}").byteswap().view(np.uint8)
    # A byte of a boolean that is neither 0 nor 1 would be undefined behaviour in numpy.
    numbers = data != 0 if dtype == np.bool_ else data.view(dtype)
    numbers.flags.writeable = False
    return numbers
