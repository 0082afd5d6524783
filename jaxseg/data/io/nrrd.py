"""NRRD files (.nrrd, and .nhdr with its voxels in other files) to voxels. Called by `scans`.

Format: Teem's "Definition of NRRD File Format" (versions 1 to 5). Positions are taken to RAS+ millimetres from the spaces RAS, LAS and
LPS; axes that are not of space (`kinds: vector`, `list`, …) become channels.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxseg.data.io.decoded import Decoded, Header, Rules, check_caps, usable_affine
from jaxseg.data.io.detached import named_inside, numbered
from jaxseg.data.io.header import assumed_affine
from jaxseg.data.io.stream import open_file, read_bytes, unpack
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

SUFFIXES = (".nrrd", ".nhdr")
_MOST_HEADER = 1 << 20
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE_OF = {name: code for code, names in _TYPES.items() for name in names.split("|")}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "ascii": "text", "txt": "text", "text": "text"}
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_SPATIAL = {"domain", "space"}
_COLOURS = {"rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color", "complex"}
_UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "microns": 0.001, "": 1.0}


@dataclass(frozen=True)
class _Layout:
    """Sizes along every axis in the file's order (fastest first), and which of them are of space."""

    sizes: tuple[int, ...]
    spatial: tuple[int, int, int]
    channel: int | None


def decode(data: bytes, path: Path, rules: Rules) -> tuple[Decoded, tuple[Path, ...]]:
    """Bytes of a .nrrd or .nhdr file to voxels, and the other files that were read for them.

    Raises:
        InputError: not NRRD, truncated, damaged, too large, or not one real number a voxel.
        GeometryError: no orientation is stated, or it is unusable.
    """
    head, fields, offset = _parse(data, path, rules)
    encoding = _encoding(fields, path)
    skips = [_whole(fields, key, path) for key in ("line skip", "byte skip")]
    names = _data_files(fields, data, path)
    count = max(1, len(names))
    if head.data_bytes % count:
        raise InputError(f"{path}: {count} data files cannot hold {head.data_bytes:,} bytes in equal parts")
    blocks = [read_bytes(name, rules) for name in names] or [data[offset:]]
    size = head.data_bytes // count
    parts = [_block(block, encoding, size, head.dtype, str(name), skips) for block, name in zip(blocks, names or [path], strict=True)]
    flat = np.frombuffer(b"".join(parts), head.dtype).astype(head.dtype.newbyteorder("="), copy=False)
    layout = _layout(fields, path)
    stored = flat.reshape(layout.sizes, order="F")
    stored = np.moveaxis(stored, layout.channel, -1) if layout.channel is not None else stored
    return Decoded(stored.reshape(head.shape), head), tuple(names)


def read_header(path: Path, rules: Rules) -> Header:
    """The checked header alone."""
    with open_file(path) as file:
        return _parse(file.read(_MOST_HEADER), path, rules)[0]


def companions(path: Path) -> tuple[Path, ...]:
    """The files beside an .nhdr that hold its voxels; empty for a .nrrd."""
    with open_file(path) as file:
        data = file.read(_MOST_HEADER)
    return tuple(_data_files(_fields(data, path)[0], data, path))


def _parse(data: bytes, path: Path, rules: Rules) -> tuple[Header, dict[str, str], int]:
    fields, offset = _fields(data, path)
    layout = _layout(fields, path)
    dtype = _dtype(fields, path)
    x, y, z = (layout.sizes[axis] for axis in layout.spatial)
    channels = layout.sizes[layout.channel] if layout.channel is not None else 1
    shape = (x, y, z) if channels == 1 else (x, y, z, channels)
    check_caps(shape, dtype, str(path), rules)
    grid, notes = _grid(fields, layout, (x, y, z), path, rules)
    return Header(shape, dtype, offset, 1.0, 0.0, grid, 1, tuple(notes)), fields, offset


