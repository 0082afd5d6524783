"""A NIfTI header, checked: what must hold before a single voxel is believed. Called by `nifti`; pure functions of bytes and numbers.

SimpleITK and nibabel accept most of what is refused here, or disagree about what it means.
"""

import math

import numpy as np

from jaxseg.data.io.decoded import AXES, Header, Rules, check_caps, usable_affine
from jaxseg.data.volume import Grid
from jaxseg.errors import GeometryError, InputError

HEADER_BYTES = 540
# Name, number type in NIfTI-1 and NIfTI-2, first byte in either (nifti1.h and nifti2.h), of the fields that are read here. nibabel has them all,
# but importing it takes a worker process as long as reading dozens of scans.
_FIELDS = (
    ("sizeof_hdr", "i4", 0, "i4", 0),
    ("dim", "8i2", 40, "8i8", 16),
    ("datatype", "i2", 70, "i2", 12),
    ("pixdim", "8f4", 76, "8f8", 104),
    ("vox_offset", "f4", 108, "i8", 168),
    ("scl_slope", "f4", 112, "f8", 176),
    ("scl_inter", "f4", 116, "f8", 184),
    ("xyzt_units", "u1", 123, "i4", 500),
    ("qform_code", "i2", 252, "i4", 344),
    ("sform_code", "i2", 254, "i4", 348),
    *((f"quatern_{axis}", "f4", 256 + 4 * i, "f8", 352 + 8 * i) for i, axis in enumerate("bcd")),
    *((f"qoffset_{axis}", "f4", 268 + 4 * i, "f8", 376 + 8 * i) for i, axis in enumerate("xyz")),
    *((f"srow_{axis}", "4f4", 280 + 16 * i, "4f8", 400 + 32 * i) for i, axis in enumerate("xyz")),
    ("magic", "S4", 344, "S4", 4),
)


def _layout(size: int, kind: int, place: int) -> np.dtype:
    """The fields as a record of `size` bytes; `kind` and `place` are columns of the table."""
    names, kinds, places = (list(column) for column in zip(*((field[0], field[kind], field[place]) for field in _FIELDS), strict=True))
    return np.dtype({"names": names, "formats": kinds, "offsets": places, "itemsize": size})


_SIZES = {348: _layout(348, 1, 2), 540: _layout(540, 3, 4)}
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED = {1: "1-bit", 32: "complex", 1792: "complex", 2048: "complex", 1536: "128-bit float", 128: "RGB colour", 2304: "RGBA colour"}
_QUATERNION_ROUNDING = 1e-5
# The squares of three float32 add up to 1 within so much: near a half turn the scalar part, the root of what is missing to 1, is known to 0.0006 at best.
_HALF_TURN = 3 * float(np.finfo(np.float32).eps)
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def parse(head: bytes, name: str, rules: Rules, *, pair: bool = False) -> Header:
    """Check the first bytes of a NIfTI-1 or NIfTI-2 file; `pair` if its voxels lie in an .img file beside it.

    Raises:
        InputError: not a NIfTI header, impossible sizes, or a number type that is not a scalar intensity.
        GeometryError: orientation or spacing is missing, unusable or contradictory.
    """
    raw = _raw_header(head, name, pair)
    shape = _shape(raw, name)
    dtype = _dtype(raw, name)
    check_caps(shape, dtype, name, rules)
    grid, code, notes = _grid(raw, shape, name, rules)
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not np.isfinite([slope, inter]).all() or slope == 0:
        if slope != 0 or np.isnan(inter) or inter != 0:
            notes.append(f"scl_slope {slope:g} and scl_inter {inter:g} mean unscaled")
        slope, inter = 1.0, 0.0
    return Header(shape, dtype, _offset(raw, name, pair), slope, inter, grid, code, tuple(notes))


