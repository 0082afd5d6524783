"""A labelled case from its files to arrays on another spacing: nnU-Net's own functions (crop to nonzero, z-score within it, resampling of order 3
and 1, separate along a coarse axis), and `prepare_case` with `resampling="nnunet"`.

nnunetv2 is not part of the `parity` extra: it asks for packages that this comparison never calls. In an environment with that extra:
`pip install --no-deps nnunetv2 acvl-utils batchgenerators batchgeneratorsv2 blosc2 numexpr ndindex httpx pandas scikit-image tifffile imageio lazy-loader`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from bench.case import SAME_MATHS, Case, Setting, Work
from bench.torch_side import import_or_absent

_LABELS = {"shell": 1, "core": 2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`channels` scans of `shape` voxels of `old` mm, prepared at `new` mm."""

    channels: int
    shape: tuple[int, int, int]
    old: tuple[float, float, float]
    new: tuple[float, float, float]

    @property
    def voxels(self) -> int:
        """Of the case as it is on disk."""
        return self.channels * int(np.prod(self.shape))


def _case(variant: str, sizes: Sizes, quick: Sizes) -> Case:
    # Labels: nnU-Net gives a voxel that no class wins to the background, and ties to the larger class.
    return Case(variant, "nnU-Net", SAME_MATHS, sizes, quick, lambda known: known.voxels, "voxels", {"image": 1e-3, "label": 2e-3})


CASES = (
    _case(
        "cubic",
        Sizes(4, (176, 208, 160), (1.0, 1.0, 1.1), (1.23, 1.23, 1.23)),
        Sizes(2, (28, 24, 26), (1.0, 1.0, 1.1), (1.23, 1.23, 1.23)),
    ),
    _case(
        "thick_slices",
        Sizes(2, (320, 320, 36), (0.71, 0.71, 5.0), (0.83, 0.83, 4.1)),
        Sizes(2, (30, 34, 12), (0.71, 0.71, 5.0), (0.83, 0.83, 4.1)),
    ),
)


def _write(sizes: Sizes, folder: Path) -> None:
    """A head without skull: noise well above zero in an ellipsoid, exactly zero around it, two labels inside."""
    import nibabel as nib

    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in sizes.shape)]
    radius = np.sqrt(sum((axis / width) ** 2 for axis, width in zip(axes, (0.83, 0.9, 0.77), strict=True)))
    affine = np.diag([*sizes.old, 1.0])
    for channel in range(sizes.channels):
        noise = np.random.default_rng(channel).normal(400, 40, sizes.shape)
        smooth = noise + 150 * np.sin(3 * axes[0] + channel) * np.cos(4 * axes[1])
        image = np.where(radius < 1, np.clip(smooth, 100, 1000), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / f"case_{channel:04d}.nii")
    label = np.digitize(radius, (0.3, 0.5)).astype(np.uint8)
    nib.save(nib.Nifti1Image((2 - label).astype(np.uint8), affine), folder / "label.nii")


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """The steps of its DefaultPreprocessor, without the search for foreground positions that follows there."""
    _write(sizes, folder)
    import_or_absent(setting, "nnunetv2")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

    images = [str(folder / f"case_{channel:04d}.nii") for channel in range(sizes.channels)]
    rule = ZScoreNormalization(use_mask_for_norm=True, intensityproperties={})
    new = sizes.new[::-1]

    def run() -> tuple[np.ndarray, np.ndarray]:
        data, properties = SimpleITKIO().read_images(images)
        seg, _ = SimpleITKIO().read_seg(str(folder / "label.nii"))
        data, seg, _ = crop_to_nonzero(data.astype(np.float32), np.copy(seg))
        old = properties["spacing"]
        shape = compute_new_shape(data.shape[1:], old, new)
        for channel in range(len(data)):
            data[channel] = rule.run(data[channel], seg[0])
        options = {"order_z": 0, "force_separate_z": None}
        data = resample_data_or_seg_to_shape(data, shape, old, new, is_seg=False, order=3, **options)
        return data, resample_data_or_seg_to_shape(seg, shape, old, new, is_seg=True, order=1, **options)

    def check() -> dict[str, np.ndarray]:
        data, seg = run()
        return {"image": data.T.astype(np.float32), "label": np.maximum(seg[0].T, 0).astype(np.uint8)}

    return Work(check, run)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """What `jaxseg prepare` does for a case before it writes it."""
    from jaxseg.data.cases import Case as Files
    from jaxseg.data.preprocess import Prepared, Recipe, prepare_case
    from jaxseg.data.separable import axis_weights

    names = tuple(f"{channel:04d}" for channel in range(sizes.channels))
    files = Files("case", {name: folder / f"case_{name}.nii" for name in names}, folder / "label.nii")
    recipe = Recipe(names, sizes.new, ("zscore",) * sizes.channels, labels=dict(_LABELS), resampling="nnunet")

    def run() -> Prepared:
        # In an archive the next case has another size.
        axis_weights.cache_clear()
        return prepare_case(files, recipe)

    def check() -> dict[str, np.ndarray]:
        prepared = run()
        assert prepared.label is not None
        return {"image": prepared.image, "label": prepared.label}

    return Work(check, run)
