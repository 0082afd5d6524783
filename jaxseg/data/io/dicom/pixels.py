"""Pixels of a DICOM file, stored values as whole numbers, checked before anything is allocated. Called by `read` and `dicom_seg`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxseg.data.io.dicom.codestream import declared_size
from jaxseg.data.io.dicom.elements import damage, pixel_bytes
from jaxseg.data.io.dicom.frames import Instance
from jaxseg.errors import InputError

_PLAIN: dict[str, Literal["<", ">"]] = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.1.99": "<",
    "1.2.840.10008.1.2.2": ">",
}
RLE = "1.2.840.10008.1.2.5"
_JPEG = {f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 57, 70)}


def is_plain(instance: Instance) -> bool:
    """Whether the pixels are stored without compression (deflated files, which are inflated on reading, count as such)."""
    return instance.syntax in _PLAIN


def dtype_of(instance: Instance) -> np.dtype:
    """The number type of the stored values."""
    return np.dtype(f"{'i' if instance.signed else 'u'}{instance.bits // 8}")


def stored_frames(dataset: Any, instance: Instance, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames asked for, `(rows, columns)` each, stored values.

    Raises:
        InputError: no pixels, fewer than rows × columns, another size inside the compressed stream, or a compression that cannot be
            undone with what is installed.
    """
    path = instance.path
    if is_plain(instance):
        yield from _plain_frames(dataset, instance, indices)
    else:
        for index, array in zip(indices, _compressed_frames(dataset, instance, indices), strict=True):
            if array.shape != (instance.rows, instance.columns):
                raise InputError(f"{path}: frame {index + 1} decodes to {array.shape}, expected {instance.rows}×{instance.columns} pixels")
            yield _significant(array, instance)


def check_length(instance: Instance, found: int) -> None:
    """InputError where `found` bytes cannot hold the uncompressed pixels that a header declares."""
    expected = instance.frames * instance.rows * instance.columns * instance.bits // 8
    if found < expected:
        raise InputError(
            f"{instance.path}: truncated: {found:,} bytes, but {instance.frames} frames of {instance.rows}×{instance.columns} pixels "
            f"of {instance.bits} bits are {expected:,}; copy the file again"
        )


def _plain_frames(dataset: Any, instance: Instance, indices: Sequence[int]) -> Iterator[np.ndarray]:
    data = pixel_bytes(dataset, instance.path)
    check_length(instance, len(data))
    pixels = instance.rows * instance.columns
    dtype = dtype_of(instance).newbyteorder(_PLAIN[instance.syntax])
    for index in indices:
        flat = np.frombuffer(data, dtype, count=pixels, offset=index * pixels * dtype.itemsize)
        yield _significant(flat.astype(dtype.newbyteorder("="), copy=False).reshape(instance.rows, instance.columns), instance)


def _compressed_frames(dataset: Any, instance: Instance, indices: Sequence[int]) -> Iterator[np.ndarray]:
    from pydicom import encaps
    from pydicom.pixels import get_decoder

    path = instance.path
    try:
        decoder = get_decoder(instance.syntax)
        available = decoder.is_available
    except damage():
        raise InputError(
            f"{path}: its transfer syntax {instance.syntax} is not one of still pictures; expected JPEG, JPEG 2000 or RLE"
        ) from None
    if not available:
        raise InputError(
            f"{path}: compressed as {decoder.UID.name}, for which no decoder is installed: pip install 'jaxseg[{_extra_for(instance.syntax)}]', "
            "or decompress the series first"
        )
    try:
        for number, frame in enumerate(encaps.generate_frames(pixel_bytes(dataset, path), number_of_frames=instance.frames)):
            size = None if instance.syntax == RLE else declared_size(frame)
            if size is not None and size != (instance.rows, instance.columns):
                raise InputError(
                    f"{path}: frame {number + 1} is compressed as {size[0]}×{size[1]} pixels, but the header says "
                    f"{instance.rows}×{instance.columns}; one of the two is damaged"
                )
        for array, _ in decoder.iter_array(dataset, indices=list(indices), raw=True, as_rgb=False):
            yield np.asarray(array).astype(dtype_of(instance), copy=False)
    except damage() as error:
        raise InputError(f"{path}: its compressed pixels are damaged ({type(error).__name__}); copy the file again") from None


def _extra_for(syntax: str) -> str:
    """The extra that brings a decoder: JPEG proper (baseline, extended, lossless) needs pylibjpeg-libjpeg, which is GPL and so stands apart."""
    return "dicom-jpeg" if syntax in _JPEG else "dicom"


def _significant(array: np.ndarray, instance: Instance) -> np.ndarray:
    """The low `bits_stored` bits alone, with their sign: what lies above them (old overlays) is not part of the value."""
    spare = instance.bits - instance.bits_stored
    return (array << spare) >> spare if 0 < spare < instance.bits else array
