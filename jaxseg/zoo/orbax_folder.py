"""Orbax checkpoints read as numpy arrays by name: those of a training run (with its manifest of hashes) and anyone's. Called by `zoo.weight_file`."""

from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxseg.errors import CheckpointError
from jaxseg.manifest import STATE, finished_steps, is_finished, problem_of

_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


def find_orbax(folder: Path) -> Path | None:
    """The checkpoint to read in a folder: itself, that of a training run's step, or the last finished step of a run; None if there is none."""
    if any((folder / mark).is_file() for mark in _MARKS):
        return folder
    if is_finished(folder):
        return folder
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    return next(iter(finished_steps(inside)), None)


def read_orbax(checkpoint: Path) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint that `find_orbax` found, by dotted name.

    Raises CheckpointError if a file differs from the manifest beside it (Orbax itself notices no flipped byte), or Orbax cannot read it.
    """
    state = checkpoint
    if is_finished(checkpoint):
        if problem := problem_of(checkpoint):
            raise CheckpointError(f"{checkpoint}: this checkpoint is damaged ({problem}); name another step of the same run")
        state = checkpoint / STATE
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
