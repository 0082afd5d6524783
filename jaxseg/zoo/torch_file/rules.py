"""What a PyTorch pickle may name: containers, tensors, numpy's numbers and plain namespaces. All else is refused by its name.

`archive` and `legacy` hand a `TorchRules` to the pickle machine; `plain` turns what comes out into ordinary data.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxseg.errors import CheckpointError
from jaxseg.zoo.torch_file import numpy_objects
from jaxseg.zoo.torch_file.numpy_objects import NumpyArray, NumpyDtype
from jaxseg.zoo.torch_file.pickle_machine import MOST_STEPS, is_plain_key
from jaxseg.zoo.torch_file.tensors import DTYPES, STORAGES, Storage, Tensor, make_tensor

_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "pathlib._local": "pathlib",
    "torch.storage": "torch",
    "torch.nn.parameter": "torch.nn",
}
"""Where a thing lives in some versions → where the lists below have it."""
_VALUES = {
    *(f"torch.{name}" for name in (*STORAGES, *DTYPES)),
    *("torch.Tensor", "torch.nn.Parameter", "torch.nn.Buffer", "torch.strided", "torch.contiguous_format", "torch.preserve_format"),
    *(f"builtins.{name}" for name in ("object", "int", "float", "str", "bool")),
    "numpy.ndarray",
}
"""Named, never called: they say what something is."""


class Named(str):
    """The text "module.name" of something that a file names and that is allowed. Nothing can be done with it but look it up here."""


class Namespace:
    """A plain object's attributes."""

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


