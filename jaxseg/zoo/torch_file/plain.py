"""From the stand-ins that a pickle was read into, to ordinary data: dictionaries, lists, texts, numbers and numpy arrays. Called by `read_torch_file`."""

from typing import Any

from jaxseg.errors import CheckpointError
from jaxseg.zoo.torch_file.numpy_objects import NumpyArray, NumpyDtype
from jaxseg.zoo.torch_file.rules import Named, Namespace
from jaxseg.zoo.torch_file.tensors import Storage, Tensor

_DEEPEST = 100
_REPEATED = 16
"""How often a file may use its own bytes: a residual-encoder U-Net names each of its weights four times."""
_SLACK = 64 << 20


def plain(value: Any, where: str, file_bytes: int) -> Any:
    """The same data without stand-ins. Storages must have their bytes by now.

    Raises CheckpointError if the data is nested too deeply, contains itself, or claims arrays of far more than the file's own size.
    """
    return _Conversion(where, _REPEATED * file_bytes + _SLACK).convert(value, 0)


class _Conversion:
    def __init__(self, where: str, claim: int):
        self._where, self._left = where, claim
        self._done: dict[int, Any] = {}

    def convert(self, value: Any, depth: int) -> Any:
        if depth > _DEEPEST:
            raise CheckpointError(
                f"{self._where}: the data is nested more than {_DEEPEST} levels deep, or contains itself: not a checkpoint"
            )
        match value:
            case Tensor() | Storage():
                return self._array(value)
            case NumpyArray():
                return value.array
            case NumpyDtype():
                return str(value.dtype)
            case Named():
                return str(value)
            case dict() | list() | tuple() | Namespace():
                # Data that is met twice is converted once: without this, ten lists of ten lists of … take for ever.
                if id(value) not in self._done:
                    self._done[id(value)] = self._inside(value, depth + 1)
                return self._done[id(value)]
        return value

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {key: self.convert(item, depth) for key, item in value.items()}
        if isinstance(value, Namespace):
            return self.convert(value.attributes, depth)
        return type(value)(self.convert(item, depth) for item in value)

    def _array(self, value: Tensor | Storage) -> Any:
        self._left -= value.nbytes
        if self._left < 0:
            raise CheckpointError(
                f"{self._where}: the file claims arrays of more than {_REPEATED} times its own size, by using the same bytes again and again; "
                "no checkpoint does: refused"
            )
        return value.array() if isinstance(value, Tensor) else value.numbers(value.dtype)
