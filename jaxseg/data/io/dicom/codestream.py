"""The size that a compressed picture declares, so that a decoder is only handed what the DICOM header announced. Called by `pixels`."""

import struct

_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then its SIZ segment (ITU-T T.800, A.5.1)
_STARTS_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1; 0xF7 is JPEG-LS (T.87)


def declared_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares; None if it says nothing that is understood."""
    if (start := frame.find(_JPEG_2000, 0, 1 << 12)) >= 0 and len(frame) >= start + 24:
        right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return bottom - top, right - left
    return _jpeg_size(frame) if frame[:2] == b"\xff\xd8" else None


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _STARTS_OF_FRAME:
            rows, columns = struct.unpack(">2H", frame[at + 5 : at + 9])
            return rows, columns
        at += 1 if marker == 0xFF else 2 + struct.unpack(">H", frame[at + 2 : at + 4])[0]
    return None
