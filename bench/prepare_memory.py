"""The most memory that preparing one scan takes, over that scan. Run: python -m bench.prepare_memory [--kind NAME]

A scan counts as its voxels in float32, which is how it is read, or as stored or as prepared where that is more. A process of its own prepares each
kind, single-channel .nii.gz: `staged` is the peak of preparing the case and writing its staging file (what a worker of `jaxseg prepare` does), `store` that of
the whole command with one process, the dataset and its cache included. From both is subtracted what the process held before, when everything was
imported and a tiny scan had been through it once.
"""

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.memory import forget_peak, peak_mib

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Kind:
    """A scan of `shape` voxels of `spacing` mm, stored as `dtype`, and how it is prepared: at `new` mm (None: as it is)."""

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str = "int16"
    rule: str = "zscore"
    new: tuple[float, float, float] | None = None
    resampling: str = "linear"
    labelled: bool = False
    noisy_air: bool = True
    slope: float = 1.0

    @property
    def scan_bytes(self) -> int:
        """Of the voxels in float32, or as stored where that is more."""
        return int(np.prod(self.shape)) * max(4, np.dtype(self.dtype).itemsize)


_CT = (0.8, 0.8, 1.5)
KINDS = (
    Kind("mr_256", (256, 256, 256)),
    Kind("mr_256_stripped", (256, 256, 256), noisy_air=False),
    Kind("mr_256_uint8", (256, 256, 256), dtype="uint8"),
    Kind("mr_256_float32", (256, 256, 256), dtype="float32"),
    Kind("mr_256_float64", (256, 256, 256), dtype="float64"),
    Kind("mr_256_scaled", (256, 256, 256), slope=0.25),
    Kind("mr_256_float64_scaled", (256, 256, 256), dtype="float64", slope=0.25),
    Kind("mr_160", (160, 240, 240), (1.0, 0.94, 0.94)),
    Kind("mr_256_labelled", (256, 256, 256), labelled=True),
    Kind("mr_256_percentile", (256, 256, 256), rule="percentile"),
    Kind("mr_256_finer", (256, 256, 256), new=(0.8, 0.8, 0.8)),
    Kind("mr_256_coarser", (256, 256, 256), new=(1.5, 1.5, 1.5)),
    Kind("mr_256_nnunet", (256, 256, 256), new=(1.1, 1.1, 1.1), resampling="nnunet"),
    Kind("mr_256_nnunet_as_it_is", (256, 256, 256), resampling="nnunet"),
    Kind("mr_thick", (512, 512, 40), (0.45, 0.45, 4.0)),
    Kind("mr_thick_nnunet", (512, 512, 40), (0.45, 0.45, 4.0), new=(0.6, 0.6, 4.0), resampling="nnunet"),
    Kind("ct_512x200", (512, 512, 200), _CT, rule="ct"),
    Kind("ct_512x200_labelled", (512, 512, 200), _CT, rule="ct", labelled=True),
    Kind("ct_512x200_finer", (512, 512, 200), _CT, rule="ct", new=(0.8, 0.8, 1.0)),
    Kind("ct_512x200_labelled_finer", (512, 512, 200), _CT, rule="ct", labelled=True, new=(0.8, 0.8, 1.0)),
    Kind("ct_512x200_coarser", (512, 512, 200), _CT, rule="ct", new=(1.5, 1.5, 1.5)),
    Kind("ct_512x200_nnunet", (512, 512, 200), _CT, rule="ct", new=(1.0, 1.0, 1.5), resampling="nnunet"),
    Kind("ct_512x200_labelled_nnunet", (512, 512, 200), _CT, rule="ct", labelled=True, new=(0.9, 0.9, 1.2), resampling="nnunet"),
)


