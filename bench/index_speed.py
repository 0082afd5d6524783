"""Scans a second of `index_archive` beside a plain nibabel loop that asks the same of each scan. Run: python -m bench.index_speed [FOLDER | --scans 12]

Both see the same files in the same run, one after the other, from the disk cache. The plain loop reads in one process; it hashes the file and the voxels
and computes range, moments, percentiles and finiteness as a script would (float64, numpy). What it does not do and the index does: the gzip trailer,
header checks, fingerprint. On a busy machine compare CPU seconds, not seconds.
"""

import argparse
import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from jaxseg.data.archive import index_archive
from jaxseg.data.phantom.case import make_case


def plain(paths: list[Path]) -> int:
    """The loop that anybody would write. Returns how many scans it took for sound."""
    sound = 0
    for path in paths:
        hashlib.sha256(path.read_bytes()).hexdigest()
        image = nib.load(path)
        values = image.get_fdata()
        hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
        finite = bool(np.isfinite(values).all())
        low, high = values.min(), values.max()
        facts = [
            low,
            high,
            values.mean(),
            values.std(),
            *np.percentile(values, (1, 25, 50, 75, 99)),
            *nib.affines.voxel_sizes(image.affine),
        ]
        sound += finite and low < high and len(facts) == 12
    return sound


def write_scans(folder: Path, count: int) -> None:
    """Phantom heads of 1 mm as .nii.gz, int16."""
    for number in range(count):
        phantom = make_case((0, 0, number), spacing=(1.0, 1.0, 1.2), channels=("T1",), scanner="alpha")
        image = nib.Nifti1Image(np.clip(np.round(phantom.images["T1"]), 0, 32767).astype(np.int16), phantom.affine)
        nib.save(image, folder / f"head_{number:03d}.nii.gz")


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Seconds and CPU seconds (of this process and those it started and has waited for)."""

    def used() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    start, before = time.monotonic(), used()
    run()
    return {"seconds": round(time.monotonic() - start, 2), "cpu_seconds": round(used() - before, 2)}


def main() -> None:
    """Time both, print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, help="an archive of .nii.gz; phantoms are made without it")
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=4, help="how often each scan is linked, so that starting processes does not decide")
    parser.add_argument("--processes", type=int, default=2)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made, root = Path(temporary) / "made", Path(temporary) / "archive"
        made.mkdir()
        if known.folder is None:
            write_scans(made, known.scans)
        sources = sorted((known.folder or made).resolve().rglob("*.nii.gz"))
        for turn in range(known.repeat):
            for number, source in enumerate(sources):
                (root / f"p{turn}_{number}").mkdir(parents=True)
                os.symlink(source, root / f"p{turn}_{number}" / source.name)
        paths = sorted(root.rglob("*.nii.gz"))
        plain(paths[: len(sources)])
        slow = timed(lambda: plain(paths))
        fast = timed(lambda: index_archive(root, Path(temporary) / "index", processes=known.processes))
    row = {"scans": len(paths), "bytes": sum(source.stat().st_size for source in sources) * known.repeat if known.folder else None}
    row |= {"plain": slow, "index": fast, "processes": known.processes}
    row |= {"ratio": round(slow["seconds"] / fast["seconds"], 2)}
    row |= {"cpu_ratio_times_processes": round(known.processes * slow["cpu_seconds"] / fast["cpu_seconds"], 2)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
