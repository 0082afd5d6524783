"""Miniature copies of public datasets, in the layout in which each is handed out. Used by the tests of `jaxseg.data.datasets`."""

import json
from pathlib import Path

import numpy as np

from jaxseg.data.io import save_volume
from jaxseg.data.volume import Volume

SHAPE = (8, 8, 8)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def write(path: Path, values=None, *, channels: int = 1, seed: int = 0, affine=AFFINE) -> Path:
    """A scan of random intensities, or a label map in which each of `values` has its own voxels."""
    if values is None:
        array = np.random.default_rng(seed).normal(100, 20, (*SHAPE, channels)).astype(np.float32)
    else:
        array = np.zeros((*SHAPE, 1), np.uint8)
        for place, value in enumerate(values):
            array[2 + place % 4, 2 + place // 4, 2:5] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_volume(Volume(array, affine, tuple(map(str, range(array.shape[3]))), None), path)


def brats(root: Path, case: str, names: str, label: str | None, values=(1, 2, 4), *, dash: str = "_", end: str = ".nii.gz") -> Path:
    """One case folder; `names` are the suffixes of its images."""
    for seed, name in enumerate(names.split()):
        write(root / case / f"{case}{dash}{name}{end}", seed=seed)
    if label:
        write(root / case / f"{case}{dash}{label}{end}", values)
    return root / case


def decathlon(root: Path, task: str, prefix: str, modality: list[str], labels: list[str], channels: int = 1) -> Path:
    """Two training cases and a test case with their dataset.json."""
    folder = root / task
    for number in (1, 2):
        write(folder / f"imagesTr/{prefix}_00{number}.nii.gz", channels=channels, seed=number)
        write(folder / f"labelsTr/{prefix}_00{number}.nii.gz", range(1, len(labels) + 1))
        write(folder / f"imagesTr/._{prefix}_00{number}.nii.gz").write_bytes(b"\0\5\x16\7")
    write(folder / f"imagesTs/{prefix}_003.nii.gz", channels=channels)
    names = {str(value): label for value, label in enumerate(["background", *labels])}
    listed = [{"image": f"./imagesTr/{prefix}_00{n}.nii.gz", "label": f"./labelsTr/{prefix}_00{n}.nii.gz"} for n in (1, 2)]
    data = {
        "name": task,
        "modality": dict(zip("0123", modality)),
        "labels": names,
        "training": listed,
        "test": [f"./imagesTs/{prefix}_003.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


def luna(root: Path, uid: str, subset: int, *, size: int = 12) -> Path:
    """A scan as .mhd and .raw: voxels of 1 mm, its first voxel at LPS (-10, -20, -30)."""
    folder = root / f"subset{subset}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{uid}.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        f"Offset = -10 -20 -30\nElementSpacing = 1 1 1\nDimSize = {size} {size} {size}\nElementType = MET_SHORT\nElementDataFile = {uid}.raw\n"
    )
    values = np.random.default_rng(subset).integers(-1000, 200, size**3).astype("<i2")
    (folder / f"{uid}.raw").write_bytes(values.tobytes())
    return folder / f"{uid}.mhd"