def _raw_header(head: bytes, name: str, pair: bool):
    if len(head) < 348:
        raise InputError(f"{name}: truncated: {len(head)} bytes, but a NIfTI header alone has 348; copy the file again")
    for order, size in ((order, size) for order in "<>" for size in _SIZES):
        if int(np.frombuffer(head[:4], f"{order}i4")[0]) == size:
            if len(head) < size:
                raise InputError(f"{name}: truncated: {len(head)} bytes, but a NIfTI-2 header alone has 540; copy the file again")
            raw = np.ndarray((), _SIZES[size].newbyteorder("<" if order == "<" else ">"), head)
            break
    else:
        found = int(np.frombuffer(head[:4], "<i4")[0])
        raise InputError(f"{name}: not a NIfTI file: sizeof_hdr is {found}, expected 348 (NIfTI-1) or 540 (NIfTI-2)")
    magic = bytes(np.asarray(raw["magic"]).tobytes()[:3])
    expected = (b"ni1", b"ni2") if pair else (b"n+1", b"n+2")
    if magic in (b"ni1", b"ni2") and not pair:
        raise InputError(f"{name}: a NIfTI header whose voxels lie in a separate .img file; rename it to .hdr beside its .img")
    if magic not in expected:
        raise InputError(
            f"{name}: not a NIfTI file: its magic is {magic!r}, expected {expected[0]!r} (an Analyze 7.5 file states no orientation: "
            "convert it with a program that knows which scanner it is from)"
        )
    return raw


