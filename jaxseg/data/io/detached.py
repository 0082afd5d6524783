"""The files in which a header says that its voxels lie. Called by `nrrd` and `metaimage`.

A header comes from anybody, so a name in it may only lead to a file in its own folder or below.
"""

import re
from pathlib import Path

from jaxseg.errors import InputError

_MOST_FILES = 100_000


def named_inside(header: Path, name: str) -> Path:
    """The file `name` beside `header`; InputError if that leads out of the header's folder or does not exist."""
    path = header.parent / name
    if "\0" in name or not path.resolve().is_relative_to(header.parent.resolve()):
        raise InputError(f"{header}: its voxels are said to lie in {name!r}, outside its own folder; put the two files side by side")
    if not path.is_file():
        raise InputError(f"{header}: its voxels are said to lie in {name!r}, but there is no such file beside it")
    return path


def numbered(header: Path, pattern: str, steps: list[str]) -> list[str]:
    """Names of a numbered series: ("s%02d.raw", ["1", "5", "2"]) → s01.raw, s03.raw, s05.raw (C's %d with an optional width)."""
    form = re.fullmatch(r"([^%]*)%(0?)(\d{0,2})[di]([^%]*)", pattern)
    try:
        low, high, step = (int(word) for word in steps)
        count = len(range(low, high + 1, step))
    except ValueError:
        raise InputError(f"{header}: damaged header: {' '.join(steps)!r} should be the first number, the last and the step") from None
    if form is None or not 0 < count <= _MOST_FILES:
        raise InputError(f"{header}: damaged header: {pattern!r} with {' '.join(steps)} does not name a series of files")
    before, zero, width, after = form.groups()
    return [f"{before}{str(number).rjust(int(width or 0), '0' if zero else ' ')}{after}" for number in range(low, high + 1, step)]
