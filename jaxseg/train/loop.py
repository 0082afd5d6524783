"""The one training loop: resume, prefetch, log, evaluate, save, and what to do about signals and non-finite numbers.

The rules of resuming: (1) the last finished, undamaged checkpoint counts; (2) the loader goes back to the batch after the last one
*trained on*; (3) the log forgets what came later; (4) the result is equal to the bit to a run that was not stopped (on a CPU;
docs/scaling.md, "On a GPU"). Called by pretraining and fine-tuning."""

import dataclasses
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxseg.errors import ConfigError, Preempted, TrainingError
from jaxseg.files import write_json
from jaxseg.loaded_programs import forget_programs
from jaxseg.train.checkpoint import Checkpoints, Restored
from jaxseg.train.log import QuietProgress, TrainingProgress, TrainingProgressProtocol
from jaxseg.train.parallel import Layout
from jaxseg.train.run import RunFolder
from jaxseg.train.state import TrainState, count_parameters
from jaxseg.train.step import Step

# Steps handed to the device before the host waits for the oldest: enough to hide the host, few enough that batches do not pile up.
_IN_FLIGHT = 2


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to do what (in steps; 0 is never).

    Attributes:
        steps: of the whole run.
        evaluate_every: calls `evaluate`; also after the last step.
        save_every: checkpoints; one more is always made at the end.
        seed: of the run's random key (masks, augmentation, drop path); 0 takes the seed that the whole config has (`seeded`). The loader has
            its own.
        best: the number of `evaluate` whose best checkpoint is kept, and whether more or less of it is better.
        max_skips: so many non-finite steps in a row make the run go back to its last checkpoint, once, and the next time stop.
    """

    steps: int = 1000
    log_every: int = 10
    save_every: int = 500
    evaluate_every: int = 0
    seed: int = 0
    best: str | None = None
    better: Literal["more", "less"] = "more"
    max_skips: int = 5

    def __post_init__(self):
        if self.steps < 0 or self.log_every < 1 or self.max_skips < 1 or self.save_every < 0 or self.evaluate_every < 0:
            raise ConfigError(f"need log_every and max_skips of 1 or more and no negative number of steps; found {self}")

    def seeded(self, seed: int) -> "LoopConfig":
        """With `seed` where it has none of its own."""
        return self if self.seed else dataclasses.replace(self, seed=seed)


class Loader(Protocol):
    """Batches without end, each with `id`; `get_state()` is the place after the last batch returned, in JSON values."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch: arrays `(b, ...)` of this process."""
        ...

    def get_state(self) -> Any:
        """The place after the last batch returned."""

    def set_state(self, state: Any) -> None:
        """Go to that place."""


def fit(
    step: Step,
    state: TrainState,
    loader: Loader,
    layout: Layout,
    run: RunFolder,
    config: LoopConfig,
    *,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    schedule: Callable[[Any], Any] | None = None,
    progress: TrainingProgressProtocol | None = None,
) -> TrainState:
    """Train to `config.steps`, going on from the run's last checkpoint if it has one.

    Args:
        step: from `make_step`; compiled here.
        state: the state at step 0, from `layout.init` or `layout.place`. It is used up.
        evaluate: numbers by name, logged; must not change or keep the state's arrays.
        schedule: step → learning rate, for the log.
        progress: how to show progress; a bar on standard error by default.

    Raises:
        Preempted: SIGTERM or SIGINT came; the state is saved.
        TrainingError: `max_skips` non-finite steps in a row after a roll-back (`nonfinite.json` holds the ids of their samples).
        ConfigError, CheckpointError, StorageError: see `Layout.put` and `Checkpoints`.
    """
    if progress is None:
        progress = TrainingProgress() if jax.process_index() == 0 else QuietProgress()
    progress.say(_first_line(layout, state))
    forget_programs()
    checkpoints = Checkpoints(run.checkpoints, layout, say=progress.say)
    loop = _Loop(step, loader, layout, run, config, checkpoints, evaluate, schedule, progress)
    try:
        with _signals() as stop:
            progress_from = loop.resume(state)
            progress.begin(config.steps, progress_from)
            return loop.train(stop)
    finally:
        progress.end()
        checkpoints.close()


