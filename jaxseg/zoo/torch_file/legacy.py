"""The form that `torch.save` wrote before PyTorch 1.6: five pickles one after the other, then the numbers. Called by `read_torch_file`."""

from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.zoo.torch_file.pickle_machine import PickleMachine
from jaxseg.zoo.torch_file.rules import TorchRules

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT_BYTES = 8


def read_legacy(data: np.ndarray, where: str) -> Any:
    """The object in a legacy file (`data`: its bytes, uint8, mapped), with stand-ins for tensors; their storages are views of `data`.

    Raises CheckpointError for any pickle that torch.save has not written.
    """
    view, rules = data.data, TorchRules(where)
    position, parts = 0, []
    for expected in (_MAGIC, _PROTOCOL, None, None, None):
        machine = PickleMachine(view, rules, where, position)
        part = machine.run()
        if expected is not None and (type(part) is not int or part != expected):
            raise CheckpointError(f"{where}: a Python pickle, but not one that torch.save wrote; expected .pt, .pth or .safetensors")
        parts.append(part)
        position = machine.position
    _, _, system, content, keys = parts
    if type(system) is not dict or type(system.get("little_endian")) is not bool:
        raise CheckpointError(f"{where}: the machine that wrote the file is not described as torch does; the file is damaged")
    _find_numbers(data, position, keys, rules, big_endian=not system["little_endian"], where=where)
    return content


def _find_numbers(data: np.ndarray, position: int, keys: Any, rules: TorchRules, *, big_endian: bool, where: str) -> None:
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(rules.storages):
        raise CheckpointError(f"{where}: the list of storages is not that of the tensors; the file is damaged")
    for key in keys:
        storage = rules.storages[key]
        count = int.from_bytes(data[position : position + _COUNT_BYTES].tobytes(), "little", signed=True)
        position += _COUNT_BYTES
        if count != storage.count or position + storage.nbytes > len(data):
            raise CheckpointError(
                f"{where}: storage {key[:40]!r} should have {storage.count} numbers of {storage.dtype}, found {count} in the "
                f"{max(0, len(data) - position)} bytes that are left; the file is cut off or damaged"
            )
        storage.data, storage.big_endian = data[position : position + storage.nbytes], big_endian
        position += storage.nbytes
    if position != len(data):
        raise CheckpointError(
            f"{where}: {len(data) - position} bytes follow the last tensor; the file is damaged, or holds more than one object"
        )
