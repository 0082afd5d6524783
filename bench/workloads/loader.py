"""Random labelled crops: MONAI's `CacheDataset` in memory with precomputed foreground indices, and `CropLoader` from memory-mapped files."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.case import OUR_RECIPE, Case, Setting, Work

_CHANNELS = ("T1", "T2", "T1c", "FLAIR")
_FORMS = {"in the caller": 0, "1 worker": 1, "2 workers": 2}
"""MONAI's loader with so many worker processes, which stay between runs."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`cases` scans of `channels` and `shape` voxels, crops of `side`, `batch` a batch, `batches` a run."""

    cases: int
    channels: int
    shape: tuple[int, int, int]
    side: int
    batch: int
    batches: int

    @property
    def names(self) -> tuple[str, ...]:
        return _CHANNELS[: self.channels]


def _case(variant: str, sizes: Sizes, quick: Sizes) -> Case:
    # The store keeps float16.
    amount = lambda known: known.batch * known.batches
    return Case(variant, "MONAI CacheDataset", OUR_RECIPE, sizes, quick, amount, "samples", {"image": 1e-3})


# The cache grows with the scans, a store does not: of 4 scans most of the memory is what both import, of 16 it is the cache.
CASES = (
    _case("crops_96", Sizes(4, 2, (160, 160, 128), 96, 2, 24), Sizes(2, 2, (20, 18, 16), 8, 2, 2)),
    _case("crops_64_of_16_scans", Sizes(16, 4, (160, 192, 144), 64, 2, 32), Sizes(3, 4, (20, 18, 16), 8, 2, 2)),
)


def _write(sizes: Sizes, folder: Path) -> None:
    """A folder a case: noise without air (prepared as CT), brighter in a box, which is the label."""
    import nibabel as nib

    for number in range(sizes.cases):
        rng = np.random.default_rng(number)
        label = np.zeros(sizes.shape, np.uint8)
        label[tuple(slice(n // 3, n // 2) for n in sizes.shape)] = 1
        place = folder / "scans" / f"case_{number}"
        place.mkdir(parents=True)
        for channel in sizes.names:
            image = rng.integers(100, 200, sizes.shape) + 50 * label
            nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), place / f"{channel}.nii")
        nib.save(nib.Nifti1Image(label, np.eye(4)), place / "seg.nii")


def _whole(image: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """What is compared: the first case's whole volume, (x, y, z, c)."""
    return {"image": np.asarray(image, np.float32), "label": np.asarray(label, np.uint8)}


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's best form: everything random after a cache that holds prepared arrays and the indices of foreground and background."""
    from bench.torch_side import fastest, import_or_absent

    _write(sizes, folder)
    t, data = import_or_absent(setting, "monai.transforms"), import_or_absent(setting, "monai.data")
    items = [
        {"image": [str(place / f"{channel}.nii") for channel in sizes.names], "label": str(place / "seg.nii")}
        for place in sorted((folder / "scans").iterdir())
    ]
    fixed = [
        t.LoadImaged(("image", "label"), ensure_channel_first=True),
        t.ScaleIntensityRanged("image", -1000, 1000, -2, 2, clip=True),
        t.FgBgToIndicesd("label"),
    ]
    crop = t.RandCropByPosNegLabeld(
        ("image", "label"), "label", (sizes.side,) * 3, fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices"
    )
    cached = data.CacheDataset(items, t.Compose([*fixed, crop]), progress=False)
    picked = data.Dataset(list(range(sizes.batch * sizes.batches)), lambda number: cached[number % sizes.cases][0])

    def check() -> dict[str, np.ndarray]:
        first = t.Compose(fixed)(items[0])
        return _whole(np.moveaxis(first["image"].numpy(), 0, -1), first["label"].numpy()[0])

    def make(form: str) -> Callable[[], int]:
        workers = _FORMS[form]
        loader = data.DataLoader(picked, batch_size=sizes.batch, num_workers=workers, persistent_workers=workers > 0)
        return lambda: sum(batch["image"].shape[0] for batch in loader)

    # What workers hold of their own is not in the memory of this process, which alone is counted.
    _, run, form = fastest(make, _FORMS, setting)
    return Work(check, run, form=form)


def _build(sizes: Sizes, folder: Path) -> None:
    from jaxseg.data.cases import find_cases
    from jaxseg.data.recipe import Recipe
    from jaxseg.data.store import build_store

    recipe = Recipe(channels=sizes.names, spacing=(1.0, 1.0, 1.0), intensity=("ct",) * sizes.channels, labels={"box": 1})
    build_store(find_cases(folder / "scans"), recipe, folder / "store", processes=1)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """A store of the same scans, half of the crops with foreground (MONAI: half), read ahead by its threads."""
    from jaxseg.data.catalog import open_store
    from jaxseg.data.loader import CropLoader

    # Preparing is another program, whose memory is not the loader's.
    building = multiprocessing.get_context("spawn").Process(target=_build, args=(sizes, folder))
    building.start()
    building.join()
    store = open_store(folder / "store")

    def check() -> dict[str, np.ndarray]:
        arrays = store.arrays(store.names[0])
        assert arrays.label is not None
        return _whole(arrays.image, arrays.label)

    def run() -> int:
        # A new loader every time: one that is kept reads ahead while the peer has its turn.
        side, options = sizes.side, {"seed": 0, "foreground": 0.5, "labelled": True, "threads": setting.threads}
        loader = CropLoader(store, store.names, crop=(side, side, side), batch=sizes.batch, **options)
        count = sum(len(next(loader)["image"]) for _ in range(sizes.batches))
        loader.close()
        return count

    return Work(check, run)
