"""How alike changed copies are, and how alike different patients, to near-duplicate detection. Run: python -m bench.near_duplicates FOLDER

Prints one line of JSON: the least likeness and the greatest difference of extents of each kind of copy, and the most alike pairs of different
patients (folders, or file names up to the first underscore) whose extents differ by less than the limit.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxseg.data.archive.patients import owner_of
from jaxseg.data.duplicates import EXTENT, LIKENESS
from jaxseg.data.fingerprint import fingerprint, unpack
from jaxseg.data.io import load_volume
from jaxseg.errors import InputError

Scan = tuple[np.ndarray, tuple[float, float, float]]


def copies(scan: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The same scan after what archives do to it."""
    span = float(np.ptp(scan)) or 1.0
    noise = np.random.default_rng(0).normal(0, 0.05 * scan.std(), scan.shape).astype(np.float32)
    yield "scaled", 1.07 * scan - 3
    yield "8 bits", np.round((scan - scan.min()) / span * 255).astype(np.uint8)
    yield "noise of 5 %", scan + noise
    yield "one plane cropped along x", scan[1:]
    yield "one plane cropped along z", scan[:, :, 1:]
    yield "all sides cropped", scan[1:-1, 1:-1, 1:]
    yield "gamma 1.1", ((scan - scan.min()) / span) ** 1.1
    yield "padded by 2", np.pad(scan, 2, constant_values=float(np.median(scan[0])))


def load(folder: Path) -> dict[str, tuple[str, Scan]]:
    """Name → (patient, scan) of every single-channel image below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.nii.gz")):
        owner = owner_of(path, folder)
        if owner.role != "image" or "structures" in path.name:
            continue
        try:
            volume = load_volume(path)
        except InputError:
            continue
        patient = path.name.split("_")[0] if path.parent == folder or path.parent.name == "brain" else path.parent.name
        found[str(path.relative_to(folder))] = patient, (volume.array[..., 0], volume.spacing)
    return found


def likeness(first: bytes, second: bytes) -> tuple[float, float]:
    """(scalar product, largest difference of the extents' logarithms)."""
    vectors, extents = unpack([first, second])
    return float(vectors[0] @ vectors[1]), float(np.abs(np.log(extents[0] / extents[1])).max())


def main() -> None:
    """Measure, print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    scans = load(parser.parse_args().folder)
    prints = {name: found for name, (_, scan) in scans.items() if (found := fingerprint(*scan)) is not None}
    kinds: dict[str, list[tuple[float, float]]] = {}
    for name, (_, (array, spacing)) in scans.items():
        for kind, copy in copies(array.astype(np.float32)):
            changed = fingerprint(copy, spacing)
            kinds.setdefault(kind, []).append(likeness(prints[name], changed) if changed else (0.0, 9.0))
    strangers = [pair for pair in itertools.combinations(prints, 2) if scans[pair[0]][0] != scans[pair[1]][0]]
    alike = sorted(((*likeness(prints[one], prints[other]), one, other) for one, other in strangers), reverse=True)
    row = {
        "scans": len(scans),
        "pairs_of_strangers": len(strangers),
        "false_alarms": sum(a > LIKENESS and e < EXTENT for a, e, *_ in alike),
    }
    row |= {"most_alike_strangers": [[round(a, 3), round(e, 3), one, other] for a, e, one, other in alike[:4]]}
    for kind, values in kinds.items():
        found = sum(a > LIKENESS and e < EXTENT for a, e in values)
        row[kind] = {
            "found": f"{found} of {len(values)}",
            "least": round(min(a for a, _ in values), 3),
            "extent": round(max(e for _, e in values), 3),
        }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
