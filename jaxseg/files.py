"""Files written whole or not at all, hashes, JSON, and a lock on a folder. Used by everything that writes."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxseg.errors import InputError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOST = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT}
_NO_FOLDER = {errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write under `path` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{path}: no space left on this disk while writing; free some space and run the same command again"
            ) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise StorageError(f"{path}: not writable ({error.strerror}); choose another --out or change its permissions") from error
        if error.errno in _LOST:
            raise StorageError(
                f"{path}: this disk could not be written ({error.strerror}); see that it is there and works, and run the same command again"
            ) from error
        raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. StorageError where that cannot be, as below a file."""
    with storage_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _NO_FOLDER:
                raise
            raise StorageError(f"{folder}: no folder can be made here ({_obstacle(folder, error)}); choose another --out") from error


def _obstacle(folder: Path, error: OSError) -> str:
    file = next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None)
    return str(error.strerror) if file is None else f"{'this' if file == folder else file} is a file"


def write_whole(path: str | Path, write: Callable[[Path], object], *, mode: int = 0o666) -> Path:
    """Call `write(temporary)` and move the result to `path`, so that a reader never sees half a file.

    The temporary file lies in the same folder and keeps the suffixes of `path` (writers choose a format by them). `mode` less the umask are the
    file's permissions: 0o600 keeps it to its owner from the start.
    """
    path = Path(path)
    make_folder(path.parent)
    if os.path.isdir(path):
        raise StorageError(f"{path}: this is a folder, expected the name of a file to write; choose another --out")
    with storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with open(temporary, "rb") as done:
                os.fsync(done.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(mode & ~umask)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def write_text(path: str | Path, text: str, *, mode: int = 0o666) -> Path:
    """Write UTF-8 text whole or not at all."""
    return write_whole(path, lambda temporary: temporary.write_bytes(text.encode()), mode=mode)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes whole or not at all."""
    return write_whole(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: str | Path, value: Any, *, mode: int = 0o666) -> Path:
    """Write JSON (keys in the order given, NaN refused) whole or not at all."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", mode=mode)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError if it is missing, cannot be read or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # programs on Windows put a byte order mark before it
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or numbers and depths that nobody means
        raise InputError(f"{path}: this is not a JSON file ({error})") from None


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_each(paths: Sequence[str | Path]) -> list[str]:
    """SHA-256 of each file, in their order; several at once, because hashing leaves Python's lock alone."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hash") as threads:
        return list(threads.map(sha256_of, paths))


@contextlib.contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Hold `folder` for one process; a second one gets a StorageError. The lock dies with its process."""
    folder = Path(folder)
    make_folder(folder)
    with storage_errors(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 64).decode(errors="replace").strip()
            raise StorageError(
                f"{folder}: another run (process {owner or 'unknown'}) is using this folder; wait for it, or choose another --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
