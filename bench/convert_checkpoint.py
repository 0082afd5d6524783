"""Seconds and peak memory of `jaxseg convert` for a UNETR of 100 M parameters. Run: python -m bench.convert_checkpoint [--form legacy]

The file is put together without PyTorch, in MONAI's key layout. The command runs as a process of its own, whose peak is the kernel's count,
mapped pages of the file included.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.make_unetr import Case, make_state
from tests.torch_writer import state, write_legacy, write_zip

CASE = Case("conv", channels=1, classes=14, size=(96, 96, 96), width=768, hidden=3072, heads=12, feature=32)


def write(path: Path, form: str) -> None:
    """The checkpoint to convert."""
    (write_zip if form == "zip" else write_legacy)(path, *state(make_state(CASE)))


def main() -> None:
    """Write the file, convert it, print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", choices=("zip", "legacy"), default="zip")
    form = parser.parse_args().form
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "unetr.pt", Path(folder) / "model"
        # In another process: Linux counts the memory that this one holds as the peak of those that it starts.
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(path, form))
        writer.start()
        writer.join()
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "jaxseg.cli", "convert", str(path), "--out", str(out)], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        row = {
            "form": form,
            "parameters": json.loads((out / "model.json").read_text())["weights"]["parameters"],
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_gib": round(used.ru_maxrss / 2**20, 2),
        }
        print(json.dumps(row))
        sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
