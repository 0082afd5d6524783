"""A contender as its parent sees it: a process with its threads and its environment, asked one thing at a time. Used by `bench.frame`."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.case import Setting, Side

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A contender ended with an error; the message is its traceback."""


class Process:
    """One contender of a case; a context manager that ends it. After `limit` seconds it is ended whatever it does.

    Attributes:
        told: what it said when it had been built: `compile_s`, `flops`, `form`, or `absent` with the reason.
    """

    def __init__(self, workload: str, variant: str, side: Side, folder: Path, setting: Setting, limit: float = float("inf")):
        command = [sys.executable, "-m", "bench.contender", workload, variant, side, str(folder)]
        command += ["--device", setting.device, "--threads", str(setting.threads), "--seconds", str(setting.seconds)]
        command += ["--quick"] * setting.quick
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when this is left)
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(setting),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._ended = False
        # A Timer takes no infinite time.
        self._watch = threading.Timer(min(max(limit, 0.0), threading.TIMEOUT_MAX), self._end)
        self._watch.daemon = True
        self._watch.start()
        try:
            self.told = self._read()
        except Failed:
            self.__exit__()
            raise

    def _end(self) -> None:
        self._ended = True
        self._process.kill()

    def ask(self, word: str) -> dict[str, Any]:
        """Ask for one thing (see `bench.contender`) and wait for the answer. Raises Failed."""
        assert self._process.stdin is not None
        # A process that was ended at its limit reads nothing more; what it says last is then nothing, which is told below.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            if self._ended:
                raise Failed("no time was left: the contender was ended before it answered; give --budget-minutes more, or fewer rows")
            raise Failed(f"a contender ended with code {self._process.returncode} and no word:\n{self._errors.read()[-4000:]}")
        found = json.loads(line)
        if "error" in found:
            raise Failed(found["error"])
        return found

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, kindly first."""
        self._watch.cancel()
        try:
            self._process.communicate("stop\n", timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()


def environment(setting: Setting) -> dict[str, str]:
    """Of a contender: nothing compiled before counts, one device, so many threads."""
    threads = str(setting.threads)
    kept = {key: value for key, value in os.environ.items() if key not in ("JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES", "NPROC")}
    # Without preallocation both contenders fit on one card.
    fixed = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    libraries = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return kept | fixed | libraries | ({"JAX_PLATFORMS": "cpu"} if setting.device == "cpu" else {})