def write_case(kind: Kind, folder: Path) -> None:
    """`images/a.nii.gz` (and `labels/a.nii.gz`): an ellipsoid of noise that nearly fills the field of view, in air with noise or without."""
    from jaxseg.data.io import nifti
    from jaxseg.data.volume import Grid

    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in kind.shape)]
    radius = np.sqrt(sum(np.float32(axis / 0.93) ** 2 for axis in axes)).astype(np.float32)
    rng = np.random.default_rng(0)
    low, high = (-1000, 40) if kind.rule == "ct" else (0, 120)
    image = rng.standard_normal(kind.shape, np.float32) * np.where(radius < 1, 12, 3 if kind.noisy_air else 0).astype(np.float32)
    image += np.where(radius < 1, high, low).astype(np.float32)
    if kind.dtype.startswith(("int", "uint")):
        info = np.iinfo(kind.dtype)
        image = np.clip(np.round(np.abs(image) if kind.rule != "ct" else image), info.min, info.max)
    grid = Grid(kind.shape, np.diag([*kind.spacing, 1.0]))
    arrays = {"images": image.astype(kind.dtype)} | ({"labels": (radius < 0.4).astype(np.uint8)} if kind.labelled else {})
    for name, array in arrays.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "a.nii.gz").write_bytes(nifti.encode(array, grid, slope=kind.slope, zipped=True))


def measured(kind: Kind, folder: Path, *, whole: bool) -> dict[str, float]:
    """Peak and the two sizes in MiB, in this process: of staging the case alone, or of the whole store."""
    from jaxseg.data.cases import find_cases
    from jaxseg.data.preprocess import Recipe
    from jaxseg.data.staging import Job, stage
    from jaxseg.data.store import build_store

    def prepare(scan: Kind, source: Path, out: Path) -> int:
        cases = find_cases(source)
        labels: dict[str, int | list[int]] = {"inside": 1} if scan.labelled else {}
        recipe = Recipe(cases.channels, scan.new or scan.spacing, (scan.rule,), labels=labels, resampling=scan.resampling)
        if whole:
            return int(np.prod(build_store(cases, recipe, out, processes=1).entry("a").shape))
        reason = stage(Job(cases.cases[0], recipe, out / "a.npz", "", ""))
        assert reason is None, reason
        with np.load(out / "a.npz") as file:
            return int(np.prod(file["mask"].shape))

    tiny = dataclasses.replace(kind, shape=(24, 24, 24))
    write_case(tiny, folder / "tiny")
    prepare(tiny, folder / "tiny", folder / "tiny_out")
    gc.collect()
    assert forget_peak(), "this system keeps no peak that can be started anew"
    before = peak_mib()
    voxels = prepare(kind, folder / "scan", folder / "out")
    return {"before": before, "peak": peak_mib() - before, "scan": kind.scan_bytes / MIB, "prepared": 4 * voxels / MIB}


def in_a_process(kind: Kind, folder: Path, *, whole: bool) -> dict[str, float]:
    """`measured` in a new process, which ends with it."""
    words = [sys.executable, "-m", "bench.prepare_memory", "--kind", kind.name, "--inside", str(folder), *(["--whole"] if whole else [])]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """One line of JSON a kind of scan."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=[kind.name for kind in KINDS])
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    known = parser.parse_args()
    for kind in KINDS:
        if known.kind not in (None, kind.name):
            continue
        if known.inside is not None:
            print(json.dumps(measured(kind, known.inside / ("store" if known.whole else "staged"), whole=known.whole)))
            continue
        with tempfile.TemporaryDirectory() as name:
            row: dict[str, object] = {"kind": kind.name}
            for what in ("staged", "store"):
                write_case(kind, Path(name) / what / "scan")
                found = in_a_process(kind, Path(name), whole=what == "store")
                row |= {"scan_mib": round(found["scan"]), "prepared_mib": round(found["prepared"])} if what == "staged" else {}
                row |= {f"{what}_before_mib": round(found["before"]), f"{what}_peak_mib": round(found["peak"])}
                row |= {f"{what}_over_scan": round(found["peak"] / max(found["scan"], found["prepared"]), 2)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
