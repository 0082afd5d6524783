"""Bytes off the disk and out of compression, counted and checked, whatever the format. Called by the readers of each format."""

import bz2
import gzip
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from zlib_ng import gzip_ng, zlib_ng

from jaxseg.data.io.decoded import Rules
from jaxseg.errors import InputError

InflateError = cast(type[Exception], zlib_ng.error)  # its stub file calls the class an instance
SLACK = 1 << 26  # bytes beyond the voxels that a file may hold (extensions, padding) before it counts as a bomb
_CHUNK = 1 << 24


@contextmanager
def damage(name: str, kind: str = "gzip") -> Iterator[None]:
    """Turn what decompression says of a damaged stream into an InputError."""
    try:
        yield
    except EOFError:
        raise InputError(f"{name}: truncated: the {kind} stream ends early; copy the file again") from None
    except (InflateError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault; decompressors raise OSError without a number
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
        raise InputError(f"{name}: the {kind} stream is damaged ({error}); copy the file again from its source") from None


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading; InputError when it is missing, unreadable or no file (a pipe, say, would be waited for for ever)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise InputError(f"{path}: this is no file (a pipe, a socket or a device)")
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_bytes(path: Path, rules: Rules) -> bytes:
    """A file's bytes; InputError when it is missing, unreadable, empty or larger than a scan may be."""
    with open_file(path) as file:
        size = path.stat().st_size
        if size > rules.max_bytes + SLACK:
            raise InputError(f"{path}: {size:,} bytes, more than the limit of {rules.max_bytes:,}; raise max_bytes if this is right")
        data = file.read()
    if not data:
        raise InputError(f"{path}: an empty file (0 bytes); copy it again")
    return data


def read_up_to(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, or as many as there are, without trusting `size` with an allocation."""
    parts, left = [], size
    while left > 0 and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def drain(stream: BinaryIO, name: str) -> None:
    """Read to the end, where a checksum is checked; InputError if far more follows than a sound file has."""
    extra = 0
    while part := stream.read(_CHUNK):
        extra += len(part)
        if extra > SLACK:
            raise InputError(f"{name}: more than {SLACK:,} bytes follow the voxels; this is not a sound file")


def unpack(data: bytes, encoding: str, size: int, name: str, *, skip: int = 0) -> bytes:
    """The `size` bytes of voxels in `data`, after `skip` decompressed ones (-1, for raw data: those at the very end).

    Args:
        encoding: "raw", "gzip", "bzip2" or "zlib" (which admits no `skip`).

    Raises:
        InputError: truncated or damaged, with the bytes found and expected.
    """
    if encoding == "zlib":
        return _inflate(data, size, name)
    if skip < 0:
        skip = max(len(data) - size, 0)
    with damage(name, encoding):
        stream = _open(data, encoding)
        if (found := len(read_up_to(stream, skip))) < skip:
            raise InputError(f"{name}: the voxels are said to begin at byte {skip:,}, but there are {found:,}; copy the file again")
        body = read_up_to(stream, size)
        drain(stream, name)
    if len(body) < size:
        raise InputError(f"{name}: truncated: {len(body):,} bytes of voxels, expected {size:,}; copy the file again")
    return body


def _open(data: bytes, encoding: str) -> BinaryIO:
    plain = io.BytesIO(data)
    return cast(
        BinaryIO, {"raw": lambda: plain, "gzip": lambda: gzip_ng.GzipFile(fileobj=plain), "bzip2": lambda: bz2.BZ2File(plain)}[encoding]()
    )


def _inflate(data: bytes, size: int, name: str) -> bytes:
    """A zlib (or gzip) stream that must hold exactly `size` bytes; no more than that is ever inflated."""
    with damage(name, "zlib"):
        inflater = zlib_ng.decompressobj(wbits=47)
        body = inflater.decompress(data, size + 1)
        more = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, 1)
    if len(body) + len(more) > size:
        raise InputError(f"{name}: the zlib stream holds more than the {size:,} bytes of voxels that the header declares")
    if not inflater.eof:
        raise InputError(f"{name}: truncated: the zlib stream ends early after {len(body):,} of {size:,} bytes; copy the file again")
    if len(body) < size:
        raise InputError(f"{name}: truncated: {len(body):,} bytes of voxels, expected {size:,}; copy the file again")
    return body
