"""How the index's memory grows with the archive. Run: python -m bench.index_memory [--scans 1000 10000] [--side 16]

Every archive is written with scans that all differ (.nii.gz, int16, a folder each), and a process of its own indexes it with two worker processes.
Peaks are resident memory (VmHWM) in MiB, the libraries included: of the parent, and of the larger worker.
"""

import argparse
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any


def write_archive(root: Path, count: int, side: int) -> None:
    """Noise that differs from scan to scan, written by hand: a library takes ten times as long."""
    import nibabel as nib
    import numpy as np

    head = nib.Nifti1Image(np.zeros((side, side, side), np.int16), np.diag([1.0, 1.0, 1.2, 1.0])).header
    head["vox_offset"] = 352
    start = head.binaryblock + b"\0\0\0\0"
    noise = np.random.default_rng(0).normal(300, 60, side**3 + count).astype(np.int16)
    for number in range(count):
        folder = root / f"p{number:05d}"
        folder.mkdir(parents=True)
        data = start + noise[number : number + side**3].tobytes()
        packed = zlib.compressobj(1, zlib.DEFLATED, 31)
        (folder / "T1.nii.gz").write_bytes(packed.compress(data) + packed.flush())
    assert struct.unpack("<i", start[:4])[0] == 348


def peak_of(process: int) -> float:
    """MiB that a process has held at most; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def indexed(root: Path, out: Path, *, resume: bool) -> dict[str, Any]:
    """Peaks of this process and of its larger worker while it indexes."""
    from jaxseg.data.archive import index_archive

    workers: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    workers[child.pid] = max(workers.get(child.pid, 0.0), peak_of(child.pid))

    before = peak_of(os.getpid())
    watcher, begin = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    index = index_archive(root, out, processes=2, resume=resume)
    done.set()
    watcher.join()
    seconds = round(time.monotonic() - begin, 1)
    peaks = {"before_mib": before, "parent_mib": peak_of(os.getpid()), "worker_mib": max(workers.values(), default=0.0)}
    return {"scans": index.scans, "ok": index.ok, "seconds": seconds} | {name: round(value) for name, value in peaks.items()}


def main() -> None:
    """One line of JSON an archive, and one for doing it again with `resume`, which holds a key for every row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--side", type=int, default=16, help="voxels along each axis")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.inside is not None:
        print(json.dumps(indexed(known.inside / "archive", known.inside / "index", resume=known.resume)))
        return
    for count in known.scans:
        with tempfile.TemporaryDirectory() as name:
            write_archive(Path(name) / "archive", count, known.side)
            for words in ([], ["--resume"]):
                command = [sys.executable, "-m", "bench.index_memory", "--inside", name, *words]
                told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
                print(json.dumps({"resumed": bool(words)} | json.loads(told)), flush=True)


if __name__ == "__main__":
    main()
