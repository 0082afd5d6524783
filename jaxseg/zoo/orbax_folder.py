"""Orbax checkpoints read as numpy arrays by name: those of a training run (with its manifest of hashes) and anyone's. Called by `zoo.weight_file`."""

import re
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxseg.errors import CheckpointError
from jaxseg.files import read_json, sha256_of

_STEP = re.compile(r"\d+")
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
MANIFEST = "manifest.json"


def find_orbax(folder: Path) -> Path | None:
    """The checkpoint to read in a folder: itself, that of a training run's step, or the last finished step of a run; None if there is none."""
    if any((folder / mark).is_file() for mark in _MARKS):
        return folder
    if (folder / MANIFEST).is_file() and (folder / "state").is_dir():
        return folder
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = [path for path in inside.iterdir() if _STEP.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return max(steps, key=lambda path: int(path.name), default=None)


def read_orbax(checkpoint: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint that `find_orbax` found, by dotted name.

    Raises CheckpointError if a file differs from the manifest beside it (Orbax itself notices no flipped byte), or Orbax cannot read it.
    """
    state = checkpoint
    if (checkpoint / MANIFEST).is_file() and (checkpoint / "state").is_dir():
        _check_manifest(checkpoint)
        state = checkpoint / "state"
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        metadata = ocp.metadata(str(state.absolute())).metadata
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), metadata)
        tree = ocp.load(str(state.absolute()), wanted)
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{state}: Orbax cannot read this as a checkpoint of arrays ({type(error).__name__}: {first})") from error
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in leaves]
    return {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves)}


def _check_manifest(checkpoint: Path) -> None:
    manifest = read_json(checkpoint / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(f"{checkpoint / MANIFEST}: not a manifest of a checkpoint; name another step of the same run")
    for name, expected in files.items():
        if ".." in Path(name).parts or not (checkpoint / name).is_file() or sha256_of(checkpoint / name) != expected:
            raise CheckpointError(f"{checkpoint}: {name} is missing or has changed since it was written; name another step of the same run")
