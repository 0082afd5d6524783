"""The manifest of a checkpoint, written last: which arrays it holds and the hash of every file in it. Where it is missing the save was never
finished, and where a hash differs the checkpoint is damaged, which Orbax itself does not notice. `train.checkpoint` writes it; that and
`zoo.orbax_folder` check it before they read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseg.errors import InputError
from jaxseg.files import read_json, sha256_of_each, write_json

MANIFEST = "manifest.json"
STATE = "state"
"""The folder beside the manifest that Orbax writes and reads."""
_STEP = re.compile(r"\d{9}")


def write_manifest(checkpoint: Path, step: int, arrays: Mapping[str, Any]) -> None:
    """Hash every file of a checkpoint, and declare it finished.

    Args:
        checkpoint: its folder, everything in it written.
        arrays: by name what a reader must know before it reads: `[shape, dtype]`.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    hashes = dict(zip(names, sha256_of_each(files)))
    write_json(checkpoint / MANIFEST, {"step": step, "arrays": dict(arrays), "files": hashes})


def is_finished(checkpoint: Path) -> bool:
    """Whether this folder holds a manifest, and the state that it speaks of."""
    return (checkpoint / MANIFEST).is_file() and (checkpoint / STATE).is_dir()


def finished_steps(folder: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints` that were finished, the last first; none where there is no such folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, reverse=True)


def problem_of(checkpoint: Path) -> str | None:
    """What is wrong with a finished checkpoint, in a few words; None if every file is to the byte what was written."""
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
        names = list(files)
        outside = [name for name in names if ".." in Path(name).parts or Path(name).is_absolute()]
    except (InputError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    if not isinstance(files, dict) or outside:
        return f"its {MANIFEST} cannot be read"
    for name in names:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    for name, found in zip(names, sha256_of_each([checkpoint / name for name in names])):
        if found != files[name]:
            return f"the bytes of {name} have changed since it was written"
    return None
