"""What a run tells: `log.jsonl`, one JSON object a line, and a progress bar with the time left. Written by the loop, read by the report."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxseg.files import storage_errors, write_text


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log, oldest first; a last line cut off by a kill is left out. An empty list where there is no file."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    # A whole line ends in a newline, so what follows the last one is a fragment.
    return [json.loads(line) for line in lines[:-1]]


class RunLog:
    """The log of one run, appended to as it goes.

    Lines hold `step`, each loss term and `loss` (means over the steps since the line before), `lr`, `grad_norm`, `skipped` (steps),
    `seconds` (of training so far, resumes added up) and `steps_per_second`; after an evaluation `{"step", "evaluation": {...}}`.
    Non-finite numbers are null."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line. Raises StorageError where the disk is full."""
        text = json.dumps({name: _finite(value) for name, value in line.items()}, allow_nan=False)
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def truncate(self, step: int) -> float:
        """Forget what came after `step`, so that a resumed run does not draw it twice; returns the seconds of training up to there."""
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        if self.path.exists():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return max((line["seconds"] for line in kept if "seconds" in line), default=0.0)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TrainingProgressProtocol(Protocol):
    """What the loop calls to show how far it is. A caller with its own display hands its own."""

    def begin(self, total: int, done: int) -> None:
        """Training of `total` steps goes on after `done`."""

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` is finished, with these numbers."""

    def say(self, text: str) -> None:
        """One line for a person."""

    def end(self) -> None:
        """Training is over, well or not."""


class QuietProgress:
    """Shows nothing: the other processes of a run, and tests."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class TrainingProgress:
    """A bar with loss and time left on a terminal; elsewhere a line every `every` seconds."""

    def __init__(self, name: str = "training", *, console: Console | None = None, every: float = 30.0):
        self.name, self.every = name, every
        self.console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._last = (0.0, 0)
        self._first: tuple[float, int] | None = None  # the step that compiled: what came before it is no measure of what is left
        self._total = 0

    def begin(self, total: int, done: int) -> None:
        """Open the bar, or say where training starts."""
        self._total = total
        self._last, self._first = (time.monotonic(), done), None
        if not self.console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(), TimeRemainingColumn())
        bar = Progress(TextColumn(self.name), *columns, console=self.console)
        self._task = bar.add_task(self.name, total=total, completed=done, numbers="")
        bar.start()
        self._bar = bar

    def advance(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line if the last one is old enough."""
        numbers = f"loss {metrics['loss']:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
            return
        now = time.monotonic()
        self._first = self._first or (now, step)
        if now - self._last[0] < self.every and step < self._total:
            return
        rate = (step - self._first[1]) / max(now - self._first[0], 1e-9)
        self._last = (now, step)
        if rate > 0:
            left = int((self._total - step) / rate)
            numbers += f"  {rate:.2f} steps/s  {left // 60}:{left % 60:02d} left"
        self.say(f"{self.name} {step}/{self._total}  {numbers}")

    def say(self, text: str) -> None:
        """Print a line (above the bar)."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
