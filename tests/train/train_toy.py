"""Trains the toy problem in a process of its own, for the tests of signals and of several processes.

train_toy.py FOLDER LAYOUT [slowly | sgd PORT PROCESS LATE]
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
import toy

from jaxseg.errors import Preempted
from jaxseg.train import Layout, LoopConfig, OptimConfig, QuietProgress, RunFolder, array_names, fit, make_optimizer, make_step


class Slow(toy.ToyLoader):
    """Says which batch it gives, and takes its time."""

    def __next__(self):
        print(f"batch {self.next}", flush=True)
        time.sleep(0.2)
        return super().__next__()


def train(folder: Path, layout: Layout, step, make_state, loader, config: LoopConfig) -> None:
    """Train and leave the parameters in `final.npz`."""
    with RunFolder.open(folder, {"name": "toy"}) as run:
        state = layout.host(fit(step, layout.init(make_state), loader, layout, run, config, progress=QuietProgress()))
        if jax.process_index() == 0:
            np.savez(folder / "final.npz", **dict(zip(array_names(state.params), jax.tree.leaves(state.params))))


def one_process(folder: Path, kind: str, slowly: bool) -> None:
    """The run that `test_loop.py` makes in its own process."""
    optimizer = make_optimizer(OptimConfig(lr=1e-2, steps=20, warmup=3), toy.params())
    step = make_step(toy.loss, optimizer, ema_decay=0.9)
    loader = Slow() if slowly else toy.ToyLoader()
    train(folder, Layout(kind), step, lambda: toy.make_state(optimizer, ema=True), loader, LoopConfig(20, log_every=4, save_every=6))


def two_processes(folder: Path, kind: str, port: str, process: int, late: float) -> None:
    """Three steps, then six from the checkpoint of the third, with plain SGD; `late` seconds pass before the first numbers are shared."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    optimizer = optax.sgd(0.01)
    layout = Layout(kind) if kind == "pmap" else Layout(kind, fsdp=4, shard_min_bytes=256)
    time.sleep(late)
    for steps in (3, 6):
        step, loader = make_step(toy.loss, optimizer, weights={"size": 0.01}), toy.ToyLoader((process, 2))
        train(folder, layout, step, lambda: toy.make_state(optimizer), loader, LoopConfig(steps, log_every=1))
    jax.distributed.shutdown()


if __name__ == "__main__":
    place, layout_kind, *rest = sys.argv[1:]
    if rest[:1] == ["sgd"]:
        two_processes(Path(place), layout_kind, rest[1], int(rest[2]), float(rest[3]))
    else:
        try:
            one_process(Path(place), layout_kind, rest == ["slowly"])
        except Preempted as stopped:
            sys.exit(stopped.exit_code)
