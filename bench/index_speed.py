"""Scans a second of `index_archive` beside a plain nibabel loop that asks the same of each scan. Run: python -m bench.index_speed [FOLDER | --scans 12]

Both see the same files in the same run, in alternation, from the disk cache. The plain loop reads in one process; it hashes the file and the voxels
and computes range, moments, percentiles and finiteness as a script would (float64, numpy). What it does not do and the index does: the gzip trailer,
header checks, fingerprint, a table on disk. Starting the index's processes counts, so that a few scans say little about an archive. On a busy machine
compare CPU seconds, not seconds.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# nibabel and the phantom are imported where they are used: the index's processes import this module again, as they would a script.


def plain(paths: list[Path]) -> int:
    """The loop that anybody would write. Returns how many scans it took for sound."""
    import nibabel as nib
    import numpy as np

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


def write_heads(folder: Path, count: int) -> None:
    """Phantom heads of 1 mm as .nii.gz, int16."""
    import nibabel as nib
    import numpy as np

    from jaxseg.data.phantom.case import make_case

    for number in range(count):
        phantom = make_case((0, 0, number), spacing=(1.0, 1.0, 1.2), channels=("T1",), scanner="alpha")
        image = nib.Nifti1Image(np.clip(np.round(phantom.images["T1"]), 0, 32767).astype(np.int16), phantom.affine)
        nib.save(image, folder / f"head_{number:03d}.nii.gz")


def write_cubes(folder: Path, count: int, side: int, kind: str) -> None:
    """Cubes of `side` voxels as .nii.gz: a noisy ball in noisy air as int16 ("image"), or two nested balls as uint8 ("label")."""
    import nibabel as nib
    import numpy as np

    axes = np.ogrid[tuple(slice(-1, 1, side * 1j) for _ in range(3))]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    for number in range(count):
        rng = np.random.default_rng(number)
        if kind == "label":
            array = (radius < 0.6).astype(np.uint8) + (radius < 0.3 + 0.3 * rng.random())
        else:
            array = np.where(
                radius < 0.8, rng.normal(400, 40, radius.shape) + 100 * np.sin(3 * axes[0] + number), rng.normal(10, 3, radius.shape)
            )
        name = f"scan_{number:05d}{'_seg' if kind == 'label' else ''}.nii.gz"
        nib.save(nib.Nifti1Image(array.astype(np.uint8 if kind == "label" else np.int16), np.diag([1, 1, 1.2, 1])), folder / name)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds (of this process and those it started and has waited for)."""

    def used() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    start, before = time.monotonic(), used()
    run()
    return time.monotonic() - start, used() - before


def main() -> None:
    """Time both, print one line of JSON: medians, and the ratio of each round."""
    from jaxseg.data.archive import index_archive

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, help="an archive of .nii.gz; scans are made without it")
    parser.add_argument("--kind", choices=("head", "image", "label"), default="head")
    parser.add_argument("--side", type=int, default=32, help="voxels along an axis of an image or label that is made")
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=4, help="how often each scan is linked, so that starting processes does not decide")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made, root = Path(temporary) / "made", Path(temporary) / "archive"
        made.mkdir()
        if known.folder is None and known.kind == "head":
            write_heads(made, known.scans)
        elif known.folder is None:
            write_cubes(made, known.scans, known.side, known.kind)
        sources = sorted((known.folder or made).resolve().rglob("*.nii.gz"))
        for turn in range(known.repeat):
            for number, source in enumerate(sources):
                (root / f"p{turn}_{number}").mkdir(parents=True)
                os.symlink(source, root / f"p{turn}_{number}" / source.name)
        paths = sorted(root.rglob("*.nii.gz"))
        plain(paths[: len(sources)])
        slow, fast = [], []
        for turn in range(known.rounds):
            slow.append(timed(lambda: plain(paths)))
            fast.append(timed(lambda turn=turn: index_archive(root, Path(temporary) / f"index{turn}", processes=known.processes)))
    row: dict[str, object] = {"scans": len(paths), "processes": known.processes, "rounds": known.rounds}
    for name, runs in (("plain", slow), ("index", fast)):
        row |= {f"{name}_{what}": round(statistics.median(run[place] for run in runs), 2) for place, what in enumerate(("s", "cpu_s"))}
    ratios = [one[0] / other[0] for one, other in zip(slow, fast, strict=True)]
    row |= {"ratio": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}
    # What two idle cores would give, where the processes share the work evenly.
    cpu = [known.processes * one[1] / other[1] for one, other in zip(slow, fast, strict=True)]
    print(json.dumps(row | {"cpu_ratio_times_processes": round(statistics.median(cpu), 2)}))


if __name__ == "__main__":
    main()
