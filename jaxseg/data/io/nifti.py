"""The bytes of a NIfTI file to voxels and back. Called by `read`, `write` and `archive`; `header` checks the header.

Files are read once: bytes → hash → (one pass of gunzip, to the end so that its CRC is checked) → header → array.
"""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from jaxseg.data.io import header
from jaxseg.data.io.header import Header, Rules
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

SUFFIXES = (".nii.gz", ".nii")
_CHUNK = 1 << 24
_SLACK = 1 << 26  # bytes beyond the voxels that a file may hold (extensions, padding) before it counts as a bomb


@dataclass(frozen=True, eq=False)
class Decoded:
    """Voxels as stored (x, y, z) or (x, y, z, c), unscaled, with the checked header."""

    stored: np.ndarray
    header: Header

    def values(self) -> np.ndarray:
        """Scaled intensities, float32."""
        if self.header.slope == 1 and self.header.inter == 0:
            return self.stored.astype(np.float32)
        wide = np.float64 if self.stored.dtype.itemsize > 2 else np.float32
        return (self.stored.astype(wide) * wide(self.header.slope) + wide(self.header.inter)).astype(np.float32)


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_bytes(path: Path, rules: Rules) -> bytes:
    """A file's bytes; InputError when it is missing, unreadable, empty or larger than a scan may be."""
    try:
        size = path.stat().st_size
        if size > rules.max_bytes + _SLACK:
            raise InputError(f"{path}: {size:,} bytes, more than the limit of {rules.max_bytes:,}; raise max_bytes if this is right")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise InputError(f"{path}: an empty file (0 bytes); copy it again")
    return data


def decode(data: bytes, name: str, rules: Rules) -> Decoded:
    """Bytes of a .nii or .nii.gz file (told by content, not by name) to voxels.

    Raises:
        InputError: truncated, damaged, too large, or not NIfTI at all (says what it is instead).
        GeometryError: see `header.parse`.
    """
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)
    try:
        head = stream.read(header.HEADER_BYTES)
        _check_kind(head, name)
        parsed = header.parse(head, name, rules)
        if parsed.offset > len(head):
            skipped = _read_up_to(stream, min(parsed.offset - len(head), _SLACK))
            if len(head) + len(skipped) < parsed.offset:
                raise InputError(
                    f"{name}: the voxels are said to begin at byte {parsed.offset:,}, but the file holds {len(head) + len(skipped):,}"
                )
            start = b""
        else:
            start = head[parsed.offset :]
        body = _read_up_to(stream, parsed.data_bytes - len(start), start)
        _drain(stream, name)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: the gzip stream is damaged ({error}); copy the file again from its source") from None
    except EOFError:
        raise InputError(f"{name}: truncated: the gzip stream of {len(data):,} bytes ends early; copy the file again") from None
    if len(body) < parsed.data_bytes:
        raise InputError(
            f"{name}: truncated: {len(body):,} bytes of voxels, expected {parsed.data_bytes:,} "
            f"({'×'.join(map(str, parsed.shape))} {parsed.dtype.name}); copy the file again"
        )
    stored = np.frombuffer(body, parsed.dtype, count=int(np.prod(parsed.shape))).reshape(parsed.shape, order="F")
    return Decoded(stored.astype(parsed.dtype.newbyteorder("="), copy=False), parsed)


def read_header(path: Path, rules: Rules) -> Header:
    """The checked header alone; costs a few hundred bytes of reading."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            head = (gzip.GzipFile(fileobj=file) if zipped else file).read(header.HEADER_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: the gzip stream is damaged ({error}); copy the file again from its source") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    _check_kind(head, str(path))
    return header.parse(head, str(path), rules)


def encode(stored: np.ndarray, grid: Grid, *, slope: float = 1.0, inter: float = 0.0, space_code: int = 1, zipped: bool) -> bytes:
    """Voxels (x, y, z) or (x, y, z, c) as a NIfTI-1 file: sform and qform both set, no free text. The same input gives the same bytes.

    Raises:
        GeometryError: the affine cannot be written as a qform (it is sheared), or an axis has more than 32767 voxels.
    """
    if max(stored.shape) > 32767:
        raise GeometryError(f"NIfTI-1 holds at most 32767 voxels along an axis; found shape {stored.shape}")
    head = nib.Nifti1Header()
    head.set_data_dtype(stored.dtype)
    head.set_data_shape(stored.shape)
    head.set_xyzt_units("mm")
    head.set_qform(grid.affine, code=space_code)
    head.set_sform(grid.affine, code=space_code)
    if Grid(grid.shape, np.asarray(head.get_qform())).offset_from(grid) > 0.01:
        raise GeometryError(f"the grid is sheared, so that viewers would disagree about it: {grid.affine[:3].tolist()}")
    fields = head.structarr
    fields["vox_offset"], fields["scl_slope"], fields["scl_inter"], fields["magic"] = 352, slope, inter, b"n+1"
    data = fields.tobytes() + b"\0\0\0\0" + stored.tobytes(order="F")
    return gzip.compress(data, compresslevel=4, mtime=0) if zipped else data


def _read_up_to(stream, size: int, start: bytes = b"") -> bytes:
    """`start` and `size` bytes more, or as many as there are, without trusting `size` with an allocation."""
    parts, left = [start], size
    while left > 0 and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _drain(stream, name: str) -> None:
    """Read to the end, where gzip's CRC is checked."""
    extra = 0
    while part := stream.read(_CHUNK):
        extra += len(part)
        if extra > _SLACK:
            raise InputError(f"{name}: more than {_SLACK:,} bytes follow the voxels; this is not a sound NIfTI file")


def _check_kind(head: bytes, name: str) -> None:
    """InputError that says what a file is, when it is something else under a NIfTI name."""
    start = head.lstrip()[:200].lower()
    kinds = {
        "an HTML page (perhaps an error or login page saved by a download)": start.startswith((b"<!doctype html", b"<html"))
        or b"<html" in start,
        "a Python pickle, which jaxseg never opens because it can run code": head[:1] == b"\x80"
        and head[1:2] in (b"\2", b"\3", b"\4", b"\5"),
        "a Git LFS pointer; fetch the real file with `git lfs pull`": start.startswith(b"version https://git-lfs"),
        "a zip archive": head[:4] == b"PK\x03\x04",
        "an NRRD file": head[:4] == b"NRRD",
        "a DICOM file": head[128:132] == b"DICM",
        "a PNG picture": head[:4] == b"\x89PNG",
    }
    for kind, true in kinds.items():
        if true:
            raise InputError(f"{name}: not a NIfTI file: this is {kind}")
    if head and all(byte in b"\t\n\r" or byte >= 32 for byte in head[:348]) and head[:64].isascii():
        raise InputError(f"{name}: not a NIfTI file: this is text that begins {head[:40].decode(errors='replace')!r}")