def _fields(data: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields by their names in lower case, and the byte at which the voxels begin (after the empty line)."""
    if not re.match(rb"NRRD000[1-5]\r?\n", data):
        raise InputError(f"{path}: not an NRRD file: it begins {data[:8]!r}, expected b'NRRD0004' or another version up to 5")
    end = re.compile(rb"\r?\n\r?\n").search(data, 0, _MOST_HEADER)
    if end is None and b"data file" not in data[:_MOST_HEADER] and b"datafile" not in data[:_MOST_HEADER]:
        raise InputError(f"{path}: truncated: the header does not end in an empty line; copy the file again")
    text = data[: end.start() if end else _MOST_HEADER].decode("utf-8", errors="replace")
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):
            continue
        fields[_spelling(name)] = value.strip()
    return fields, end.end() if end else len(data)


def _spelling(name: str) -> str:
    name = " ".join(name.strip().lower().split())
    return {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)


def _need(fields: dict[str, str], name: str, path: Path) -> str:
    if not fields.get(name):
        raise InputError(f"{path}: damaged header: the field {name!r} is missing")
    return fields[name]


def _whole(fields: dict[str, str], name: str, path: Path) -> int:
    try:
        return int(fields.get(name) or 0)
    except ValueError:
        raise InputError(f"{path}: damaged header: {name} is {fields[name]!r}, expected a whole number") from None


def _layout(fields: dict[str, str], path: Path) -> _Layout:
    try:
        sizes = tuple(int(word) for word in _need(fields, "sizes", path).split())
    except ValueError:
        raise InputError(f"{path}: damaged header: sizes are {fields['sizes']!r}, expected whole numbers") from None
    if len(sizes) != _whole(fields, "dimension", path) or min(sizes) < 1:
        raise InputError(f"{path}: damaged header: dimension {fields.get('dimension')} with sizes {list(sizes)}")
    kinds = _kinds(fields, sizes, path)
    spatial = [axis for axis, kind in enumerate(kinds) if kind in _SPATIAL]
    others = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL]
    if len(spatial) != 3:
        raise InputError(
            f"{path}: {len(spatial)} axes of space in sizes {list(sizes)}; expected a 3-D scan, and kinds that say which is which"
        )
    if colours := {kinds[axis] for axis in others if sizes[axis] > 1} & _COLOURS:
        raise InputError(f"{path}: voxels are {', '.join(sorted(colours))}; expected real numbers. Convert it to a grey-value image first")
    if len(others) > 1:
        raise InputError(f"{path}: {len(others)} axes besides those of space, sizes {list(sizes)}; expected at most one, of channels")
    return _Layout(sizes, (spatial[0], spatial[1], spatial[2]), others[0] if others else None)


def _kinds(fields: dict[str, str], sizes: tuple[int, ...], path: Path) -> list[str]:
    """A kind an axis; where none is said, axes without a direction are channels and the others are of space."""
    kinds = (fields.get("kinds") or "").lower().split() or ["???"] * len(sizes)
    directions = _vectors(fields["space directions"], path) if "space directions" in fields else [None] * len(sizes)
    if len(kinds) != len(sizes) or len(directions) != len(sizes):
        raise InputError(f"{path}: damaged header: {len(sizes)} axes, {len(kinds)} kinds and {len(directions)} space directions")
    if "space directions" in fields:
        return [
            "domain" if there is not None else kind if kind not in _SPATIAL else "none"
            for kind, there in zip(kinds, directions, strict=True)
        ]
    if len(sizes) == 3 and set(kinds) <= {"???", "none", *_SPATIAL}:
        return ["domain"] * 3
    return kinds


def _vectors(text: str, path: Path) -> list[np.ndarray | None]:
    """ "(1,0,0) none (0,1,0)" → an array of each, None for none."""
    found: list[np.ndarray | None] = []
    for word in re.findall(r"\([^)]*\)|\S+", text):
        if word.lower() == "none":
            found.append(None)
            continue
        try:
            vector = np.array([float(number) for number in word.strip("()").split(",")])
        except ValueError:
            raise GeometryError(f"{path}: damaged header: {word!r} is not a vector such as (1,0,0)") from None
        if not word.startswith("(") or len(vector) != 3:
            raise GeometryError(f"{path}: {word!r} is not a vector of three numbers; expected a 3-D space such as left-posterior-superior")
        found.append(vector)
    return found


def _dtype(fields: dict[str, str], path: Path) -> np.dtype:
    name = " ".join(_need(fields, "type", path).lower().split())
    if name not in _TYPE_OF:
        raise InputError(f"{path}: voxels are of type {name!r}; expected one of {', '.join(sorted(_TYPE_OF)[:8])}, …")
    dtype = np.dtype(_TYPE_OF[name])
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and _encoding(fields, path) != "text" and endian not in ("little", "big"):
        raise InputError(f"{path}: damaged header: endian is {endian or 'missing'!r}, expected little or big")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _encoding(fields: dict[str, str], path: Path) -> str:
    name = _need(fields, "encoding", path).lower()
    if name not in _ENCODINGS:
        raise InputError(f"{path}: encoding {name!r} is not read; expected raw, gzip, bzip2 or ascii")
    return _ENCODINGS[name]


def _grid(fields: dict[str, str], layout: _Layout, size: tuple[int, int, int], path: Path, rules: Rules) -> tuple[Grid, list[str]]:
    space = fields.get("space", "").lower()
    if space.endswith("-time") or space in ("rast", "last", "lpst"):
        raise GeometryError(f"{path}: the space {space!r} has an axis of time; split the series into one file a time point")
    vectors = _vectors(fields["space directions"], path) if "space directions" in fields else []
    if space not in _SPACES or not vectors:
        grid = Grid(size, assumed_affine(size, _spacings(fields, vectors, layout, path), f"{path} (space {space or 'not said'})", rules))
        return grid, [f"orientation {rules.assume_orientation} assumed: the file states none"]
    origin = _vectors(fields["space origin"], path)[0] if fields.get("space origin") else np.zeros(3)
    if origin is None:
        raise GeometryError(f"{path}: damaged header: the space origin is none")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.asarray(vectors[axis], float) for axis in layout.spatial], 1)
    affine[:3, 3] = origin
    factor, notes = _unit(fields, path), []
    if factor != 1:
        notes.append(f"lengths were in units of {factor:g} mm")
    if "space origin" not in fields:
        notes.append("no space origin: the first voxel is taken to lie at 0, 0, 0")
    return Grid(
        size, usable_affine(np.diag([*(factor * sign for sign in _SPACES[space]), 1.0]) @ affine, "space directions", str(path))
    ), notes


def _spacings(fields: dict[str, str], vectors: list[np.ndarray | None], layout: _Layout, path: Path) -> np.ndarray:
    try:
        lengths = [float(word) for word in fields.get("spacings", "").split()] or [
            np.nan if v is None else np.linalg.norm(v) for v in vectors
        ]
    except ValueError:
        raise GeometryError(f"{path}: damaged header: spacings are {fields['spacings']!r}") from None
    spacing = np.array([lengths[axis] for axis in layout.spatial]) if len(lengths) == len(layout.sizes) else np.full(3, np.nan)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise GeometryError(f"{path}: neither space directions nor positive spacings say how large a voxel is; mend the header")
    return spacing


def _unit(fields: dict[str, str], path: Path) -> float:
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    factors = {_UNITS_MM.get(unit.strip().lower()) for unit in units} or {1.0}
    factor = factors.pop()
    if factors or factor is None:
        raise GeometryError(f"{path}: lengths are in {', '.join(sorted(units))}; expected mm (or one of cm, m, um) along every axis")
    return factor


def _data_files(fields: dict[str, str], data: bytes, path: Path) -> list[Path]:
    """The files that hold the voxels: none (they follow the header), one, a LIST, or a numbered series such as "slice%03d.raw 1 20 1"."""
    said = fields.get("data file", "")
    words = said.split()
    if not said or said.upper() == "LOCAL":
        return []
    if words[0].upper() == "LIST":
        text = data[:_MOST_HEADER].decode("utf-8", errors="replace")
        lines = re.split(r"(?im)^data ?file:\s*LIST.*$", text)[1].splitlines()
        return [named_inside(path, line.strip()) for line in lines if line.strip()]
    if len(words) in (4, 5) and "%" in words[0]:
        return [named_inside(path, name) for name in numbered(path, words[0], words[1:4])]
    return [named_inside(path, said)]


def _block(block: bytes, encoding: str, size: int, dtype: np.dtype, name: str, skips: list[int]) -> bytes:
    lines, skip = skips
    for _ in range(lines):
        block = block[block.find(b"\n") + 1 :]
    if encoding == "text":
        try:
            numbers = np.array(block.split(), np.float64).astype(dtype) if dtype.kind == "f" else np.array(block.split()).astype(dtype)
        except (ValueError, OverflowError):
            raise InputError(f"{name}: damaged: its voxels are not all numbers of type {dtype.name}") from None
        if numbers.nbytes < size:
            raise InputError(f"{name}: truncated: {numbers.size:,} numbers, expected {size // dtype.itemsize:,}; copy the file again")
        return numbers.tobytes()[:size]
    if skip < -1 or (skip == -1 and encoding != "raw"):
        raise InputError(f"{name}: byte skip {skip} makes no sense for the encoding {encoding}")
    return unpack(block, encoding, size, name, skip=skip)
