"""4-D files whose volumes are the channels that somebody named. Called by `cases` and `infer.folder`; reads headers."""

from collections.abc import Collection, Sequence
from pathlib import Path

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.scans import header_of
from jaxseg.errors import InputError

_ANYHOW = Rules("sform", "RAS")  # how many volumes there are does not depend on where they lie


def volumes_in(path: Path) -> int:
    """How many volumes a file holds, by its header: 1, or more in a 4-D one. InputError for a file that is no scan."""
    shape = header_of(path, _ANYHOW).shape
    return shape[3] if len(shape) > 3 else 1


def miscounted(paths: Collection[Path], channels: Sequence[str]) -> str:
    """The rest of a message on a case that lacks channels: its only file is 4-D with another number of volumes; "" where that is not so."""
    try:
        [path] = paths
        count = volumes_in(path)
    except (ValueError, InputError):
        return ""
    return f"; {path} holds {count} volumes, and {len(channels)} channels are named" if count not in (1, len(channels)) else ""


def holds_channels(path: Path, channels: Sequence[str]) -> bool:
    """Whether a file is 4-D with as many volumes as there are channels, two at least; False for one that cannot be read, which its reader explains."""
    try:
        return len(channels) > 1 and volumes_in(path) == len(channels)
    except InputError:
        return False
