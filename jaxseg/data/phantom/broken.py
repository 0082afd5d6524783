"""Ways in which files of real archives are broken. Each turns a good NIfTI image into the bytes of a bad .nii.gz file; `archive.py` plants them."""

import gzip
from collections.abc import Callable

import nibabel as nib
import numpy as np


def pack(image: nib.Nifti1Image) -> bytes:
    """The bytes of a good .nii.gz file, without a time stamp."""
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def truncated(image: nib.Nifti1Image) -> bytes:
    """A copy that stopped at 60 %."""
    data = pack(image)
    return data[: int(0.6 * len(data))]


def not_finite(image: nib.Nifti1Image) -> bytes:
    """A block of NaN and an infinity, as resampling tools leave them."""
    values = np.array(image.dataobj, np.float32)
    x, y, z = (n // 2 for n in values.shape)
    values[x : x + 6, y : y + 6, z : z + 6] = np.nan
    values[0, 0, 0] = np.inf
    bad = nib.Nifti1Image(values, image.affine)
    return pack(bad)


def conflicting(image: nib.Nifti1Image) -> bytes:
    """A qform that is mirrored left to right and moved by 35 mm against the sform."""
    bad = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int16), image.affine)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ image.affine
    mirrored[1, 3] += 35
    bad.set_sform(image.affine, code=1)
    bad.set_qform(mirrored, code=1)
    return pack(bad)


def web_page(image: nib.Nifti1Image) -> bytes:
    """What a download leaves when the session had expired."""
    del image
    return b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head><body><h1>Please log in</h1></body></html>\n"


def constant(image: nib.Nifti1Image) -> bytes:
    """Every voxel the same: a failed export."""
    bad = nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine)
    return pack(bad)


def flipped_bits(image: nib.Nifti1Image) -> bytes:
    """A good file but for its checksum: it reads to the end unless the gzip trailer is checked."""
    data = bytearray(pack(image))
    data[-6] ^= 0x10
    return bytes(data)


FAULTS: dict[str, Callable[[nib.Nifti1Image], bytes]] = {
    "truncated": truncated,
    "not finite": not_finite,
    "qform and sform conflict": conflicting,
    "web page": web_page,
    "constant": constant,
    "checksum": flipped_bits,
}
