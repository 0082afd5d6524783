"""The phantom archive on disk: NIfTI files like any hospital's, in two of the usual layouts, some broken on purpose. The demo's input.

OUT/unlabelled/PH_U000/PH_U000_T1.nii.gz …          a folder per case, as BraTS has it
OUT/labelled/images/PH_L000_T1.nii.gz …  OUT/labelled/labels/PH_L000.nii.gz  OUT/labelled/dataset.json
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from jaxseg.data.child_process import follow_parent
from jaxseg.data.phantom import broken as faults
from jaxseg.data.phantom.anatomy import rotation
from jaxseg.data.phantom.case import make_case
from jaxseg.data.phantom.contrast import CHANNELS, SCANNERS
from jaxseg.data.phantom.shapes import Array
from jaxseg.errors import ConfigError, StorageError
from jaxseg.files import read_json, write_bytes, write_json

VERSION = 1  # of the pictures: an archive of another version is not continued
SPACINGS = ((2, 2, 2), (1.5, 1.5, 1.5), (1, 1, 5), (1.2, 1.2, 3), (2, 2, 2), (1, 1, 4), (4, 1.2, 1.2), (1.2, 3, 1.2))
ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR", "RSA", "LIP")
LABELS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing": [3]}


@dataclass(frozen=True)
class Plan:
    """What one case will be: everything is decided before anything is drawn, so that cases can be made in any order."""

    id: str
    folder: str  # "unlabelled" or "labelled"
    seed: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    scanner: str
    tumour: bool
    tilt: tuple[float, float, float]  # of the stored grid, radians
    fault: str | None
    broken_channel: str | None

    @property
    def files(self) -> dict[str, Path]:
        """Where each channel (and "label") of this case goes, below the archive's folder."""
        if self.folder == "unlabelled":
            return {channel: Path("unlabelled", self.id, f"{self.id}_{channel}.nii.gz") for channel in CHANNELS}
        images = {channel: Path("labelled", "images", f"{self.id}_{channel}.nii.gz") for channel in CHANNELS}
        return {**images, "label": Path("labelled", "labels", f"{self.id}.nii.gz")}


@dataclass(frozen=True)
class PhantomArchive:
    """Where the archive lies, and which of its files are broken, and how."""

    unlabelled: Path
    labelled: Path
    broken: dict[Path, str]


def plan_archive(*, unlabelled: int = 48, labelled: int = 24, broken: int = 4, seed: int = 0) -> list[Plan]:
    """The cases of an archive. The broken ones are spread over the unlabelled; one channel of each is unusable."""
    if min(unlabelled, labelled, broken, seed) < 0 or broken > unlabelled:
        raise ConfigError(
            f"a phantom archive of {unlabelled} unlabelled cases, {broken} of them broken, and {labelled} labelled, seed {seed}: impossible"
        )
    bad = {round((k + 0.5) * unlabelled / broken): k for k in range(broken)} if broken else {}
    plans = []
    for kind, (folder, count) in enumerate((("unlabelled", unlabelled), ("labelled", labelled))):
        for number in range(count):
            rng = np.random.default_rng((seed, kind, number, 99))
            fault = bad.get(number) if folder == "unlabelled" else None
            plans.append(
                Plan(
                    id=f"PH_{folder[0].upper()}{number:03d}",
                    folder=folder,
                    seed=(seed, kind, number),
                    spacing=tuple(float(s) for s in SPACINGS[(number + rng.integers(2)) % len(SPACINGS)]),  # type: ignore[arg-type]
                    orientation=ORIENTATIONS[rng.integers(len(ORIENTATIONS))],
                    scanner=SCANNERS[rng.integers(len(SCANNERS))].name,
                    tumour=folder == "labelled" or bool(rng.uniform() < 0.8),
                    tilt=tuple(rng.normal(0, 0.06, 3).tolist()) if rng.uniform() < 0.3 else (0.0, 0.0, 0.0),
                    fault=None if fault is None else list(faults.FAULTS)[fault % len(faults.FAULTS)],
                    broken_channel=None if fault is None else CHANNELS[fault % len(CHANNELS)],
                )
            )
    return plans


