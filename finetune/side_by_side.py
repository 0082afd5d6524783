"""Several fine-tuning runs side by side in one program: their states stacked, the step under `vmap`. Called by the few-label study.

It is for a GPU that one small run leaves idle. Each run ends in its own folder with what it would have had alone (config, log, last checkpoint),
so that `finetune` finds it finished; its numbers are those of a run alone up to rounding. It is not for CPUs, where the convolutions of several
kernels at once become grouped ones, which XLA computes slowly there. What it gains on a GPU has not been timed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from finetune.classes import Classes
from finetune.config import FinetuneConfig, stored
from finetune.train import adapt, crop_loader, crop_of, first_params, graph_of, run_config, sources_of, training_step
from jaxseg.data.catalog import open_store
from jaxseg.errors import ConfigError
from jaxseg.train import Checkpoints, Layout, RunFolder, TrainState, fit, learning_rate, make_optimizer, read_log
from jaxseg.train.log import TrainingProgressProtocol
from jaxseg.train.loop import Loader
from jaxseg.train.step import Step

_OWN = ("out", "init", "take", "seed", "split", "labels")
"""Fields in which runs side by side may differ: they say where a run starts, what it reads and where it ends, not what is computed."""
KEY = "run_key"  # in a batch: data of the random key of each sample's run
SIDE_BY_SIDE = "side_by_side"  # in the lines of a run's log: how many runs there were


class Run(NamedTuple):
    """A fine-tuning and its training cases."""

    settings: FinetuneConfig
    names: tuple[str, ...]


def program_of(config: FinetuneConfig) -> str | None:
    """What a run computes: those of equal text can train side by side. None for a run that trains alone, because it watches cases, has
    unlabelled crops, or is laid over devices as a mesh."""
    if config.semi.method or config.monitor or config.keep == "best" or config.layout != "pmap":
        return None
    shared = {name: value for name, value in stored(config).items() if name not in _OWN}
    shared["loop"] = {name: value for name, value in shared["loop"].items() if name != "seed"}
    return json.dumps(shared, sort_keys=True)


def finetune_side_by_side(runs: Sequence[Run], folder: str | Path, *, progress: TrainingProgressProtocol | None = None) -> None:
    """Train all of them, or go on where the same command was interrupted, and leave each in its own run folder.

    Args:
        runs: of one program (`program_of`), in folders without a checkpoint.
        folder: of what they share until they are trained; removed then.
        progress: how to show progress; a bar on standard error by default.

    Raises:
        ConfigError: they are not of one program, a run's folder holds another run, or there are several processes.
        TrainingError: one of them had too many steps in a row that were not finite; none is left in its folder.
        InputError, CheckpointError, StorageError, Preempted: as `finetune`.
    """
    first, programs = runs[0].settings, {program_of(run.settings) for run in runs}
    if len(programs) != 1 or None in programs:
        raise ConfigError("runs side by side may differ in seed, training cases and first weights, and in nothing else")
    if jax.process_count() > 1:
        raise ConfigError("runs side by side need one process; leave `stack` at 1 where there are several")
    store = open_store(first.store)
    model, classes = adapt(first.model, store), Classes.of(store.recipe)
    optim = first.optim.over(first.loop.steps)
    sources = [sources_of(run.settings, store, run.names) for run in runs]
    configs = [run_config(run.settings, used) for run, used in zip(runs, sources)]
    for run, config in zip(runs, configs):
        with RunFolder.open(run.settings.out, config):
            pass  # What would refuse a finished run there refuses it now.
    with RunFolder.open(folder, {"runs": configs}) as together:
        params = [first_params(run.settings, model, store, classes) for run in runs]
        optimizer, layout = make_optimizer(optim, params[0]), Layout(first.layout)
        states = [TrainState.create(each, optimizer, ema=first.ema is not None) for each in params]
        state = layout.place(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
        step = stacked_step(training_step(first, graph_of(model), classes, optimizer), len(runs))
        loaders = [crop_loader(run.settings, used, (), crop_of(model)) for run, used in zip(runs, sources)]
        loader = StackedLoader(loaders, [run.settings.loop.seeded(run.settings.seed).seed for run in runs], jax.local_device_count())
        state = layout.host(fit(step, state, loader, layout, together, first.loop, schedule=learning_rate(optim), progress=progress))
        position, lines = loader.get_state(), read_log(together.log.path)
        for place, (run, config) in enumerate(zip(runs, configs)):
            own = layout.place(jax.tree.map(itemgetter(place), state))
            _leave(run, config, layout, own, position[place], [_line_of(line, place, len(runs)) for line in lines])
    shutil.rmtree(folder)


def stacked_step(step: Step, runs: int) -> Step:
    """`step` for the states of so many runs, stacked along a leading axis, each with its own random key.

    The batch is a `StackedLoader`'s: on each device the first run's samples, then the second's, and so on, and with each the key of its run
    (not a constant of the program, which then serves all stacks of so many). Metrics are the mean over runs, `skipped` that of the run
    that skipped, and each run's own as "NAME/PLACE".
    """

    def together(state: TrainState, batch: Any, key: jax.Array, axis: str | None = None) -> tuple[TrainState, dict[str, jax.Array]]:
        batches = {name: array.reshape(runs, -1, *array.shape[1:]) for name, array in batch.items()}
        keys = jax.random.wrap_key_data(batches.pop(KEY)[:, 0])
        after, metrics = jax.vmap(lambda *own: step(*own, axis=axis))(state, batches, keys)
        own = {f"{name}/{place}": values[place] for name, values in metrics.items() for place in range(runs)}
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        return after, {**own, **means, "skipped": jnp.max(metrics["skipped"])}

    return together


class StackedLoader:
    """The batches of several loaders as one, in the order in which each of `devices` gets its part of every run's batch; checkpointable as one.

    Beside each sample lies the random key of its run, by `seeds`.
    """

    def __init__(self, loaders: Sequence[Loader], seeds: Sequence[int], devices: int):
        self.loaders, self.devices = loaders, devices
        self._keys = [np.asarray(jax.random.key_data(jax.random.key(seed))) for seed in seeds]

    def __next__(self) -> Mapping[str, np.ndarray]:
        batches = [
            {**batch, KEY: np.tile(key, (len(batch["id"]), 1))} for batch, key in zip(map(next, self.loaders), self._keys, strict=True)
        ]
        return {name: self._in_order([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}

    def _in_order(self, arrays: list[np.ndarray]) -> np.ndarray:
        if len(arrays[0]) % self.devices:
            raise ConfigError(
                f"a batch of {len(arrays[0])} samples cannot be split over {self.devices} devices; choose a multiple of {self.devices}"
            )
        parts = np.stack([array.reshape(self.devices, -1, *array.shape[1:]) for array in arrays], 1)
        return parts.reshape(-1, *arrays[0].shape[1:])

    def get_state(self) -> list[Any]:
        """The positions of all."""
        return [loader.get_state() for loader in self.loaders]

    def set_state(self, state: list[Any]) -> None:
        """Go to these positions."""
        for loader, each in zip(self.loaders, state, strict=True):
            loader.set_state(each)


def _line_of(line: dict[str, Any], place: int, runs: int) -> dict[str, Any]:
    """A run's own part of a line of the common log. Of the seconds it counts its share."""
    own = {name.rpartition("/")[0]: value for name, value in line.items() if name.endswith(f"/{place}")}
    shared = {name: line[name] for name in ("step", "lr")}
    seconds, rate = round(line["seconds"] / runs, 3), round(line["steps_per_second"] * runs, 3)
    return {**shared, **own, "skipped": line["skipped"], "seconds": seconds, "steps_per_second": rate, SIDE_BY_SIDE: runs}


def _leave(run: Run, config: dict[str, Any], layout: Layout, state: TrainState, position: Any, lines: Sequence[dict[str, Any]]) -> None:
    """A finished run in its folder; the checkpoint, which makes it one, comes last."""
    with RunFolder.open(run.settings.out, config) as own:
        own.log.truncate(-1)
        for line in lines:
            own.log.append(line)
        checkpoints = Checkpoints(own.checkpoints, layout)
        try:
            checkpoints.save(run.settings.loop.steps, state, position)
        finally:
            checkpoints.close()
