"""Every format behind one door: which scans a folder holds (`find_scans`), and a scan's files to voxels (`decode_scan`).

Called by `read` (a path that a user gives) and `archive` (an index of everything below a root).
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxseg.data.io import dicom, dicom_seg, metaimage, nifti, nrrd
from jaxseg.data.io.decoded import Decoded, Header, Rules
from jaxseg.data.io.scan_stream import opened
from jaxseg.data.io.stream import SLACK, open_file, read_bytes
from jaxseg.errors import InputError

_PAIR_HEADERS = (".hdr", ".hdr.gz")
_FORMATS = {
    "NIfTI": (*nifti.SUFFIXES, *nifti.PAIR_SUFFIXES),
    "NRRD": nrrd.SUFFIXES,
    "MetaImage": metaimage.SUFFIXES,
}
SUFFIXES = (
    *nifti.SUFFIXES,
    *_PAIR_HEADERS,
    *nrrd.SUFFIXES,
    *metaimage.SUFFIXES,
)  # longer ones first: "a.nii.gz" ends in neither .gz nor .nii
_DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima", ".img", ".seg")
_NEVER_DICOM = set(
    ".gz .zip .tar .tgz .bz2 .xz .json .txt .csv .tsv .xml .html .htm .md .rst .pdf .doc .docx .xls .xlsx .png .jpg .jpeg .gif .tif .tiff .bmp "
    ".svg .mp4 .avi .py .sh .m .ipynb .log .yaml .yml .toml .npy .npz .mat .h5 .hdf5 .pkl .pt .pth .parquet .bval .bvec .raw .zraw .db .ini".split()
)


@dataclass(frozen=True)
class ScanRef:
    """A scan in an archive, found by names and headers alone.

    Attributes:
        path: its file; for a DICOM series the folder.
        format: "NIfTI", "NRRD", "MetaImage", "DICOM", "DICOM SEG" or "DICOM RTSTRUCT".
        files: all files that it consists of.
        key: for DICOM, which series of the folder: 16 hexadecimal digits, hashed. Empty otherwise.
        modality: what the DICOM header says ("CT", "MR", "PET"); empty where nothing is said.
        patient, study: hashed DICOM identifiers; empty where there are none.
        reason: why it is no scan to train on (a localiser, a dose report, …); empty for a scan.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    key: str = ""
    modality: str = ""
    patient: str = ""
    study: str = ""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ScanRead:
    """A scan's voxels with the SHA-256 (hexadecimal) and the number of the bytes they came from."""

    decoded: Decoded
    sha256: str
    bytes: int


def stem(path: Path) -> str:
    """The file name without the suffix of its format: "a.nii.gz" → "a", "b.nrrd" → "b"."""
    lower = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), None)
    return path.stem if suffix is None else path.name[: -len(suffix)]


def composed(name: str) -> str:
    """A name with its accented letters in one piece (Unicode's NFC), for comparing names: on copies that macOS made they may be in two (NFD)."""
    return unicodedata.normalize("NFC", name)


def name_of(path: Path) -> str:
    """What a file is called, for comparing it with others: its stem, composed."""
    return composed(stem(path))


