"""MetaImage files (.mha, and .mhd with its voxels in other files) to voxels. Called by `scans`.

Format: ITK's MetaIO documentation. Positions are LPS millimetres in the file and RAS+ here; element channels, and a fourth dimension,
become channels.
"""

import re
from pathlib import Path

import numpy as np

from jaxseg.data.io.decoded import LPS_TO_RAS, Decoded, Header, Rules, check_caps, usable_affine
from jaxseg.data.io.detached import named_inside, numbered
from jaxseg.data.io.stream import open_file, read_bytes, unpack
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

SUFFIXES = (".mha", ".mhd")
_MOST_HEADER = 1 << 20
_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "FLOAT": "f4", "DOUBLE": "f8"}
_TYPES |= {"LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8"}  # MetaIO's LONG has 4 bytes on every platform
_ALIASES = {"Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix"}
_ALIASES |= {"ElementByteOrderMSB": "BinaryDataByteOrderMSB"}

Fields = dict[str, str]


def decode(data: bytes, path: Path, rules: Rules) -> tuple[Decoded, tuple[Path, ...]]:
    """Bytes of a .mha or .mhd file to voxels, and the other files that were read for them.

    Raises:
        InputError: not MetaImage, truncated, damaged, too large, or not real numbers; GeometryError: an unusable matrix or spacing.
    """
    fields, offset = _fields(data, path)
    head = _header(fields, offset, path, rules)
    names = _data_files(fields, data, path)
    zipped, count = _flag(fields, "CompressedData"), max(1, len(names))
    if count > 1 and (zipped or head.data_bytes % count):
        raise InputError(f"{path}: {count} data files must be uncompressed and of equal size")
    blocks = [read_bytes(name, rules) for name in names] or [data[offset:]]
    size, skip = head.data_bytes // count, 0 if zipped else _skip(fields, path)
    if not _flag(fields, "BinaryData", True):
        parts = [_numbers(block, head, size, str(path)) for block in blocks]
    else:
        encoding = "zlib" if zipped else "raw"
        parts = [unpack(block, encoding, size, str(name), skip=skip) for block, name in zip(blocks, names or [path], strict=True)]
    flat = np.frombuffer(b"".join(parts), head.dtype).astype(head.dtype.newbyteorder("="), copy=False)
    channels = _channels(fields, path)
    if channels > 1:
        stored = np.moveaxis(flat.reshape((channels, *head.shape[:3]), order="F"), 0, -1)
    else:
        stored = flat.reshape(head.shape, order="F")
    return Decoded(stored, head), tuple(names)


def read_header(path: Path, rules: Rules) -> Header:
    """The checked header alone."""
    with open_file(path) as file:
        return _header(*_fields(file.read(_MOST_HEADER), path), path, rules)


def companions(path: Path) -> tuple[Path, ...]:
    """The files beside an .mhd that hold its voxels; empty for a .mha."""
    with open_file(path) as file:
        data = file.read(_MOST_HEADER)
    return tuple(_data_files(_fields(data, path)[0], data, path))


