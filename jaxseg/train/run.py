"""The folder of one training run: resolved config, provenance, log, checkpoints, lock. Opened by pretraining and fine-tuning."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.files import lock_folder, read_json, write_json
from jaxseg.manifest import finished_steps
from jaxseg.train.log import RunLog

# Settings that change how often a run reports or saves, or what memory it takes: its numbers never by more than rounding.
MAY_CHANGE = ("log_every", "save_every", "max_skips", "remat", "remat_keep")
_OFF = (None, False, 0, "", [], {})
CONTENT = "content"
"""The name in a config of what the cases hold: a list of (case, hash). A run whose config is from before it existed is gone on with."""
STARTED_FROM = "started_from"
"""The name in a config of the SHA-256 of the weights that a run started from, whose folder may come to hold others; else as `CONTENT`."""


class RunFolder:
    """A run on disk: `config.json`, `provenance.json`, `log.jsonl`, `checkpoints/`. Use `RunFolder.open`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.log = RunLog(self.path / "log.jsonl")
        self.checkpoints = self.path / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run; the truth on resume."""
        return read_json(self.path / "config.json")

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path, config: Any, *, may_change: tuple[str, ...] = ()) -> Iterator["RunFolder"]:
        """Hold the folder for this run, new or resumed. One in which nothing was trained yet may be taken with another config.

        Args:
            path: made if missing.
            config: a dataclass or mapping of JSON values, resolved.
            may_change: names (`loop.steps`, or the last part, `steps`) that a resumed run may set otherwise, `MAY_CHANGE` apart.

        Raises:
            ConfigError: the folder holds a run with another config, on other content of its cases or from other weights; the message lists the differences.
            StorageError: not writable, or in use by another process.
        """
        run, resolved = cls(path), _as_json(config)
        if jax.process_index() != 0:
            yield run
            return
        with lock_folder(run.path):
            if (run.path / "config.json").exists() and has_trained(run.path):
                _refuse_changes(run, resolved, (*MAY_CHANGE, *may_change))
            write_json(run.path / "config.json", resolved)
            run._note_provenance()
            yield run

    def _note_provenance(self) -> None:
        path = self.path / "provenance.json"
        before = read_json(path)["sessions"] if path.exists() else []
        write_json(path, {"sessions": [*before, provenance()]})


def has_trained(path: str | Path) -> bool:
    """Whether a run folder holds anything that came of its config: a finished checkpoint, or the model of one."""
    return bool(finished_steps(Path(path) / "checkpoints")) or (Path(path) / "model").exists()


def provenance() -> dict[str, Any]:
    """When, with which command, on which machine and with which versions: one session of a run.

    Paths in the command are kept as their hashes alone (`path:` and 12 digits of the SHA-256 of the resolved path): they may name patients.
    """
    program = Path(sys.argv[0]).name
    verb = sys.argv[1:2] if program == "jaxseg" else []  # a folder may be called like it
    packages = ("jaxseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [program, *verb, *map(_without_path, sys.argv[1 + len(verb) :])],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": [f"{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "plain": os.environ.get("JAXSEG_PLAIN", ""),  # fast paths that were off (`models.switches`)
    }


def _without_path(argument: str) -> str:
    """An argument, or `--name=value`, with a path in it replaced by its hash."""
    name, equals, value = argument.rpartition("=")
    if not value or ("/" not in value and "\\" not in value and not Path(value).exists()):
        return argument
    return f"{name}{equals}path:{hashlib.sha256(str(Path(value).resolve()).encode()).hexdigest()[:12]}"


def _as_json(config: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        raise ConfigError(f"a config holds JSON values only; found {type(value).__name__}: {value!r}")

    return json.loads(json.dumps(dict(config) if isinstance(config, Mapping) else config, default=plain))


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {str(number): each for number, each in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {key: each for part, inner in value.items() for key, each in _flatten(inner, f"{name}.{part}".lstrip(".")).items()}


def _refuse_changes(run: RunFolder, resolved: dict[str, Any], may_change: tuple[str, ...]) -> None:
    before, now = _flatten(run.config), _flatten(resolved)
    changed = [name for name in {**before, **now} if before.get(name, "not set") != now.get(name, "not set")]
    # Settings that are younger than the run are off where nobody sets them, which is what it did.
    changed = [name for name in changed if name in before or (now[name] not in _OFF and _last(name) != STARTED_FROM)]
    refused = [name for name in changed if name not in may_change and _last(name) not in may_change]
    settings = [name for name in refused if _last(name) not in (CONTENT, STARTED_FROM)]
    if settings:
        lines = "\n".join(f"  {name}: {before.get(name, 'not set')!r} then, {now.get(name, 'not set')!r} now" for name in settings)
        raise ConfigError(f"{run.path}: this folder holds a run with another config; set these back, or choose another folder:\n{lines}")
    if any(_last(name) == STARTED_FROM for name in refused):
        raise ConfigError(
            f"{run.path}: this folder holds a run that started from other weights than those in its pretraining's folder now; choose another folder or "
            "remove this one to start from these, or put the pretraining back as it was"
        )
    cases = [
        case for name in refused if name in before and _last(name) == CONTENT for case in _changed_cases(before[name], now.get(name, []))
    ]
    if cases:
        shown = ", ".join(cases[:6]) + (f" and {len(cases) - 6} more" if len(cases) > 6 else "")
        raise ConfigError(
            f"{run.path}: this folder holds a run on other content of its cases: the scans or labels of {shown} have changed since, or are "
            "prepared otherwise; choose another folder or remove this one to train on them as they are now, or put them back as they were"
        )


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _changed_cases(before: list[list[str]], now: list[list[str]]) -> list[str]:
    return sorted({(new or old)[0] for old, new in itertools.zip_longest(before, now) if old != new})