def printable(path: Path | str) -> str:
    """A path as text that every file format holds, also where its bytes are not UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_dangling(path: Path) -> bool:
    """Whether this is a link to something that is not there."""
    return path.is_symlink() and not path.exists()


def find_scans(root: Path, rules: Rules | None = None) -> Iterator[ScanRef]:
    """Every scan below `root` (or at it), folder by folder in the order of names, so that memory is that of one folder.

    A file that is not a scan of any known format is passed over; a DICOM object that cannot be trained on comes with its reason.

    Raises:
        InputError: `root` does not exist.
    """
    rules = rules or Rules()
    if not root.exists():
        raise InputError(f"{root}: no such folder")
    if root.is_file():
        yield from _scans_of(root.parent, [root], rules)
        return
    unreadable: list[OSError] = []
    for folder, names in walk(root, unreadable.append):
        yield from _refused_folders(unreadable)
        yield from _scans_of(folder, [folder / name for name in names], rules)
    yield from _refused_folders(unreadable)


def _refused_folders(errors: list[OSError]) -> Iterator[ScanRef]:
    """A row for each folder that could not be listed, so that what it holds does not vanish without a word; empties `errors`."""
    while errors:
        error = errors.pop(0)
        yield ScanRef(Path(error.filename), "folder", (), reason=f"{error.filename}: this folder cannot be read ({error.strerror})")


def files_of(path: Path) -> list[Path]:
    """Every file that the scan at a path consists of, in order: all below a folder; those beside a slice of DICOM; or the file itself with
    those that its header names."""
    lower = path.name.lower()
    if path.is_dir():
        return sorted(part for part in path.rglob("*") if part.is_file())
    if lower.endswith(nifti.PAIR_SUFFIXES):
        return list(_pair(path)) or [path]
    if lower.endswith((".nhdr", ".mhd")):
        return list(_with_companions(path, "NRRD" if lower.endswith(".nhdr") else "MetaImage").files)
    if path.is_file() and _is_slice(path):
        return dicom.beside(path)
    return [path]


def _is_slice(path: Path) -> bool:
    """Whether the file is DICOM and no segmentation: the scan at its path is the whole series beside it."""
    try:
        return format_of(path) == "DICOM" and not dicom_seg.is_segmentation(path, Rules())
    except InputError:
        return False


def joined(refs: Sequence[ScanRef]) -> ScanRef:
    """The parts of one DICOM series, from several folders, as one scan at the lowest folder that holds all of its files."""
    files = tuple(sorted(file for ref in refs for file in ref.files))
    return replace(refs[0], path=Path(os.path.commonpath([ref.path for ref in refs])), files=files)


def walk(root: Path, unreadable: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down with the names of its files, both in order and without hidden ones.

    Links to folders are followed, as archives put together from others have them; a folder that was seen already is not entered again.
    `unreadable` is called for a folder that cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, onerror=unreadable, followlinks=True):
        try:
            status = os.stat(folder)
        except OSError:  # gone since it was listed
            below.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def decode_scan(ref: ScanRef, rules: Rules) -> ScanRead:
    """A scan's files to voxels, hashed on the way.

    Raises:
        InputError, GeometryError: with the reason, as each format's reader says; a `ref.reason` is raised as it is.
    """
    if ref.reason:
        raise InputError(f"{ref.path}: {ref.reason}")
    if ref.format == "DICOM SEG":
        return ScanRead(dicom_seg.decode(ref.files[0], rules), *_hashed([read_bytes(ref.files[0], rules)]))
    if ref.format.startswith("DICOM"):
        digest = dicom.Digest()
        return ScanRead(dicom.decode_files(ref.files, ref.key, rules, digest), digest.sha256, digest.size)
    path = ref.path
    if ref.format == "NIfTI":
        if not path.name.lower().endswith(nifti.PAIR_SUFFIXES):
            with opened(path, rules.max_bytes + SLACK) as stream:
                return ScanRead(nifti.decode_stream(stream, str(path), rules), stream.sha256, stream.size)
        head, image = (read_bytes(file, rules) for file in nifti.pair_of(path))
        return ScanRead(nifti.decode_pair(head, image, str(path), rules), *_hashed([head, image]))
    data = read_bytes(path, rules)
    decoded, others = (nrrd if ref.format == "NRRD" else metaimage).decode(data, path, rules)
    return ScanRead(decoded, *_hashed([data, *(read_bytes(other, rules) for other in others)]))


def decode_path(path: Path, rules: Rules, *, series: str | None = None, label: bool = False) -> Decoded:
    """The voxels at a path: a file of any known format, or a folder that holds one DICOM series (or the one with the key `series`).

    `label` admits DICOM segmentations, whose values are no intensities.
    """
    kind = format_of(path)
    if kind == "DICOM" and label and path.is_file() and dicom_seg.is_segmentation(path, rules):
        return dicom_seg.decode(path, rules)
    if kind == "DICOM":
        return dicom.decode_path(path, rules, series=series)
    return decode_scan(ScanRef(path, kind, (path,)), rules).decoded


def header_of(path: Path, rules: Rules) -> Header:
    """The checked header of the scan at a path; voxels are read of DICOM segmentations alone."""
    kind = format_of(path)
    if kind == "DICOM" and path.is_file() and dicom_seg.is_segmentation(path, rules):
        return dicom_seg.decode(path, rules).header
    if kind == "DICOM":
        return dicom.header_of(path, rules)
    return {"NIfTI": nifti.read_header, "NRRD": nrrd.read_header, "MetaImage": metaimage.read_header}[kind](path, rules)


def format_of(path: Path) -> str:
    """One of "NIfTI", "NRRD", "MetaImage", "DICOM": by the suffix where it is one of these formats', else by the file's first bytes.

    Raises:
        InputError: missing, unreadable, or nothing that is known.
    """
    if path.is_dir():
        return "DICOM"
    with open_file(path) as file:
        head = file.read(1024)
    by_content = _by_content(head)
    by_name = next((kind for kind, suffixes in _FORMATS.items() if path.name.lower().endswith(suffixes)), None)
    if by_name is None or (path.suffix.lower() == ".img" and by_content == "DICOM"):
        by_name = by_content
    if by_name is None and path.suffix.lower() in _DICOM_SUFFIXES:
        by_name = "DICOM"  # perhaps one without the preamble: its reader finds out
    if by_name is None:
        raise InputError(f"{path}: not a scan in a known format; expected NIfTI, NRRD, MetaImage or DICOM")
    return by_name


def _by_content(head: bytes) -> str | None:
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:4] == b"NRRD":
        return "NRRD"
    return "MetaImage" if b"NDims" in head and b"=" in head else None


def _scans_of(folder: Path, paths: list[Path], rules: Rules) -> Iterator[ScanRef]:
    unclaimed = []
    for path in paths:
        lower = path.name.lower()
        if lower.endswith(nifti.SUFFIXES):
            yield ScanRef(path, "NIfTI", (path,))
        elif lower.endswith(nifti.PAIR_SUFFIXES) and _pair(path):
            if lower.endswith(_PAIR_HEADERS):
                yield ScanRef(path, "NIfTI", tuple(_pair(path)))
        elif lower.endswith((*nrrd.SUFFIXES, *metaimage.SUFFIXES)):
            yield _with_companions(path, "NRRD" if lower.endswith(nrrd.SUFFIXES) else "MetaImage")
        elif path.suffix.lower() not in _NEVER_DICOM:
            unclaimed.append(path)
    candidates = [path for path in unclaimed if _is_dicom(path)]
    if candidates:
        yield from (ScanRef(folder, **facts) for facts in dicom.describe_folder(candidates, rules))


def _with_companions(path: Path, kind: str) -> ScanRef:
    """A .nhdr or .mhd file is one scan with the files that it names; a header that cannot be read is listed by itself."""
    try:
        others = (nrrd if kind == "NRRD" else metaimage).companions(path) if path.suffix.lower() in (".nhdr", ".mhd") else ()
    except InputError:
        others = ()
    return ScanRef(path, kind, (path, *others))


def _pair(path: Path) -> tuple[Path, ...]:
    try:
        return nifti.pair_of(path)
    except InputError:
        return ()


def _is_dicom(path: Path) -> bool:
    """By the magic word after the preamble; a file called .dcm may lack it."""
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    with open_file(path) as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def _hashed(blocks: list[bytes]) -> tuple[str, int]:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest(), sum(map(len, blocks))
