"""LUNA16: lung nodules in CT, `subset0/…` to `subset9/UID.mhd`, with `annotations.csv`, whose nodules are drawn as spheres. Called by `catalogue`.

The ten subsets are the challenge's folds of its cross-validation; a scan without a nodule is a scan without foreground.
"""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.datasets.dataset import Dataset, Drawn, Reading
from jaxseg.data.datasets.files import Part, name_of, read_parts
from jaxseg.data.datasets.spheres import Sphere, centre_voxel, draw_spheres
from jaxseg.data.io import read_grid, save_volume
from jaxseg.data.staging import without_paths
from jaxseg.data.volume import Volume
from jaxseg.errors import InputError

_UID = re.compile(r"\d+(\.\d+){3,}")
_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


def _part_of(path: Path) -> Part | None:
    if path.suffix.lower() != ".mhd" or not _UID.fullmatch(name_of(path)) or any("seg-lungs" in part.lower() for part in path.parts):
        return None
    folds = [int(found[1]) for part in path.parts[:-1] if (found := re.fullmatch(r"subset(\d)", part, re.IGNORECASE))]
    return Part(name_of(path), "CT", None, folds[-1] if folds else None)


def _read(root: Path) -> Reading:
    reading = read_parts(root, _part_of, ("CT",))
    if not reading.cases:
        return reading
    faults = [*reading.faults]
    for case in reading.cases:
        path = case.images["CT"]
        if not any(path.with_suffix(suffix).is_file() for suffix in (".raw", ".zraw")):
            faults.append(f"{case.id}: {path.stem}.raw is missing beside its .mhd file; copy the case again")
        if case.fold is None:
            faults.append(f"{case.id}: not in a folder subset0 to subset9, so its fold is unknown")
    if not sorted(root.rglob("annotations.csv")):
        faults.append("annotations.csv is missing, so nodules cannot be drawn; put it beside the subsets")
    return dataclasses.replace(reading, faults=tuple(faults))


def read_annotations(root: Path) -> dict[str, list[Sphere]]:
    """Nodules by series: annotations.csv holds centres in LPS mm and diameters in mm; spheres are in RAS mm.

    Raises:
        InputError: no annotations.csv below `root`, other columns, or a line that is not numbers.
    """
    found = [path for path in sorted(root.rglob("annotations.csv")) if "__MACOSX" not in path.parts]
    if not found:
        raise InputError(f"{root}: annotations.csv is missing, so nodules cannot be drawn; put it beside the folders subset0 to subset9")
    spheres: dict[str, list[Sphere]] = {}
    with open(found[0], newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            raise InputError(f"{found[0]}: columns {', '.join(rows.fieldnames or ())}, expected {', '.join(_COLUMNS)}")
        for row in rows:
            try:
                x, y, z, diameter = (float(row[name]) for name in _COLUMNS[1:])
            except (TypeError, ValueError):
                raise InputError(f"{found[0]}, line {rows.line_num}: expected numbers, found {list(row.values())}") from None
            if not np.isfinite([x, y, z, diameter]).all() or diameter <= 0:
                raise InputError(
                    f"{found[0]}, line {rows.line_num}: expected a position and a diameter above 0, found {list(row.values())}"
                )
            spheres.setdefault(row["seriesuid"], []).append(Sphere((-x, -y, z), diameter / 2))
    return spheres


def _draw(root: Path, cases: tuple[Case, ...], out: Path) -> Drawn:
    """Every case with a label file in `out`, named by what it is drawn from, so that a second run draws nothing."""
    spheres, kept, left_out = read_annotations(root), [], {}
    for case in cases:
        try:
            kept.append(dataclasses.replace(case, label=_label_of(case, spheres.get(case.id, ()), out)))
        except InputError as error:
            left_out[case.id] = without_paths(str(error), case)
    return Drawn(tuple(kept), left_out)


def _examine(root: Path, cases: tuple[Case, ...]) -> tuple[list[str], list[str]]:
    """How many nodules there are, and those that lie outside their scan."""
    if not list(root.rglob("annotations.csv")):
        return [], []
    spheres, faults = read_annotations(root), []
    for case in cases:
        try:
            grid = read_grid(next(iter(case.images.values())))
            for sphere in spheres.get(case.id, ()):
                centre_voxel(grid, sphere, case.id)
        except InputError as error:
            faults.append(str(error))
    counts = [len(spheres.get(case.id, ())) for case in cases]
    return [f"findings: {sum(counts)} nodules in {np.count_nonzero(counts)} scans; prepare draws them as label files"], faults


def _label_of(case: Case, spheres: Sequence[Sphere], out: Path) -> Path:
    """The label file of a scan. InputError if its header cannot be read or a nodule lies outside."""
    grid = read_grid(next(iter(case.images.values())))
    key = hashlib.sha256(repr((case.id, grid.shape, grid.affine.tolist(), spheres)).encode()).hexdigest()[:20]
    path = out / f"{key}.nii.gz"
    if not path.is_file():
        save_volume(Volume(draw_spheres(grid, spheres, case.id)[..., None], grid.affine, ("label",), None), path)
    return path


DATASETS = (
    Dataset(
        name="luna16",
        title="Lung Nodule Analysis 2016",
        channels=("CT",),
        labels={"nodule": 1},
        layout="subset0/ to subset9/ with UID.mhd and UID.raw, and annotations.csv",
        licence="CC BY 4.0; the scans are those of LIDC-IDRI, CC BY 3.0",
        citation="Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in computed "
        "tomography images: the LUNA16 challenge, Medical Image Analysis 42 (2017) 1–13, doi:10.1016/j.media.2017.06.015; "
        "Armato et al., LIDC-IDRI, Medical Physics 38 (2011) 915–931",
        source="https://luna16.grand-challenge.org/Data/",
        read=_read,
        draw=_draw,
        examine=_examine,
    ),
)
