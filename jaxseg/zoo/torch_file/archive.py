"""The zip form that `torch.save` writes since PyTorch 1.6: `NAME/data.pkl` describes, `NAME/data/0 …` hold the numbers. Called by `read_torch_file`."""

from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.zoo.torch_file.pickle_machine import MOST_BYTES, PickleMachine
from jaxseg.zoo.torch_file.rules import TorchRules
from jaxseg.zoo.torch_file.tensors import Storage
from jaxseg.zoo.torch_file.zip_directory import DEFLATED, STORED, Entry, check_bytes, read_directory, unpack

_PICKLE = "data.pkl"
_MOST_INFLATED = 8
"""How many times larger than the file its packed entries may become. Weights pack to nine tenths; an archive of zeros packs a thousandfold."""
_SLACK = 64 << 20


def read_archive(data: np.ndarray, where: str) -> Any:
    """The object in a zip archive (`data`: its bytes, uint8, mapped), with stand-ins for tensors; their storages are views of `data`.

    Raises CheckpointError for any archive that torch.save has not written, TorchScript among them.
    """
    view = data.data
    entries = read_directory(view, where)
    root = _root(entries, where)
    _check_sizes(entries, len(data), where)
    rules = TorchRules(where)
    content = PickleMachine(_content(view, entries[root + _PICKLE], where), rules, where).run()
    order = b"little"
    if (name := root + "byteorder") in entries:
        order = _content(view, entries[name], where)
        if order not in (b"little", b"big"):
            raise CheckpointError(f"{where}: the byte order is {order[:20]!r}, neither little nor big; the file is damaged")
    for storage in rules.storages.values():
        storage.data, storage.big_endian = _numbers(data, view, entries, root, storage, where), order == b"big"
    return content


def _root(entries: dict[str, Entry], where: str) -> str:
    pickles = [name for name in entries if name.endswith("/" + _PICKLE) and name.count("/") == 1]
    inside = sorted(entries)[:5]
    if any((name.count("/") == 1 and name.endswith("/constants.pkl")) or "/code/" in name for name in entries):
        raise CheckpointError(
            f"{where}: a TorchScript archive (a program with its weights), which jaxseg does not run. In PyTorch: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    if len(pickles) == 1:
        return pickles[0].removesuffix(_PICKLE)
    if pickles:
        raise CheckpointError(
            f"{where}: a zip archive with {len(pickles)} checkpoints ({', '.join(pickles[:3])}); unpack it, and give one of them"
        )
    if all(name.endswith(".npy") for name in entries) and entries:
        raise CheckpointError(f"{where}: numpy's .npz archive, not a PyTorch checkpoint; expected .pt, .pth or .safetensors")
    raise CheckpointError(f"{where}: a zip archive without torch's data.pkl; it holds {inside}. Unpack it, and give the checkpoint in it")


def _check_sizes(entries: dict[str, Entry], file_bytes: int, where: str) -> None:
    inflated = sum(entry.size for entry in entries.values() if entry.method == DEFLATED)
    if inflated > _MOST_INFLATED * file_bytes + _SLACK:
        raise CheckpointError(f"{where}: {file_bytes} bytes that would unpack to {inflated}: a zip bomb, refused")


def _content(view: memoryview, entry: Entry, where: str) -> bytes:
    if entry.size > MOST_BYTES:
        raise CheckpointError(f"{where}: {entry.name!r} has {entry.size} bytes, too many for a checkpoint's description: refused")
    if entry.method == STORED:
        check_bytes(view, entry, where)
    return unpack(view, entry, where)


def _numbers(data: np.ndarray, view: memoryview, entries: dict[str, Entry], root: str, storage: Storage, where: str) -> np.ndarray:
    entry = entries.get(f"{root}data/{storage.key}")
    if entry is None:
        raise CheckpointError(f"{where}: the numbers of storage {storage.key[:40]!r} are missing; the file is damaged")
    if entry.size != storage.nbytes:
        raise CheckpointError(
            f"{where}: storage {storage.key!r} should have {storage.nbytes} bytes ({storage.count} of {storage.dtype}), found {entry.size}; "
            "the file is damaged, or made to do harm"
        )
    if entry.method == DEFLATED:
        return np.frombuffer(unpack(view, entry, where), np.uint8)
    check_bytes(view, entry, where)
    return data[entry.start : entry.start + entry.size]
