"""The bytes of a NIfTI file to voxels and back. Called by `read`, `write` and `archive`; `header` checks the header.

A file is read once, by `scan_stream`: hashed and gunzipped in one pass, to the end so that its CRC is checked.
"""

import gzip
import io
from pathlib import Path

import numpy as np
from zlib_ng import gzip_ng

from jaxseg.data.io import header
from jaxseg.data.io.decoded import Decoded, Header, Rules
from jaxseg.data.io.scan_stream import ScanStream
from jaxseg.data.io.stream import SLACK, damage, open_file, unpack
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr", ".hdr.gz", ".img", ".img.gz")


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def decode(data: bytes, name: str, rules: Rules) -> Decoded:
    """Bytes of a .nii or .nii.gz file (told by content, not by name) to voxels.

    Raises:
        InputError: truncated, damaged, too large, or not NIfTI at all (says what it is instead).
        GeometryError: see `header.parse`.
    """
    return decode_stream(ScanStream(io.BytesIO(data), len(data), name), name, rules)


def decode_stream(stream: ScanStream, name: str, rules: Rules) -> Decoded:
    """`decode` of a stream, which has then been read to its end. Memory is taken only for what the file can hold."""
    head = stream.read(header.HEADER_BYTES)
    _check_kind(head, name)
    parsed = header.parse(head, name, rules)
    if parsed.offset > len(head):
        skipped = len(stream.read(min(parsed.offset - len(head), SLACK)))
        if len(head) + skipped < parsed.offset:
            raise InputError(f"{name}: the voxels are said to begin at byte {parsed.offset:,}, but the file holds {len(head) + skipped:,}")
    start = head[parsed.offset :][: parsed.data_bytes]
    if parsed.offset + parsed.data_bytes > stream.most:
        body, found = np.empty(0, np.uint8), len(start) + stream.drain(parsed.data_bytes)
    else:
        body = np.empty(parsed.data_bytes, np.uint8)
        body[: len(start)] = np.frombuffer(start, np.uint8)
        found = len(start) + stream.read_into(body.data[len(start) :])
    if found < parsed.data_bytes:
        raise InputError(
            f"{name}: truncated: {found:,} bytes of voxels, expected {parsed.data_bytes:,} "
            f"({'×'.join(map(str, parsed.shape))} {parsed.dtype.name}); copy the file again"
        )
    if stream.drain(SLACK) > SLACK:
        raise InputError(f"{name}: more than {SLACK:,} bytes follow the voxels; this is not a sound NIfTI file")
    return _decoded(body, parsed)


def pair_of(path: Path) -> tuple[Path, Path]:
    """(header, image) of a NIfTI pair, given either; InputError naming the one that is missing."""
    lower = path.name.lower()
    base = next(path.name[: -len(suffix)] for suffix in sorted(PAIR_SUFFIXES, key=len, reverse=True) if lower.endswith(suffix))
    found = []
    for kind in ("hdr", "img"):
        names = {f"{base}.{kind}".lower(), f"{base}.{kind}.gz".lower()}
        here = sorted(other for other in path.parent.iterdir() if other.name.lower() in names) if path.parent.is_dir() else []
        if not here:
            raise InputError(f"{path}: one half of a NIfTI pair; {base}.{kind} is missing beside it")
        found.append(here[0])
    return found[0], found[1]


def decode_pair(head: bytes, image: bytes, name: str, rules: Rules) -> Decoded:
    """Bytes of a .hdr and of its .img file, either of them gzipped or not, to voxels; raises as `decode`."""
    with damage(name):
        head = gzip_ng.GzipFile(fileobj=io.BytesIO(head)).read(header.HEADER_BYTES) if _zipped(head) else head[: header.HEADER_BYTES]
    _check_kind(head, name)
    parsed = header.parse(head, name, rules, pair=True)
    body = unpack(image, "gzip" if _zipped(image) else "raw", parsed.data_bytes, name, skip=min(parsed.offset, SLACK))
    return _decoded(body, parsed)


def read_header(path: Path, rules: Rules) -> Header:
    """The checked header alone; costs a few hundred bytes of reading."""
    path, pair = (pair_of(path)[0], True) if path.name.lower().endswith(PAIR_SUFFIXES) else (path, False)
    with damage(str(path)), open_file(path) as file:
        zipped = _zipped(file.read(2))
        file.seek(0)
        head = (gzip_ng.GzipFile(fileobj=file) if zipped else file).read(header.HEADER_BYTES)
    _check_kind(head, str(path))
    return header.parse(head, str(path), rules, pair=pair)


def encode(stored: np.ndarray, grid: Grid, *, slope: float = 1.0, inter: float = 0.0, space_code: int = 1, zipped: bool) -> bytes:
    """Voxels (x, y, z) or (x, y, z, c) as a NIfTI-1 file: sform and qform both set, no free text. The same input gives the same bytes.

    A qform states a rotation by three float32, which near a half turn is good to some 0.1 degrees only: where that shows, the sform stands alone.

    Raises:
        GeometryError: the axes are not at right angles, or an axis has more than 32767 voxels.
    """
    if max(stored.shape) > 32767:
        raise GeometryError(f"NIfTI-1 holds at most 32767 voxels along an axis; found shape {stored.shape}")
    import nibabel as nib  # here, since the processes that index an archive read and need it not

    head = nib.Nifti1Header()
    head.set_data_dtype(stored.dtype)
    head.set_data_shape(stored.shape)
    head.set_xyzt_units("mm")
    if _squared(grid).offset_from(grid) > 0.01:
        raise GeometryError(f"the grid is sheared, so that viewers would disagree about it: {grid.affine[:3].tolist()}")
    head.set_qform(grid.affine, code=space_code)
    head.set_sform(grid.affine, code=space_code)
    if Grid(grid.shape, np.asarray(head.get_qform())).offset_from(grid) > 0.01:
        head["qform_code"] = 0
    fields = head.structarr
    fields["vox_offset"], fields["scl_slope"], fields["scl_inter"], fields["magic"] = 352, slope, inter, b"n+1"
    data = fields.tobytes() + b"\0\0\0\0" + stored.tobytes(order="F")
    return gzip.compress(data, compresslevel=4, mtime=0) if zipped else data


def _squared(grid: Grid) -> Grid:
    """The grid with its axes turned as little as possible to right angles."""
    u, _, v = np.linalg.svd(grid.affine[:3, :3] / grid.spacing)
    affine = grid.affine.copy()
    affine[:3, :3] = u @ v * grid.spacing
    return Grid(grid.shape, affine)


def _zipped(data: bytes) -> bool:
    return data[:2] == b"\x1f\x8b"


def _decoded(body: bytes | np.ndarray, parsed: Header) -> Decoded:
    stored = np.frombuffer(body, parsed.dtype, count=int(np.prod(parsed.shape))).reshape(parsed.shape, order="F")
    return Decoded(stored.astype(parsed.dtype.newbyteorder("="), copy=False), parsed)


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
