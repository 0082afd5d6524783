"""The names of the Brain Imaging Data Structure (bids-specification.readthedocs.io): `sub-01_ses-2_ce-gd_T1w` and what it says.

Called by `layouts` (cases of a folder) and `archive` (whose scan a file is); reads names only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxseg.data.io.scans import SUFFIXES, is_dangling, stem

# Suffixes of 3-D images; series over time (bold, dwi, asl, …) and field maps are no scans to segment.
_IMAGES = frozenset(
    "T1w T2w T2star T2starw FLAIR PDw PDT2 inplaneT1 inplaneT2 angio SWI UNIT1 T1map T2map R1map R2map PDmap MTRmap MTsat ct CT cta pet".split()
)
_LABELS = frozenset("dseg seg lesion roi".split())
# Entities that tell two files of one session apart, in the order in which the specification writes them.
_TELLING = ("task", "trc", "acq", "ce", "rec", "dir", "run", "echo", "flip", "inv", "mt", "part", "space", "res", "den", "desc")
_BRAIN = re.compile(r"brain|head|skull|valid", re.IGNORECASE)
_ANONYMISED = re.compile(r"anon(ymi[sz](ed|ation))?|defac(ed?|ing)", re.IGNORECASE)


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name: entities in the order written, and the suffix."""

    entities: dict[str, str]
    suffix: str

    @property
    def subject(self) -> str:
        return f"sub-{self.entities['sub']}"

    @property
    def session(self) -> str | None:
        return f"ses-{self.entities['ses']}" if "ses" in self.entities else None

    @property
    def role(self) -> Literal["image", "label", "mask"] | None:
        """ "image", "label" or "mask" (of the brain or of anonymised voxels), or None for what is none of them, such as a time series or a probability map."""
        about = self.entities.get("label", "") + self.entities.get("desc", "")
        if self.suffix == "mask":
            beside = _ANONYMISED.fullmatch(about) or (_BRAIN.search(about) and "lesion" not in about.lower())
            return "mask" if beside else "label"
        if self.suffix in _LABELS:
            return "label"
        return "image" if self.suffix in _IMAGES else None

    @property
    def contrast(self) -> str:
        """The suffix; after contrast medium (entity `ce`) with "C" in the place of "w": T1w → T1C."""
        return f"{self.suffix.removesuffix('w')}C" if "ce" in self.entities else self.suffix

    @property
    def full_channel(self) -> str:
        """The contrast with every entity that may tell it from another file of the session."""
        return "_".join([f"{key}-{self.entities[key]}" for key in _TELLING if key in self.entities and key != "ce"] + [self.contrast])


@dataclass(frozen=True)
class BidsFile:
    """One file of a BIDS folder: the case (subject, and session where there are several), its role, and its channel."""

    path: Path
    case: str
    role: Literal["image", "label", "mask"]
    channel: str


def parse(name: str) -> BidsName | None:
    """A file name without its extension, or None if it is not one of BIDS."""
    *pairs, suffix = name.split("_")
    found = dict(pair.split("-", 1) for pair in pairs if re.fullmatch(r"[a-z]+-[A-Za-z0-9+]+", pair))
    if len(found) != len(pairs) or "sub" not in found or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return None
    return BidsName(found, suffix)


def patient_of_bids(case: str) -> str:
    """The subject of a BIDS case id, `sub-01_ses-2` → `sub-01`; any other id is a patient of its own."""
    found = re.fullmatch(r"(sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+", case)
    return found[1] if found else case


def is_bids(folder: Path) -> bool:
    """Whether a folder holds subjects, `sub-*/…/sub-*_SUFFIX.nii.gz`, or is the `derivatives/` of one that does."""
    subjects = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    return any(parse(stem(path)) is not None for subject in subjects[:20] for path in subject.rglob("sub-*_*") if _is_nifti(path))


def bids_files(folder: Path) -> list[BidsFile]:
    """Images and labels of a BIDS folder and its derivatives. Images in `derivatives/` count only where there are none outside."""
    named = []
    for path in sorted(path for path in folder.rglob("sub-*_*") if _is_nifti(path)):
        name = parse(stem(path))
        if name is not None and name.role is not None:
            named.append((path, name))
    raw = [(path, name) for path, name in named if "derivatives" not in path.relative_to(folder).parts]
    if any(name.role == "image" for _, name in raw):
        named = [(path, name) for path, name in named if name.role != "image"] + [item for item in raw if item[1].role == "image"]
    cases = {path: _case(name) for path, name in named}
    seen: dict[tuple[str, str], int] = {}
    for path, name in named:
        if name.role == "image":
            seen[cases[path], name.contrast] = seen.get((cases[path], name.contrast), 0) + 1
    several = {contrast for (_, contrast), count in seen.items() if count > 1}
    return sorted((_file(path, name, cases[path], several) for path, name in named), key=lambda file: str(file.path))


def _file(path: Path, name: BidsName, case: str, several: set[str]) -> BidsFile:
    if name.role == "image":
        return BidsFile(path, case, "image", name.full_channel if name.contrast in several else name.contrast)
    about = [name.entities[key] for key in ("label", "desc") if key in name.entities]
    return BidsFile(path, case, name.role or "label", "_".join([*about, name.suffix]))


def _case(name: BidsName) -> str:
    return f"{name.subject}_{name.session}" if name.session else name.subject


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and (path.is_file() or is_dangling(path))