class TorchRules:
    """The allow-list, and the storages that the pickle has referred to. `where` is the file, for messages."""

    def __init__(self, where: str):
        self.storages: dict[str, Storage] = {}
        self._where = where
        self._left_to_copy = MOST_STEPS

    def find(self, module: str, name: str) -> Named:
        """The name, if it is allowed."""
        full = Named(f"{_MODULES.get(module, module)}.{name}")
        if full in _VALUES or full in _CALLS:
            return full
        raise CheckpointError(
            f"{self._where}: the file asks for the Python object {f'{module}.{name}'[:200]!r}, which has no place among weights: refused, "
            "and nothing of it was executed. If it is a whole model or a settings object, save the model's state_dict() alone in PyTorch"
        )

    def call(self, function: Any, arguments: tuple) -> Any:
        """What one of the allowed calls gives."""
        if type(function) is not Named or function not in _CALLS:
            raise self._refused(f"calls {str(function)!r}" if type(function) is Named else f"calls a {type(function).__name__}")
        made = _CALLS[function](self, arguments)
        if made is None:
            raise self._refused(f"calls {str(function)!r} with arguments that do not fit")
        return made

    def build(self, made: Any, state: Any) -> None:
        """Fill a namespace or a numpy stand-in. What torch hangs on its dictionaries (`_metadata`) is left out."""
        match made, state:
            case dict(), dict():
                return
            case Namespace(), dict():
                made.attributes = state
                return
            case NumpyDtype() | NumpyArray(), _:
                if made.fill(state):
                    return
        raise self._refused(f"gives a {type(made).__name__} a state of another kind")

    def persistent(self, identity: Any) -> Storage:
        """The storage that torch keeps outside of the pickle."""
        match identity:
            case ("storage", Named() as kind, str(key), str(), int(count), *rest) if 0 <= count < 1 << 60 and rest in ([], [None]):
                dtype = STORAGES.get(kind.removeprefix("torch."))
            case _:
                dtype = None
        if dtype is None:
            raise self._refused("refers to something outside of its pickle that is no storage")
        known = self.storages.setdefault(key, Storage(key, dtype, count))
        if (known.dtype, known.count) != (dtype, count):
            raise self._refused(f"describes its storage {key[:40]!r} twice, differently")
        return known

    def _refused(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: the file {what}: not what torch.save writes, refused; nothing of it was executed")

    def _copied(self, count: int) -> None:
        # One short instruction can copy a long list that was made once: what is copied is bounded as a whole.
        self._left_to_copy -= count
        if self._left_to_copy < 0:
            raise self._refused("copies the same data again and again")

    def _mapping(self, arguments: tuple) -> dict | None:
        match arguments:
            case ():
                return {}
            case (dict(items),):
                self._copied(len(items))
                return dict(items)
            case (list(pairs),) if all(type(pair) in (list, tuple) and len(pair) == 2 and is_plain_key(pair[0]) for pair in pairs):
                self._copied(len(pairs))
                return {pair[0]: pair[1] for pair in pairs}
        return None

    def _collection(self, kind: type, arguments: tuple) -> Any:
        match arguments:
            case ():
                return kind()
            case (list() | tuple() | set() | frozenset() as items,):
                self._copied(len(items))
                if kind in (list, tuple) or all(is_plain_key(item) for item in items):
                    return kind(items)
        return None

    def _encoded(self, arguments: tuple) -> bytes | None:
        match arguments:
            case (str(text), "latin1" | "latin-1"):
                self._copied(len(text) // 16)
                return text.encode("latin-1", "replace")
        return None

    def _device(self, arguments: tuple) -> str | None:
        match arguments:
            case (str(kind),):
                return kind[:64]
            case (str(kind), int(index)):
                return f"{kind[:64]}:{index}"
        return None

    def _path(self, arguments: tuple) -> str | None:
        if not all(type(part) is str for part in arguments):
            return None
        self._copied(sum(map(len, arguments)) // 16)
        return "/".join(arguments).replace("//", "/")

    def _rebuild(self, arguments: tuple) -> Tensor | None:
        match arguments:
            case (Storage() as storage, offset, shape, strides, *_):
                return make_tensor(self._where, storage, storage.dtype, offset, shape, strides)
        return None

    def _rebuild_typed(self, arguments: tuple) -> Tensor | None:
        match arguments:
            case (Storage() as storage, offset, shape, strides, _, _, Named() as dtype, *_) if dtype.removeprefix("torch.") in DTYPES:
                return make_tensor(self._where, storage, dtype.removeprefix("torch."), offset, shape, strides)
        return None

    def _parameter(self, arguments: tuple) -> Tensor | None:
        return arguments[0] if arguments and isinstance(arguments[0], Tensor) else None

    def _subclass(self, arguments: tuple) -> Tensor | None:
        match arguments:
            case (Named() as function, Named() as kind, tuple(inner), *_) if function in _TENSORS and kind in _VALUES:
                return _TENSORS[function](self, inner)
        return None

    def _reconstruct(self, arguments: tuple) -> Namespace | None:
        match arguments:
            case (Named() as kind, Named("builtins.object"), None) if kind in _NAMESPACES:
                return Namespace()
        return None


_Call = Callable[[TorchRules, tuple], Any]
_NAMESPACES: Mapping[str, _Call] = {
    name: lambda rules, arguments: None if arguments else Namespace() for name in ("argparse.Namespace", "types.SimpleNamespace")
}
_TENSORS: Mapping[str, _Call] = {
    "torch._utils._rebuild_tensor": TorchRules._rebuild,
    "torch._utils._rebuild_tensor_v2": TorchRules._rebuild,
    "torch._utils._rebuild_tensor_v3": TorchRules._rebuild_typed,
    "torch._utils._rebuild_parameter": TorchRules._parameter,
    "torch._utils._rebuild_parameter_with_state": TorchRules._parameter,
}
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_CALLS: Mapping[str, _Call] = {
    **_NAMESPACES,
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": TorchRules._subclass,
    "torch.Size": lambda rules, arguments: rules._collection(tuple, arguments),
    "torch.device": TorchRules._device,
    "collections.OrderedDict": TorchRules._mapping,
    "collections.Counter": TorchRules._mapping,
    "collections.defaultdict": lambda rules, arguments: rules._mapping(arguments[1:]),
    "builtins.dict": TorchRules._mapping,
    "builtins.list": lambda rules, arguments: rules._collection(list, arguments),
    "builtins.tuple": lambda rules, arguments: rules._collection(tuple, arguments),
    "builtins.set": lambda rules, arguments: rules._collection(set, arguments),
    "builtins.frozenset": lambda rules, arguments: rules._collection(frozenset, arguments),
    "builtins.bytes": lambda rules, arguments: None if arguments else b"",
    "_codecs.encode": TorchRules._encoded,
    "copyreg._reconstructor": TorchRules._reconstruct,
    **{f"pathlib.{flavour}": TorchRules._path for flavour in _PATHS},
    "numpy.dtype": lambda rules, arguments: numpy_objects.make_dtype(arguments),
    "numpy.core.multiarray.scalar": lambda rules, arguments: numpy_objects.make_scalar(arguments),
    "numpy.core.multiarray._reconstruct": lambda rules, arguments: numpy_objects.make_empty_array(arguments),
    "numpy.core.numeric._frombuffer": lambda rules, arguments: numpy_objects.make_array(arguments),
}
"""Each is a function of this file or its neighbour; what the file's own Python would have called is never looked up."""
