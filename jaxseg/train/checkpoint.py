"""Checkpoints of a run: asynchronous saves, a manifest of hashes, restoring onto any layout. All Orbax calls are here.

A checkpoint is a folder `checkpoints/000000120/` with Orbax's `state/`, `loader.json` and, written last, `manifest.json` (see
`jaxseg.manifest`), whose hashes are checked before a load."""

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxseg.errors import CheckpointError
from jaxseg.files import read_json, storage_errors, write_json
from jaxseg.manifest import MANIFEST, STATE, finished_steps, is_finished, problem_of, write_manifest
from jaxseg.train.parallel import Layout
from jaxseg.train.processes import meet
from jaxseg.train.state import array_names

# Orbax writes several lines of progress a save through absl, and the whole traceback of each error, which it raises here as well.
logging.getLogger("absl").setLevel(logging.ERROR)
logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)

_FILE_BYTES = 64 << 20
"""Orbax begins a new data file at this size, so that several can be hashed at once."""


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` gives back: the state on its devices, the loader's state, and the step they belong to."""

    step: int
    state: Any
    loader_state: Any


class Checkpoints:
    """The checkpoints of one run: the last `keep` and the best.

    Across processes all of them must call `save`, `wait` and `restore`, on a folder that they share; the loader's state saved is
    process 0's, so it must be the same on all of them (a global position).

    Args:
        folder: the run's `checkpoints` folder; made when first needed.
        layout: where the states that are saved and restored live.
        keep: how many of the last checkpoints stay, the best one apart.
        say: called with one line for each damaged checkpoint that is passed over.
    """

    def __init__(self, folder: str | Path, layout: Layout, *, keep: int = 2, say: Callable[[str], None] = print):
        self.folder, self.layout, self.keep, self._say = Path(folder).absolute(), layout, keep, say
        self._first = jax.process_index() == 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def best(self) -> dict[str, Any] | None:
        """`{"step", "name", "value"}` of the best checkpoint so far, or None."""
        return read_json(self.folder / "best.json") if (self.folder / "best.json").exists() else None

    def save(self, step: int, state: Any, loader_state: Any, *, best: dict[str, Any] | None = None) -> None:
        """Save in the background; a save still under way is waited for first. The state may be donated as soon as this returns.

        Args:
            best: `{"name", "value"}` of the measure in which this checkpoint is the best so far.

        Raises:
            StorageError: no space, or not writable (perhaps of the save before); what was saved earlier is untouched.
        """
        self.wait()
        target = self.folder / f"{step:09d}"
        state = self.layout.to_global(state)
        arrays = dict(zip(array_names(state), jax.tree.leaves(state)))
        with _clean_up(target):
            if self._first:
                shutil.rmtree(target, ignore_errors=True)
                write_json(target / "loader.json", loader_state)
            meet(f"checkpoint {step}")
            with _writing():
                response = ocp.save_async(str(target / STATE), arrays)
        shapes = {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}
        self._pending = self._pool.submit(self._finish, response, target, shapes, best)

    def _finish(self, response: ocp.AsyncResponse, target: Path, shapes: dict[str, Any], best: dict[str, Any] | None) -> None:
        with _clean_up(target):
            response.result()
            if not self._first:
                return
            write_manifest(target, int(target.name), shapes)
        if best is not None:
            write_json(self.folder / "best.json", {"step": int(target.name), **best})
        kept = {path.name for path in finished_steps(self.folder)[: self.keep]} | {f"{(self.best or {}).get('step', -1):09d}"}
        for path in finished_steps(self.folder):
            if path.name not in kept:
                _remove(path)

    def wait(self) -> None:
        """Until the last save is complete; raises what went wrong in it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and let go of the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def restore(self, state: Any) -> Restored | None:
        """The last good checkpoint, onto the shapes and places of `state` (its values are not used); None where none was ever finished.

        Raises:
            CheckpointError: all of them are damaged, or their arrays are not those of `state` (a table of differences).
        """
        self.wait()
        step, count = self._choose() if self._first else (0, 0)
        meet("the checkpoint to restore is chosen")
        step, count = (int(each) for each in multihost_utils.broadcast_one_to_all(np.array([step, count])))
        if step < 0:
            if count:
                raise CheckpointError(
                    f"{self.folder}: all {count} checkpoints are damaged; restore the folder from a copy, or choose another --out"
                )
            return None
        target = self.folder / f"{step:09d}"
        names = array_names(state)
        wanted = {name: (list(leaf.shape), str(leaf.dtype)) for name, leaf in zip(names, jax.tree.leaves(state))}
        saved = {name: tuple(entry) for name, entry in read_json(target / MANIFEST)["arrays"].items()}
        if differences := _differences(saved, wanted):
            raise CheckpointError(f"{target}: this checkpoint is of another model or optimizer:\n" + "\n".join(differences))
        places = jax.tree.leaves(self.layout.global_shardings(state))
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
            for name, leaf, place in zip(names, jax.tree.leaves(state), places)
        }
        arrays = ocp.load(str(target / STATE), abstract)
        restored = jax.tree.unflatten(jax.tree.structure(state), [arrays[name] for name in names])
        return Restored(step, self.layout.from_global(restored), read_json(target / "loader.json"))

    def _choose(self) -> tuple[int, int]:
        """The step of the last good checkpoint (-1: none) and how many were looked at. Damaged ones after it are removed."""
        candidates = finished_steps(self.folder)
        damaged = []
        for path in candidates:
            problem = problem_of(path)
            if problem is None:
                for bad in damaged:
                    _remove(bad)
                if self.best and not (self.folder / f"{self.best['step']:09d}").exists():
                    (self.folder / "best.json").unlink()
                return int(path.name), len(candidates)
            self._say(f"{path}: this checkpoint is damaged ({problem}); falling back to the one before")
            damaged.append(path)
        return -1, len(candidates)


def read_arrays(folder: str | Path, prefix: str = "params.", *, best: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint whose name begins with `prefix`, by name without it; only those are read.

    Args:
        folder: a run folder, its `checkpoints`, or one checkpoint.
        prefix: `params.encoder.` for an encoder, `ema.` for the average.
        best: the best checkpoint instead of the last (of a run folder).

    Raises:
        CheckpointError: no finished checkpoint there, a damaged one, or no array of that name.
    """
    target = _find(Path(folder).absolute(), best)
    problem = problem_of(target)
    if problem is not None:
        raise CheckpointError(f"{target}: this checkpoint is damaged ({problem}); name another one of the same run")
    saved = read_json(target / MANIFEST)["arrays"]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype), sharding=here)
        for name, (shape, dtype) in saved.items()
        if name.startswith(prefix)
    }
    if not wanted:
        tops = sorted({".".join(name.split(".")[:2]) for name in saved})
        raise CheckpointError(f"{target}: no array begins with {prefix!r}; there are {', '.join(tops)}")
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with context:
        arrays = ocp.load(str(target / STATE), wanted)
    return {name.removeprefix(prefix): np.asarray(array) for name, array in arrays.items()}


def _find(folder: Path, best: bool) -> Path:
    if is_finished(folder):
        return folder
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if best and (inside / "best.json").exists():
        return inside / f"{read_json(inside / 'best.json')['step']:09d}"
    complete = finished_steps(inside)
    if not complete:
        raise CheckpointError(f"{folder}: no finished checkpoint here; expected a run folder with checkpoints/, or one checkpoint in it")
    return complete[0]


def _remove(path: Path) -> None:
    """Delete a checkpoint; the manifest goes first, so that half of one is never taken for a whole one."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    lines = [f"  {name}: not in the checkpoint" for name in wanted if name not in saved]
    lines += [f"  {name}: only in the checkpoint" for name in saved if name not in wanted]
    lines += [
        f"  {name}: {saved[name]} in the checkpoint, {wanted[name]} here"
        for name in wanted
        if name in saved and saved[name] != wanted[name]
    ]
    shown = lines[:20]
    return shown + [f"  and {len(lines) - 20} more"] if len(lines) > 20 else shown


def _writing() -> ocp.Context:
    """How Orbax writes: without compression, which makes weights a tenth smaller for five times the work."""
    context = ocp.Context()
    context.array_options.saving.use_compression = False
    context.array_options.saving.ocdbt_target_data_file_size = _FILE_BYTES
    return context


@contextlib.contextmanager
def _clean_up(target: Path) -> Iterator[None]:
    """Make StorageError of a refusal to write (Orbax reports some as ValueError), and leave no half-written checkpoint."""
    try:
        with storage_errors(target):
            try:
                yield
            except (ValueError, RuntimeError) as error:
                code = re.search(r"os_error_code='(\d+)'", str(error))
                if code:
                    raise OSError(int(code[1]), os.strerror(int(code[1])), str(target)) from error
                if re.search("RESOURCE_EXHAUSTED|No space left|Disk quota", str(error)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
                raise
    except BaseException:
        if jax.process_index() == 0:
            shutil.rmtree(target, ignore_errors=True)
        raise