def _shape(raw, name: str) -> tuple[int, ...]:
    dim = [int(n) for n in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{name}: damaged header: {dim[0]} dimensions, expected 3 (or 4 with channels)")
    shape = dim[1 : dim[0] + 1]
    if min(shape) < 1:
        raise InputError(f"{name}: damaged header: dimensions {shape}, every one must be at least 1")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3:
        raise InputError(f"{name}: a {len(shape)}-D image of {'×'.join(map(str, shape))} pixels; expected a 3-D scan")
    if len(shape) > 4:
        raise InputError(f"{name}: a {len(shape)}-D image {shape}; expected 3-D, or 4-D with channels last")
    return tuple(shape)


def _dtype(raw, name: str) -> np.dtype:
    code = int(raw["datatype"])
    if code not in _TYPES:
        raise InputError(
            f"{name}: voxels are {_REFUSED.get(code, 'of an unknown type')} (datatype {code}); expected one real number a voxel. "
            "Convert it to a grey-value image first"
        )
    return np.dtype(_TYPES[code]).newbyteorder(raw.dtype["dim"].base.byteorder)


def _offset(raw, name: str, pair: bool) -> int:
    offset = float(raw["vox_offset"])
    least = 0 if pair else int(raw["sizeof_hdr"]) + 4
    if not np.isfinite(offset) or offset < least or offset != int(offset):
        raise InputError(
            f"{name}: damaged header: the voxels are said to begin at byte {offset:g}, expected a whole number from {least} on"
        )
    return int(offset)


def _grid(raw, shape: tuple[int, ...], name: str, rules: Rules) -> tuple[Grid, int, list[str]]:
    pixdim = np.asarray(raw["pixdim"], float)
    if not np.isfinite(pixdim[1:4]).all() or (pixdim[1:4] <= 0).any():
        raise GeometryError(
            f"{name}: voxel sizes (pixdim) are {pixdim[1:4].tolist()}, expected three positive numbers in mm; "
            "mend the header, since readers disagree on what such a file means"
        )
    size, notes = (shape[0], shape[1], shape[2]), []
    codes = {"sform": int(raw["sform_code"]), "qform": int(raw["qform_code"])}
    readers = {"sform": lambda: [_sform(raw, name)], "qform": lambda: _qforms(raw, pixdim, name)}
    stated = [form for form in ("sform", "qform") if codes[form] > 0]
    if not stated:
        affine, chosen = assumed_affine(size, pixdim[1:4], f"{name} (qform_code and sform_code are 0)", rules), "qform"
        notes.append(f"orientation {rules.assume_orientation} assumed: the file states none")
    else:
        believed = rules.policy if rules.policy in stated else None
        chosen = believed or stated[0]
        affine = readers[chosen]()[0]
        if believed is None:
            rivals = {form: readers[form]() for form in stated[1:]} or {"pixdim": [_with_sizes(affine, pixdim)]}
            grids = {form: [Grid(size, each) for each in affines] for form, affines in rivals.items()}
            _check_agreement(Grid(size, affine), grids, chosen, name)
    factor = _UNIT_MM.get(int(raw["xyzt_units"]) & 7, 1.0)
    if factor != 1:
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
        notes.append(f"lengths were in units of {factor:g} mm")
    return Grid(size, affine), max(codes[chosen], 1), notes


def _sform(raw, name: str) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = [raw["srow_x"], raw["srow_y"], raw["srow_z"]]
    return usable_affine(affine, "sform", name)


def _qforms(raw, pixdim: np.ndarray, name: str) -> list[np.ndarray]:
    """The affine that the quaternion states, and near a half turn the other one that it may have been rounded from."""
    b, c, d = (float(raw[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -_QUATERNION_ROUNDING:
        raise GeometryError(
            f"{name}: the qform's quaternion is not a rotation; mend the header, or go by the sform (--qform-sform sform; policy='sform')"
        )
    # The scalar part is taken positive, as NIfTI says; where it may be rounding alone it is 0, as nibabel has it.
    scalars = [math.sqrt(rest)] if rest > _HALF_TURN else [0.0]
    if abs(rest) < 3 * _HALF_TURN:
        scalars.append(0.0 if rest > _HALF_TURN else math.sqrt(max(rest, 0.0)))
    affines = []
    for a in scalars:
        affine = np.eye(4)
        affine[:3, :3] = _rotation(a, b, c, d) * pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1]
        affine[:3, 3] = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
        affines.append(usable_affine(affine, "qform", name))
    return affines


def _rotation(a: float, b: float, c: float, d: float) -> np.ndarray:
    """The rotation of a quaternion of about unit length."""
    scale = 2 / (a * a + b * b + c * c + d * d)
    return np.array(
        [
            [1 - scale * (c * c + d * d), scale * (b * c - a * d), scale * (b * d + a * c)],
            [scale * (b * c + a * d), 1 - scale * (b * b + d * d), scale * (c * d - a * b)],
            [scale * (b * d - a * c), scale * (c * d + a * b), 1 - scale * (b * b + c * c)],
        ]
    )


def _with_sizes(affine: np.ndarray, pixdim: np.ndarray) -> np.ndarray:
    """The affine with the voxel sizes of pixdim, turned about the first voxel."""
    rival = affine.copy()
    rival[:3, :3] *= pixdim[1:4] / np.linalg.norm(affine[:3, :3], axis=0)
    return rival


def _check_agreement(grid: Grid, rivals: dict[str, list[Grid]], chosen: str, name: str) -> None:
    for form, stated in rivals.items():
        rival = min(stated, key=grid.offset_from) if len(stated) > 1 else stated[0]
        apart = np.abs(grid.affine - rival.affine).max(0)
        if apart[:3] @ grid.shape + apart[3] < 0.1 * min(grid.spacing):
            continue  # nearly every file: no corner can be half a voxel away
        flipped = np.linalg.det(grid.affine[:3, :3]) * np.linalg.det(rival.affine[:3, :3]) < 0
        if flipped or grid.offset_from(rival) > 0.5:
            what = "a mirror image (left and right are swapped)" if flipped else f"corners up to {grid.offset_from(rival):.1f} voxels apart"
            raise GeometryError(
                f"{name}: {chosen} and {form} contradict each other: {what}. {chosen}: {grid.describe()}; {form}: {rival.describe()}. "
                "Find out which is right and say so (--qform-sform; load_volume: policy=, 'sform' or 'qform'), or write the file anew, for all other "
                "programs too: save_volume(load_volume(path, policy=…), new_path)"
            )


def assumed_affine(size: tuple[int, int, int], spacing: np.ndarray, name: str, rules: Rules) -> np.ndarray:
    """The affine, about the scan's centre, of the orientation that the rules assume; GeometryError if they assume none."""
    codes = rules.assume_orientation
    if codes is None:
        raise GeometryError(
            f"{name}: the file states no orientation, and readers disagree on front and back; "
            "find out, and say so (--assume-orientation; load_volume: assume_orientation=, such as 'RAS' or 'LAS'), or write the file anew, for all other "
            "programs too: save_volume(load_volume(path, assume_orientation=…), new_path)"
        )
    affine = np.eye(4)
    affine[:3, :3] = [[step * (code == pair[1]) - step * (code == pair[0]) for code, step in zip(codes.upper(), spacing)] for pair in AXES]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return affine