def write_archive(
    out: str | Path,
    *,
    unlabelled: int = 48,
    labelled: int = 24,
    broken: int = 4,
    seed: int = 0,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomArchive:
    """Write the archive under `out`; the same arguments give the same bytes. `progress(done, total)` counts cases.

    Files that are there already are left alone, so that an interrupted call goes on where it was. `broken` of the unlabelled cases have
    one damaged file each.

    Raises ConfigError for impossible counts, StorageError if `out` holds an archive made with other arguments or cannot be written.
    """
    out = Path(out)
    plans = plan_archive(unlabelled=unlabelled, labelled=labelled, broken=broken, seed=seed)
    _claim(out, {"version": VERSION, "unlabelled": unlabelled, "labelled": labelled, "broken": broken, "seed": seed})
    (out / "unlabelled").mkdir(exist_ok=True)
    write_json(out / "labelled" / "dataset.json", _dataset())
    missing = [plan for plan in plans if not all((out / file).exists() for file in plan.files.values())]
    done = len(plans) - len(missing)
    if progress:
        progress(done, len(plans))
    for _ in _finished(missing, out, processes):
        done += 1
        if progress:
            progress(done, len(plans))
    damaged = {out / p.files[p.broken_channel]: p.fault for p in plans if p.fault and p.broken_channel}
    return PhantomArchive(out / "unlabelled", out / "labelled", damaged)


def write_case(plan: Plan, out: Path) -> str:
    """Draw one case and write those of its files that are not there yet."""
    phantom = make_case(plan.seed, spacing=plan.spacing, tumour=plan.tumour, scanner=plan.scanner)
    affine = np.eye(4)
    affine[:3, :3] = rotation(plan.tilt)
    affine = affine @ phantom.affine
    arrays: dict[str, Array] = {**phantom.images, "label": phantom.label}
    for name, file in plan.files.items():
        if (out / file).exists():
            continue
        image = nifti(arrays[name], affine, plan.orientation)
        damage = faults.FAULTS[plan.fault] if plan.fault and name == plan.broken_channel else faults.pack
        write_bytes(out / file, damage(image))
    return plan.id


def nifti(array: Array, affine: Array, orientation: str) -> nib.Nifti1Image:
    """An RAS+ array as a NIfTI image stored in `orientation`; signals as int16 (with a slope where they are small), labels as uint8."""
    label = array.dtype == np.uint8
    slope = 1.0 if label or array.max() > 500 else 0.125
    stored = array if label else np.clip(np.round(array / slope), 0, 32767).astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
    image = image.as_reoriented(turn.tolist())
    image.header.set_slope_inter(slope, 0.0)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image


def _dataset() -> dict[str, Any]:
    names = {str(number): name for number, name in enumerate(CHANNELS)}
    about = {"name": "jaxseg phantom", "licence": "CC0-1.0", "file_ending": ".nii.gz"}
    return {**about, "channel_names": names, "labels": LABELS, "regions_class_order": [2, 1, 3]}


def _claim(out: Path, arguments: dict[str, int]) -> None:
    """Write down what this archive is, or refuse to mix two archives in one folder."""
    path = out / "archive.json"
    if not path.exists():
        write_json(path, arguments)
    elif (found := read_json(path)) != arguments:
        raise StorageError(f"{out}: holds a phantom archive made with {found}, not {arguments}; choose another folder or remove this one")


def _finished(plans: list[Plan], out: Path, processes: int) -> Iterator[str]:
    """Yield the case names as they are done."""
    if processes <= 1 or len(plans) <= 1:
        yield from (write_case(plan, out) for plan in plans)
        return
    # spawn: forking a process in which jax has started its threads can deadlock
    pool = ProcessPoolExecutor(min(processes, len(plans)), mp_context=get_context("spawn"), initializer=follow_parent)
    try:
        for future in as_completed([pool.submit(write_case, plan, out) for plan in plans]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
