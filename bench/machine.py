"""What a table of times must say of where it was made: machine, versions, commit, date; and the matmul peak of the same run."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.case import Setting
from bench.process import ROOT, Failed, environment

PACKAGES = ("jax", "flax", "torch", "monai", "dynamic-network-architectures", "numpy")
_PEAK = """
import sys, time, jax, jax.numpy as jnp
n, dtype = int(sys.argv[1]), sys.argv[2]
a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
f = jax.jit(lambda a: a @ a)
f(a).block_until_ready()
best = float("inf")
for _ in range(5):
    start = time.perf_counter()
    for _ in range(int(sys.argv[3])):
        b = f(a)
    b.block_until_ready()
    best = min(best, (time.perf_counter() - start) / int(sys.argv[3]))
print(2 * n**3 / best / 1e12, jax.devices()[0].device_kind)
"""


def describe(setting: Setting) -> dict[str, Any]:
    """Facts for the head of the table; `device` and `peak_tflops` come from a product of two square matrices in the setting's precision,
    in a process of its own. Raises process.Failed if that process fails, as where no GPU is found."""
    size, repeats = (8192, 20) if setting.device == "gpu" else (512 if setting.quick else 2048, 2)
    command = [sys.executable, "-c", _PEAK, str(size), setting.dtype, str(repeats)]
    wanted = {"JAX_PLATFORMS": "cuda"} if setting.device == "gpu" else {}
    found = subprocess.run(command, env=environment(setting) | wanted, capture_output=True, text=True)
    if found.returncode:
        raise Failed(f"the matmul peak could not be measured:\n{found.stderr[-2000:]}")
    peak, device = found.stdout.split(maxsplit=1)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {setting.threads} threads used",
        "device": device.strip(),
        "precision": setting.dtype,
        "peak_tflops": float(peak),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _commit() -> str:
    """The commit, and whether files differ from it; "unknown" outside a checkout."""
    try:
        name = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if changed else name


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
