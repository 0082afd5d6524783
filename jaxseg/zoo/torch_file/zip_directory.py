"""The directory of a zip archive, read without trusting it: nothing is unpacked, and every entry's bytes are proven to lie where it says.

`archive` reads PyTorch's files through it. `zipfile` would build its list of entries before any limit could be applied to it.
"""

import struct
import zlib
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from jaxseg.errors import CheckpointError

STORED, DEFLATED = 0, 8
_MOST_ENTRIES = 200_000
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_BLOCK = 1 << 20


class Entry(NamedTuple):
    """A file inside the archive: its bytes lie at `start`, `packed` of them, and unpack to `size`."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int


def read_directory(data: Any, where: str) -> dict[str, Entry]:
    """The entries of an archive (`data`: its bytes), by name.

    Raises CheckpointError for an archive that is cut off, spread over disks, encrypted, or whose entries overlap, share a name, are packed in
    an unknown way, or have a name that leads out of the archive.
    """
    count, size, start, end = _find(data, where)
    entries: dict[str, Entry] = {}
    position, used = start, []
    for _ in range(count):
        if position + _CENTRAL.size > start + size:
            raise _broken(where, "its directory is cut off")
        fields = _CENTRAL.unpack_from(data, position)
        names = position + _CENTRAL.size
        position = names + fields[10] + fields[11] + fields[12]
        if fields[0] != b"PK\1\2" or position > start + size:
            raise _broken(where, "its directory is damaged")
        entry, header = _entry(data, fields, names, where)
        if entry.name in entries:
            raise _broken(where, f"two of its entries are called {entry.name[:80]!r}")
        entries[entry.name] = entry
        used.append((header, entry.start + entry.packed))
    used.sort()
    used.append((start, end))
    if position != start + size or any(before[1] > after[0] for before, after in zip(used, used[1:])):
        raise _broken(where, "its entries overlap")
    return entries


def check_bytes(data: Any, entry: Entry, where: str) -> None:
    """CheckpointError if a stored entry's bytes have changed since they were written. A checksum of 0 is torch's sign that it made none."""
    crc = 0
    for at in range(entry.start, entry.start + entry.packed if entry.crc else entry.start, _BLOCK):
        crc = zlib.crc32(data[at : min(at + _BLOCK, entry.start + entry.packed)], crc)
    if crc != entry.crc:
        raise _broken(where, f"the bytes of {entry.name[:80]!r} have changed since they were written")


def unpack(data: Any, entry: Entry, where: str) -> bytes:
    """The content of an entry. No more is ever unpacked than its `size`, which the caller has found acceptable."""
    packed = bytes(data[entry.start : entry.start + entry.packed])
    if entry.method == STORED:
        return packed
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(packed, entry.size + 1)
    except zlib.error as error:
        raise _broken(where, f"{entry.name[:80]!r} cannot be unpacked ({error})") from None
    if len(content) != entry.size or not stream.eof or (entry.crc and zlib.crc32(content) != entry.crc):
        raise _broken(where, f"{entry.name[:80]!r} does not unpack to the {entry.size} bytes that it says")
    return content


def _find(data: Any, where: str) -> tuple[int, int, int, int]:
    """How many entries there are, and the directory's size, start and the end of what may be used before it."""
    tail_start = max(0, len(data) - _END.size - _LONGEST_COMMENT)
    tail = bytes(data[tail_start:])
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise _broken(where, "its end is missing: the file is cut off (an incomplete download or copy?)")
    _, disk, start_disk, here, count, size, start, comment = _END.unpack_from(tail, at)
    at += tail_start
    if at + _END.size + comment != len(data):
        raise _broken(where, "something follows its end")
    limit = at
    if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, start):
        disk, start_disk, here, count, size, start, limit = _find64(data, at, where)
    if disk or start_disk or here != count:
        raise _broken(where, "it is one part of several")
    if count > _MOST_ENTRIES or count * _CENTRAL.size > size or start + size > limit:
        raise _broken(where, f"its directory cannot be right ({count} entries in {size} bytes at {start} of {len(data)})")
    return count, size, start, start + size


def _find64(data: Any, end: int, where: str) -> tuple[int, int, int, int, int, int, int]:
    locator = end - _LOCATOR64.size
    if locator < _END64.size:
        raise _broken(where, "its directory is damaged")
    magic, _, at, _ = _LOCATOR64.unpack_from(data, locator)
    if magic != b"PK\6\7" or at + _END64.size > locator:
        raise _broken(where, "its directory is damaged")
    magic, _, _, _, disk, start_disk, here, count, size, start = _END64.unpack_from(data, at)
    if magic != b"PK\6\6":
        raise _broken(where, "its directory is damaged")
    return disk, start_disk, here, count, size, start, at


def _entry(data: Any, fields: tuple, names: int, where: str) -> tuple[Entry, int]:
    """An entry of the directory, and where its own header begins."""
    _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, _, _, _, _, header = fields
    raw = bytes(data[names : names + name_length])
    name = _name(raw, where)
    extra = bytes(data[names + name_length : names + name_length + extra_length])
    size, packed, header = _wide(extra, (size, packed, header), where)
    if flags & 1 or method not in (STORED, DEFLATED):
        raise _broken(where, f"{name[:80]!r} is {'encrypted' if flags & 1 else f'packed by method {method}'}, which torch.save never does")
    if header + _LOCAL.size > len(data):
        raise _broken(where, f"{name[:80]!r} lies outside of the file")
    local = _LOCAL.unpack_from(data, header)
    start = header + _LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\3\4" or bytes(data[header + _LOCAL.size : header + _LOCAL.size + local[9]]) != raw or local[3] != method:
        raise _broken(where, f"{name[:80]!r} is not where the directory says")
    if start + packed > len(data) or (method == STORED and packed != size):
        raise _broken(where, f"{name[:80]!r} is longer than the file, or than it says")
    return Entry(name, method, crc, packed, size, start), header


def _name(raw: bytes, where: str) -> str:
    name = raw.decode("utf-8", "replace")
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or set(name) & {"\\", "\0", ":", "\ufffd"}:
        raise _broken(where, f"the entry {name[:80]!r} has a name that leads out of the archive, or is none")
    return name


def _wide(extra: bytes, narrow: tuple[int, int, int], where: str) -> tuple[int, int, int]:
    """Size, packed size and offset, where they are too large for 32 bits from the entry's extra field."""
    if 0xFFFFFFFF not in narrow:
        return narrow
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and length % 8 == 0 and len(extra) >= 4 + length:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            size, packed, header = (next(wide, value) if value == 0xFFFFFFFF else value for value in narrow)
            return size, packed, header
        extra = extra[4 + length :]
    raise _broken(where, "its directory is damaged")


def _broken(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where}: not a usable zip archive: {what}; get the file from its source again")
