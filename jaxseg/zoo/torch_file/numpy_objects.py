"""numpy's numbers and arrays as a pickle describes them, built from checked bytes. `rules` calls it where a checkpoint holds some (logs, scores).

Each function takes the arguments that numpy's own would be called with, and returns None where they are not what numpy writes.
"""

import math
import re
from typing import Any

import numpy as np

from jaxseg.zoo.torch_file.tensors import is_shape

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
_TEXT = re.compile(r"[SU][1-9]\d{0,4}")


class NumpyDtype:
    """A dtype of plain numbers or text; its byte order comes later, as its state."""

    def __init__(self, text: str):
        self.dtype = np.dtype(text)

    def fill(self, state: Any) -> bool:
        """Take over the byte order. False if the state is not that of a plain dtype."""
        match state:
            case (int(), "<" | ">" as order, None, None, None, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case (int(), "|" | "=", None, None, None, *_):
                pass
            case _:
                return False
        return True


class NumpyArray:
    """An array whose content comes later, as its state."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = np.empty(0) if array is None else array

    def fill(self, state: Any) -> bool:
        """Take over shape, type and numbers. False if they do not fit each other."""
        match state:
            case (int(), tuple(shape), NumpyDtype() as kind, bool(fortran), bytes(raw)):
                array = _from_bytes(raw, kind.dtype, shape, "F" if fortran else "C")
                self.array = self.array if array is None else array
                return array is not None
        return False


def make_dtype(arguments: tuple) -> NumpyDtype | None:
    """`numpy.dtype(text, align, copy)` of plain numbers or text; objects and records are none."""
    match arguments:
        case (str(text), *_) if _NUMBERS.fullmatch(text) or _TEXT.fullmatch(text):
            return NumpyDtype(text)
    return None


def make_scalar(arguments: tuple) -> Any:
    """`numpy.core.multiarray.scalar(dtype, bytes)` as Python's number or text."""
    match arguments:
        case (NumpyDtype() as kind, bytes(raw)) if len(raw) == kind.dtype.itemsize:
            if kind.dtype.kind == "U":
                return raw.decode("utf-32-be" if kind.dtype.byteorder == ">" else "utf-32-le", "replace").rstrip("\0")
            return np.frombuffer(raw, kind.dtype)[0].item()
    return None


def make_empty_array(arguments: tuple) -> NumpyArray | None:
    """`numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")`."""
    match arguments:
        case (str("numpy.ndarray"), (0,), bytes()):
            return NumpyArray()
    return None


def make_array(arguments: tuple) -> NumpyArray | None:
    """`numpy.core.numeric._frombuffer(bytes, dtype, shape, order)`."""
    match arguments:
        case (bytes(raw), NumpyDtype() as kind, tuple(shape), "C" | "F" as order):
            array = _from_bytes(raw, kind.dtype, shape, order)
            return None if array is None else NumpyArray(array)
    return None


def _from_bytes(raw: bytes, dtype: np.dtype, shape: tuple, order: Any) -> np.ndarray | None:
    if not is_shape(shape) or dtype.kind in "SU":
        return None
    count = math.prod(shape)
    if count * dtype.itemsize != len(raw):
        return None
    if count == 0:
        return np.empty(shape, dtype)
    numbers = np.frombuffer(raw, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(raw, dtype)
    return numbers.reshape(shape, order=order)
