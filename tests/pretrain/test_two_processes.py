"""Two processes that train together leave the same encoder as one: `jaxseg pretrain` as a user starts it on two machines."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from jaxseg.prepare import prepare_folder
from jaxseg.zoo import load_model
from tests.tiny_store import write_scans

CONFIG = """
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.config import PretrainConfig
from pretrain.pictures import PictureConfig

config = PretrainConfig(
    model=MAEConfig(encoder=ViTConfig(crop=(8, 8, 8), token=(4, 4, 4), width=24, depth=2, heads=2), decoder_width=12, decoder_depth=1,
                    decoder_heads=1),
    batch=4,
    optim=OptimConfig(lr=1e-3, warmup=1),
    loop=LoopConfig(steps=3, save_every=0),
    pictures=PictureConfig(keep=1),
)
"""


def start(folder, out, layout, processes):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pretrain", str(folder / "config.py"), "--store", str(folder / "store"), "--out", str(out)]
    running, errors = [], []
    try:
        for place in range(processes):
            environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
            if processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(place),
                }
            errors.append(out.with_name(f"{out.name}_{place}.txt"))
            with errors[-1].open("w") as stream:
                running.append(subprocess.Popen([*command, "--layout", layout], env=environment, stderr=stream))
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert not any(codes), "\n".join(f"process {place}: {error.read_text()[-3000:]}" for place, error in enumerate(errors))
    return jax.tree.leaves(nnx.state(load_model(out / "model").network))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pmap", "mesh"])
def test_two_processes_train_the_same_numbers_as_one(tmp_path, layout):
    prepare_folder(write_scans(tmp_path / "scans", labelled=False), tmp_path / "store")
    (tmp_path / "config.py").write_text(CONFIG)
    one = start(tmp_path, tmp_path / "one", layout, 1)
    two = start(tmp_path, tmp_path / "two", layout, 2)
    # AdamW turns rounding of 1e-8 in a gradient near zero into steps of the learning rate's size; three steps of 1e-3 allow little.
    for first, second in zip(one, two):
        np.testing.assert_allclose(first, second, atol=2e-5)
