"""A picture as a JPEG lossless stream (ITU-T T.81, process 14, first-order prediction), as most scanners compress; nothing installed here writes one."""

import struct

import numpy as np


def encode(plane: np.ndarray, precision: int = 16) -> bytes:
    """`(rows, columns)` unsigned whole numbers below 2**precision as a whole JPEG file of one scan, predictor 1."""
    rows, columns = plane.shape
    categories = precision + 1
    # Every category has a code of five bits: longer than need be, and simple. The code of ones alone is not allowed, so 31 fit.
    table = bytes([0, 0, 0, 0, categories] + [0] * 11 + list(range(categories)))
    header = b"".join(
        [
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB3B", precision, rows, columns, 1, 1, 0x11, 0)),
            _segment(0xC4, b"\x00" + table),
            _segment(0xDA, bytes([1, 1, 0x00, 1, 0, 0])),  # one component, predictor 1, no point transform
        ]
    )
    return header + _stuffed("".join(_bits(difference) for difference in _differences(plane, precision))) + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _differences(plane: np.ndarray, precision: int) -> list[int]:
    """To the left neighbour; in the first column to the one above; the very first to half the range. Modulo 65536, as the standard says."""
    wide = plane.astype(np.int64)
    before = np.roll(wide, 1, axis=1)
    before[1:, 0], before[0, 0] = wide[:-1, 0], 1 << (precision - 1)
    return ((wide - before + 32768) % 65536 - 32768).ravel().tolist()


def _bits(difference: int) -> str:
    category = abs(difference).bit_length()
    code = f"{category:05b}"
    if category in (0, 16):
        return code
    return code + f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"


def _stuffed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return data.replace(b"\xff", b"\xff\x00")