class _Loop:
    """The moving parts of one call of `fit`."""

    def __init__(
        self,
        step: Step,
        loader: Loader,
        layout: Layout,
        run: RunFolder,
        config: LoopConfig,
        checkpoints: Checkpoints,
        evaluate: Callable[[TrainState], Mapping[str, float]] | None,
        schedule: Callable[[Any], Any] | None,
        progress: TrainingProgressProtocol,
    ):
        self.loader, self.layout, self.run, self.config = loader, layout, run, config
        self.checkpoints, self.evaluate, self.schedule, self.progress = checkpoints, evaluate, schedule, progress
        self.compiled = layout.compile(step)
        self.key = jax.random.key(config.seed)
        self.first_process = jax.process_index() == 0
        self.in_flight: deque[tuple[int, Any, np.ndarray]] = deque()
        self.window: list[dict[str, float]] = []
        self.skips: list[dict[str, Any]] = []
        self.rolled_back = False
        self.logged = 0

    def resume(self, state: TrainState) -> int:
        """Take up the last checkpoint, or start with `state`; returns the steps done."""
        restored = self.checkpoints.restore(state)
        if restored is None:
            restored = Restored(0, state, self.loader.get_state())
        else:
            self.loader.set_state(restored.loader_state)
            self.progress.say(f"resuming after step {restored.step} of {self.config.steps}")
        self._take(restored)
        self.position = restored.loader_state
        return self.done

    def _take(self, restored: Restored) -> None:
        self.state, self.done, self.logged = restored.state, restored.step, restored.step
        self.spent = self.run.log.truncate(restored.step) if self.first_process else 0.0
        self.since = time.monotonic()
        self.window, self.skips = [], []
        self.in_flight.clear()

    def train(self, stop: "_Stop") -> TrainState:
        """The loop itself."""
        upcoming = self._fetch() if self.done < self.config.steps else None
        saved = self.done
        while self.done < self.config.steps:
            assert upcoming is not None
            batch, ids, position = upcoming
            self.state, metrics = self.compiled(self.state, batch, self.key)
            self.done, self.position = self.done + 1, position
            self.in_flight.append((self.done, metrics, ids))
            # Fetched while the device works on the step; the position saved is that of the batch just used.
            upcoming = self._fetch() if self.done < self.config.steps else None
            stopping = stop.agreed(self.done % self.config.log_every == 0)
            last = self.done == self.config.steps
            evaluates = self.evaluate is not None and (last or _due(self.done, self.config.evaluate_every))
            saves = stopping or last or _due(self.done, self.config.save_every)
            self._observe(0 if saves or evaluates else _IN_FLIGHT)
            if len(self.skips) >= self.config.max_skips:
                self._roll_back()
                saved = self.done
                upcoming = self._fetch() if upcoming is None else upcoming
                continue
            best = self._evaluate() if evaluates else None
            if saves or best is not None:
                self.checkpoints.save(self.done, self.state, self.position, best=best)
                saved = self.done
            if stopping and not last:
                self.checkpoints.wait()
                raise Preempted(
                    f"{self.run.path}: stopped; saved after step {saved} of {self.config.steps}. The same command goes on from there"
                )
        if self.config.steps == 0:
            self.checkpoints.save(0, self.state, self.position)
        self.checkpoints.wait()
        return self.state

    def _fetch(self) -> tuple[Any, np.ndarray, Any]:
        batch = next(self.loader)
        return self.layout.put(batch), np.asarray(batch["id"]), self.loader.get_state()

    def _observe(self, allowed: int) -> None:
        """Read the numbers of finished steps until `allowed` are in flight; log when a line is full (or none is in flight any more)."""
        while len(self.in_flight) > allowed:
            step, metrics, ids = self.in_flight.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self.window.append(values)
            self.progress.advance(step, values)
            self.skips = [*self.skips, {"step": step, "ids": ids, **values}] if values["skipped"] else []
            if len(self.skips) >= self.config.max_skips:
                return
            if step % self.config.log_every == 0 or (allowed == 0 and step == self.done):
                self._log(step)

    def _log(self, step: int) -> None:
        now = time.monotonic()
        used = [values for values in self.window if not values["skipped"]]
        means = {name: float(np.mean([values[name] for values in used])) if used else None for name in self.window[0] if name != "skipped"}
        line: dict[str, Any] = {"step": step, **means, "skipped": len(self.window) - len(used)}
        if self.schedule is not None:
            line["lr"] = float(self.schedule(step - 1))
        self.spent, self.since, seconds = self.spent + now - self.since, now, now - self.since
        line |= {"seconds": round(self.spent, 3), "steps_per_second": round(len(self.window) / max(seconds, 1e-9), 3)}
        if self.first_process:
            self.run.log.append(line)
        self.window = []

    def _evaluate(self) -> dict[str, Any] | None:
        """Evaluate and log; returns the mark of a best checkpoint if this one is."""
        assert self.evaluate is not None
        numbers = {name: float(value) for name, value in self.evaluate(self.state).items()}
        if self.first_process:
            self.run.log.append({"step": self.done, "evaluation": numbers})
        self.progress.say(f"step {self.done}: " + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
        name = self.config.best
        if name is None:
            return None
        if name not in numbers:
            raise ConfigError(f"best={name!r}, but the evaluation gives {', '.join(numbers)}")
        self.checkpoints.wait()
        before = (self.checkpoints.best or {}).get("value")
        sign = 1.0 if self.config.better == "more" else -1.0
        better = np.isfinite(numbers[name]) and (before is None or sign * numbers[name] > sign * before)
        # Process 0 alone knows that the mark of the best is on disk already; all must agree, for all take part in the save.
        agreed = bool(multihost_utils.broadcast_one_to_all(np.array(better)))
        return {"name": name, "value": numbers[name]} if agreed else None

    def _roll_back(self) -> None:
        """After too many non-finite steps: parameters of the last checkpoint, data as it comes (the same would fail again); once."""
        steps = [skip["step"] for skip in self.skips]
        restored = None if self.rolled_back else self.checkpoints.restore(self.state)
        if restored is None:
            records = [{**skip, "ids": np.ravel(multihost_utils.process_allgather(skip["ids"])).tolist()} for skip in self.skips]
            path = self.run.path / "nonfinite.json"
            if self.first_process:
                write_json(
                    path,
                    [{name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in each.items()} for each in records],
                )
            why = "again after going back to a checkpoint" if self.rolled_back else "and there is no checkpoint to go back to"
            raise TrainingError(
                f"{self.run.path}: loss or gradient not finite in {len(steps)} steps in a row (up to step {steps[-1]}), {why}; the samples "
                f"are listed in {path.name}. Lower the learning rate, raise warm-up, or look at those samples"
            )
        self.rolled_back = True
        self.progress.say(
            f"loss or gradient not finite in steps {steps[0]} to {steps[-1]}: going back to the parameters of step {restored.step}"
        )
        position = self.position
        self._take(restored)
        self.position = position


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Stop:
    """Whether a signal asked this run to stop."""

    def __init__(self):
        self.asked = False

    def agreed(self, may_talk: bool) -> bool:
        """Across processes all must stop after the same step, so they compare notes at the steps where `may_talk`."""
        if jax.process_count() == 1:
            return self.asked
        return may_talk and bool(np.any(multihost_utils.process_allgather(np.array(self.asked))))


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Turn the first SIGTERM or SIGINT into a request to stop; a second one does what it always did. Old handlers come back at the end."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        stop.asked = True
        restore()

    for number in old:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def _first_line(layout: Layout, state: TrainState) -> str:
    """Devices, memory and parameters, on one line."""
    device = next(device for device in layout.devices if device.process_index == jax.process_index())
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return (
        f"{len(layout.devices)} x {device.device_kind} ({layout.kind}, fsdp {layout.fsdp}, {jax.process_count()} process"
        f"{'es' if jax.process_count() > 1 else ''}), {memory / 2**30:.1f} GiB {'each' if 'bytes_limit' in stats else 'of host memory'}, "
        f"{count_parameters(state.params) / 1e6:.2f} M parameters, state {held / 2**30:.2f} GiB"
    )