def _fields(data: bytes, path: Path) -> tuple[Fields, int]:
    """Fields by name, and the byte after the line ElementDataFile, which ends the header."""
    end = re.compile(rb"^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|\Z)", re.MULTILINE).search(data, 0, _MOST_HEADER)
    if end is None:
        raise InputError(f"{path}: not a MetaImage file, or truncated: no line ElementDataFile = … ends its header")
    fields: Fields = {}
    for line in data[: end.end()].decode("utf-8", errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[_ALIASES.get(name.strip(), name.strip())] = value.strip()
    if fields.get("ObjectType", "Image") != "Image":
        raise InputError(f"{path}: a MetaIO object of type {fields['ObjectType']!r}, expected Image")
    return fields, end.end()


def _header(fields: Fields, offset: int, path: Path, rules: Rules) -> Header:
    sizes = [int(n) for n in _numbers_of(fields, "DimSize", path)]
    if len(sizes) != int(_number(fields, "NDims", path)) or not sizes or min(sizes) < 1:
        raise InputError(f"{path}: damaged header: NDims {fields.get('NDims')} with DimSize {fields.get('DimSize')!r}")
    dimensions = len(sizes)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    channels = _channels(fields, path)
    if len(sizes) < 3 or len(sizes) + (channels > 1) > 4:
        raise InputError(f"{path}: a {len(sizes)}-D image of size {sizes} with {channels} channels; expected 3-D, or one axis more")
    if channels > 1:
        sizes.append(channels)
    dtype = _dtype(fields, path)
    check_caps(tuple(sizes), dtype, str(path), rules)
    grid = _grid(fields, (sizes[0], sizes[1], sizes[2]), dimensions, path)
    return Header(tuple(sizes), dtype, offset, 1.0, 0.0, grid, 1, ())


def _grid(fields: Fields, size: tuple[int, int, int], dimensions: int, path: Path) -> Grid:
    spacing = _numbers_of(fields, "ElementSpacing" if "ElementSpacing" in fields else "ElementSize", path, dimensions)[:3]
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise GeometryError(f"{path}: ElementSpacing is {spacing.tolist()}, expected three positive numbers in mm; mend the header")
    matrix = _numbers_of(fields, "TransformMatrix", path, dimensions**2, np.eye(dimensions).ravel()).reshape(dimensions, dimensions)
    affine = np.eye(4)
    affine[:3, :3] = matrix[:3, :3].T * spacing  # each row of the matrix is the direction of one axis
    affine[:3, 3] = _numbers_of(fields, "Offset", path, dimensions, np.zeros(dimensions))[:3]
    lengths = np.linalg.norm(matrix[:3, :3], axis=1)
    if np.abs(lengths - 1).max() > 1e-3:
        raise GeometryError(f"{path}: TransformMatrix has rows of lengths {lengths.tolist()}, expected directions of length 1")
    return Grid(size, usable_affine(LPS_TO_RAS @ affine, "TransformMatrix", str(path)))


def _dtype(fields: Fields, path: Path) -> np.dtype:
    name = fields.get("ElementType", "")
    code = _TYPES.get(name.removeprefix("MET_").removesuffix("_ARRAY"))
    if code is None:
        raise InputError(f"{path}: voxels are of type {name or 'not said'!r}; expected MET_SHORT, MET_FLOAT or another real number")
    return np.dtype(code).newbyteorder(">" if _flag(fields, "BinaryDataByteOrderMSB") else "<")


def _channels(fields: Fields, path: Path) -> int:
    count = int(_number(fields, "ElementNumberOfChannels", path, 1))
    if count < 1:
        raise InputError(f"{path}: damaged header: ElementNumberOfChannels is {count}")
    return count


def _skip(fields: Fields, path: Path) -> int:
    skip = int(_number(fields, "HeaderSize", path, 0))
    if skip < -1:
        raise InputError(f"{path}: damaged header: HeaderSize is {skip}, expected -1 (the voxels are at the end), 0 or more")
    return skip


def _flag(fields: Fields, name: str, default: bool = False) -> bool:
    return fields[name].lower() in ("true", "1") if fields.get(name) else default


def _number(fields: Fields, name: str, path: Path, default: float | None = None) -> float:
    return float(_numbers_of(fields, name, path, 1, None if default is None else np.array([default]))[0])


def _numbers_of(fields: Fields, name: str, path: Path, count: int | None = None, default: np.ndarray | None = None) -> np.ndarray:
    if name not in fields and default is not None:
        return default
    try:
        numbers = np.array([float(word) for word in fields.get(name, "").split()])
    except ValueError:
        raise InputError(f"{path}: damaged header: {name} is {fields[name]!r}, expected numbers") from None
    if (count is not None and len(numbers) != count) or not len(numbers) or not np.isfinite(numbers).all():
        raise InputError(f"{path}: damaged header: {name} is {fields.get(name, 'missing')!r}, expected {count or 'three'} numbers")
    return numbers


def _data_files(fields: Fields, data: bytes, path: Path) -> list[Path]:
    """The files that hold the voxels: none (LOCAL), one, a LIST, or a numbered series such as "slice%03d.raw 1 20 1"."""
    said = fields["ElementDataFile"]
    words = said.split()
    if not words:
        raise InputError(f"{path}: damaged header: ElementDataFile names no file")
    if said.upper() == "LOCAL":
        return []
    if words[0].upper() == "LIST":
        text = data[:_MOST_HEADER].decode("utf-8", errors="replace")
        lines = re.split(r"(?m)^[ \t]*ElementDataFile[ \t]*=.*$", text)[1].splitlines()
        return [named_inside(path, line.strip()) for line in lines if line.strip()]
    if len(words) in (3, 4) and "%" in words[0]:
        return [named_inside(path, name) for name in numbered(path, words[0], [*words[1:], "1"][:3])]
    return [named_inside(path, said)]


def _numbers(block: bytes, head: Header, size: int, name: str) -> bytes:
    try:
        numbers = np.array(block.split()).astype(head.dtype)
    except (ValueError, OverflowError):
        raise InputError(f"{name}: damaged: its voxels are not all numbers of type {head.dtype.name}") from None
    if numbers.nbytes < size:
        raise InputError(f"{name}: truncated: {numbers.size:,} numbers, expected {size // head.dtype.itemsize:,}; copy the file again")
    return numbers.tobytes()[:size]
