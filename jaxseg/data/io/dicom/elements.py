"""A DICOM file's elements as plain numbers and text, whatever damage is in it. Called by every other module of this package.

Values are taken from the raw bytes: pydicom's own conversion warns with the value's text, which may name a patient.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.stream import SLACK
from jaxseg.errors import InputError

_BROKEN = (AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError, Warning)
_BROKEN += (struct.error, zlib.error)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNDEFINED, _END_OF_FRAGMENTS = 0xFFFFFFFF, b"\xfe\xff\xdd\xe0\0\0\0\0"
_NUMBER_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}


def need_pydicom() -> ModuleType:
    """pydicom; InputError that names the extra where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise InputError("reading DICOM needs pydicom, which is not installed: pip install 'jaxseg[dicom]'") from None
    return pydicom


def damage() -> tuple[type[Exception], ...]:
    """What pydicom lets through when a file is damaged (and its warnings, where a program makes them errors)."""
    from pydicom.errors import BytesLengthException

    return (*_BROKEN, BytesLengthException)


def hashed(identifier: str) -> str:
    """16 hexadecimal digits of the SHA-256 of an identifier: tells patients and series apart and names none; empty for empty."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:16] if identifier else ""


def read_dataset(source: bytes | BinaryIO, path: Path, rules: Rules, *, only: Sequence[str] | None = None) -> Any:
    """The dataset in a file's bytes, or, with `only` (keywords), those elements of an open file, without pixels.

    Raises:
        InputError: not DICOM, or damaged.
    """
    pydicom = need_pydicom()
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    plain = stream.read(132)[128:] != b"DICM"
    stream.seek(0)
    try:
        if not plain:
            _check_deflated(stream, path, rules)
        dataset = pydicom.dcmread(
            stream, force=plain, stop_before_pixels=only is not None, specific_tags=None if only is None else list(only)
        )
        known = "SOPClassUID" in dataset or "Modality" in dataset
    except damage() as error:
        raise InputError(f"{path}: damaged, or not a DICOM file ({type(error).__name__}); copy it again") from None
    if not known:
        raise InputError(f"{path}: truncated, damaged, or not a DICOM file: it says neither its class nor its modality")
    if isinstance(source, bytes):
        _check_fragments(dataset, source, path)
    return dataset


def text(dataset: Any, keyword: str) -> str:
    """An element's text, its values separated by a backslash; empty where it is missing."""
    value = _raw(dataset, keyword)
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(" \0\t\r\n")
    many = not isinstance(value, str) and hasattr(value, "__iter__")
    return "\\".join(str(part) for part in value) if many else str(value)


def numbers(dataset: Any, keyword: str, path: Path) -> tuple[float, ...]:
    """An element's values as numbers; empty where it is missing. InputError where they are no finite numbers."""
    value = _raw(dataset, keyword)
    if value is None:
        return ()
    from pydicom.datadict import dictionary_VR

    form = _NUMBER_FORMATS.get(dictionary_VR(keyword)[:2])
    try:
        if isinstance(value, bytes) and form is not None:
            order = "<" if dataset.original_encoding[1] is not False else ">"
            found = struct.unpack(f"{order}{len(value) // struct.calcsize(form)}{form}", value)
        else:
            found = [float(word) for word in text(dataset, keyword).split("\\") if word.strip()]
    except (ValueError, struct.error):
        raise InputError(f"{path}: damaged: {keyword} is not a number") from None
    if any(number != number or abs(number) == float("inf") for number in found):
        raise InputError(f"{path}: damaged: {keyword} is not finite")
    return tuple(float(number) for number in found)


def number(dataset: Any, keyword: str, path: Path, default: float) -> float:
    """The first of an element's numbers, or `default`."""
    return next(iter(numbers(dataset, keyword, path)), default)


def items(dataset: Any, keyword: str, path: Path) -> list[Any]:
    """The items of a sequence; empty where it is missing."""
    try:
        return list(dataset[keyword].value or []) if keyword in dataset else []
    except damage() as error:
        raise InputError(f"{path}: damaged: {keyword} cannot be read ({type(error).__name__})") from None


def pixel_bytes(dataset: Any, path: Path) -> bytes:
    """The value of PixelData as it is stored. InputError where there is none, or it cannot be read."""
    value = _raw(dataset, "PixelData")
    if not isinstance(value, bytes):
        raise InputError(f"{path}: it holds no PixelData that can be read; expected a picture")
    return value


def syntax_of(dataset: Any) -> str:
    """The UID of the transfer syntax; implicit little endian for a file without a preamble."""
    meta = getattr(dataset, "file_meta", None)
    return (text(meta, "TransferSyntaxUID") if meta is not None else "") or "1.2.840.10008.1.2"


def _raw(dataset: Any, keyword: str) -> Any:
    if keyword not in dataset:
        return None
    try:
        return dataset.get_item(keyword).value
    except damage():
        return None


def _check_fragments(dataset: Any, data: bytes, path: Path) -> None:
    """Compressed pixels end in a delimiter; a decoder fills up what was cut off and says nothing."""
    try:
        pixels = dataset.get_item("PixelData") if "PixelData" in dataset else None
    except damage():
        raise InputError(f"{path}: damaged: its PixelData cannot be read; copy the file again") from None
    if pixels is not None and getattr(pixels, "length", 0) == _UNDEFINED and data.rfind(_END_OF_FRAGMENTS) < pixels.value_tell:
        raise InputError(f"{path}: truncated: its compressed pixels have no end; copy the file again")


def _check_deflated(stream: BinaryIO, path: Path, rules: Rules) -> None:
    """A deflated dataset is inflated whole by pydicom, so its size is counted first, piece by piece."""
    head = stream.read(1024)
    stream.seek(0)
    if f"{_DEFLATED}".encode() not in head or head[132:136] != b"\x02\0\0\0":
        return
    stream.seek(144 + struct.unpack("<I", head[140:144])[0])
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    piece = stream.read(1 << 16)
    while piece and not inflater.eof:
        total += len(inflater.decompress(piece, 1 << 22))
        if total > rules.max_bytes + SLACK:
            raise InputError(f"{path}: inflates to more than the limit of {rules.max_bytes:,} bytes; raise max_bytes if this is right")
        piece = inflater.unconsumed_tail or stream.read(1 << 16)
    stream.seek(0)
