"""One door to files of weights: what a file is shows in its first bytes, never in its name. Called by `zoo.pretrained`."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from jaxseg.errors import CheckpointError, InputError
from jaxseg.files import read_json, sha256_of
from jaxseg.zoo.safetensors_file import read_safetensors
from jaxseg.zoo.torch_file import PICKLE_MAGIC, ZIP_MAGIC, read_torch_file

PLAN = "adaptation_plan.json"
_READABLE = "expected a .pt or .pth that torch.save wrote, a .safetensors, a model folder, or an Orbax checkpoint"
_OTHERS = {
    b"<": "an HTML or XML page, which a download that needs a login gives instead of the file; download it in a browser",
    b"version https://git-lfs": "a pointer of git-lfs, which stands for the file; fetch the file itself with `git lfs pull`",
    b"\x89HDF": "an HDF5 file, as Keras and TensorFlow write",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"BZh": "packed by bzip2; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"\xfd7zXZ": "packed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it first",
    b"PK\5\6": "an empty zip archive",
    b"\x93NUMPY": "a single numpy array",
    b"GGUF": "a GGUF file",
    b"{": "a JSON text",
}
_TENSORFLOW_INDEX = bytes.fromhex("57fb808b247547db")
"""The end of a table of LevelDB, which TensorFlow's `.index` files are."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightFile:
    """What was read.

    Attributes:
        path: the file or folder.
        form: "PyTorch", "safetensors" or "Orbax".
        content: plain data with numpy arrays in it.
        sha256: of the file's bytes; of a folder, of its files' names and hashes.
        plan: nnssl's adaptation plan, where `adaptation_plan.json` lies beside the file.
    """

    path: Path
    form: str
    content: Any
    sha256: str
    plan: Any = None


def read_weight_file(path: str | Path) -> WeightFile:
    """Read a file of weights without executing anything in it.

    Raises InputError if there is none, CheckpointError if it is damaged, of another kind (which is named), or asks for more than data.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; {_READABLE}. jaxseg downloads nothing: get a published checkpoint from its authors, and give its path"
        )
    if path.stat().st_size < 16:
        raise CheckpointError(f"{path}: the file has {path.stat().st_size} bytes: an unfinished download? {_READABLE}")
    with path.open("rb") as stream:
        head = stream.read(512)
    form = _form(path, head)
    content = read_safetensors(path) if form == "safetensors" else read_torch_file(path)
    plan = read_json(path.with_name(PLAN)) if path.with_name(PLAN).is_file() else None
    return WeightFile(path, form, content, sha256_of(path), plan)


def _form(path: Path, head: bytes) -> str:
    # First, since the length of a safetensors header may begin with the byte of a pickle; in a legacy file of PyTorch byte 8 is 0xf9.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if head.startswith(ZIP_MAGIC) or (head.startswith(PICKLE_MAGIC) and head[1] <= 5):
        return "PyTorch"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in _OTHERS.items():
        if text.startswith(magic) or head.startswith(magic):
            raise CheckpointError(f"{path}: this is {what}; {_READABLE}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path}: this is a tar archive; unpack it first. {_READABLE}")
    if _is_tensorflow(path, head):
        raise CheckpointError(f"{path}: this is a file of TensorFlow, which jaxseg does not read; {_READABLE}")
    raise CheckpointError(f"{path}: its first bytes ({head[:8]!r}) are those of no known file of weights; {_READABLE}")


def _is_tensorflow(path: Path, head: bytes) -> bool:
    with path.open("rb") as stream:
        stream.seek(-8, 2)
        return stream.read() == _TENSORFLOW_INDEX or head[4:8] == b"TFL3" or ".data-0000" in path.name


def _read_folder(folder: Path) -> WeightFile:
    from jaxseg.zoo.orbax_folder import find_orbax, read_orbax

    if (folder / "saved_model.pb").is_file():
        raise CheckpointError(f"{folder}: this is a SavedModel of TensorFlow, which jaxseg does not read; {_READABLE}")
    checkpoint = find_orbax(folder)
    if checkpoint is None:
        inside = sorted(path.name for path in folder.iterdir())[:5]
        raise CheckpointError(f"{folder}: neither a model folder nor an Orbax checkpoint (it holds {inside}); {_READABLE}")
    return WeightFile(checkpoint, "Orbax", read_orbax(checkpoint), _sha256_of_folder(checkpoint))


def _sha256_of_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
