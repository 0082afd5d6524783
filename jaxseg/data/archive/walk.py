"""What there is to read below the roots of an archive. Called by `index`; opens nothing but DICOM headers, which only together are a scan."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from jaxseg.data.archive.scan_row import Task
from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.scans import SUFFIXES, ScanRef, find_scans, stem, walk
from jaxseg.data.layouts import dataset_json, read_declared
from jaxseg.data.scan_names import numbers_are_channels
from jaxseg.errors import InputError

_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
REFUSED = (
    "an archive file, which jaxseg does not open: its members may lie outside the folder they are unpacked to, or swell without bound; "
    "unpack it with a tool you trust, and index the folder"
)


def check_root(root: Path) -> None:
    """InputError for a root that does not exist, or is a zip or tar file."""
    if not root.exists():
        raise InputError(f"{root}: no such folder")
    if root.is_file() and root.name.lower().endswith(_PACKED):
        raise InputError(f"{root}: {REFUSED}")


def holds_scans(root: Path) -> bool:
    """Whether there is anything to list below a root."""
    return next(find_scans(root), None) is not None or next(_packed(root), None) is not None


def refuse_nested(roots: Sequence[Path]) -> None:
    """InputError where a root is given twice or lies in another: its scans would be listed twice, as those of different patients."""
    real = [root.resolve() for root in roots]
    for number, one in enumerate(real):
        for other in range(len(real)):
            if other != number and one.is_relative_to(real[other]):
                raise InputError(f"{roots[number]}: this folder is, or lies in, {roots[other]}, which is indexed as well; give one of them")


def tasks_below(root: Path, number: int, rules: Rules) -> Iterator[Task]:
    """Every scan below a root, in the order of names; a zip or tar file that lies there comes with the reason why it is not opened."""
    packed = iter(_packed(root))
    following = next(packed, None)
    for _, refs in groupby(find_scans(root, rules), key=lambda ref: folder_of(ref.path, ref.format)):
        refs = list(refs)
        numbered = numbers_are_channels({stem(ref.path) for ref in refs})
        for ref in refs:
            while following is not None and following.parent <= ref.path.parent and following < ref.path:
                yield _task(ScanRef(following, "archive", (following,), reason=REFUSED), number)
                following = next(packed, None)
            yield _task(ref, number, numbered)
    for path in (path for path in (following, *packed) if path is not None):
        yield _task(ScanRef(path, "archive", (path,), reason=REFUSED), number)


def folder_of(path: Path, kind: str) -> Path:
    """The folder whose names count for a scan of this format: a DICOM series is at a folder, and by itself."""
    return path if kind.startswith("DICOM") else path.parent


def count_files(root: Path) -> int:
    """About how many scans there are, for a progress bar: files with a scan's suffix."""
    if root.is_file():
        return 1
    return sum(name.lower().endswith(SUFFIXES) for _, names in walk(root) for name in names)


def declared_channels(root: Path, channels: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the channels of a 4-D scan: those given, or those of the root's dataset.json."""
    if channels:
        return tuple(channels)
    file = dataset_json(root)
    return () if file is None else read_declared(file).channels


def _packed(root: Path) -> Iterator[Path]:
    for folder, names in walk(root):
        yield from (folder / name for name in names if name.lower().endswith(_PACKED))


def _task(ref: ScanRef, root: int, numbered: bool | None = None) -> Task:
    size = mtime = 0
    for file in ref.files:
        try:
            found = file.stat()
        except OSError:
            continue
        size, mtime = size + found.st_size, max(mtime, found.st_mtime_ns)
    return Task(ref, root, size, mtime, numbered)
