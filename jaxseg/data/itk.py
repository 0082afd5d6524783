"""What SimpleITK does for a recipe: N4 bias correction and the registration of one channel to another. Called by `preprocess` and `stacking`.

One thread and a fixed seed: the same scan gives the same bytes, and cases are prepared side by side anyway. Needs the `itk` extra.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from jaxseg.data.volume import Grid, Volume, to_grid
from jaxseg.errors import ConfigError, InputError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world runs left, posterior, superior
_N4_VOXELS = 4.0  # mm: the field is smooth, and is fitted on a grid about this coarse
_SEED = 1


def simpleitk() -> Any:
    """The module SimpleITK; ConfigError naming the extra where it is not installed."""
    try:
        import SimpleITK
    except ImportError:
        raise ConfigError("N4 and registration need SimpleITK, which is not installed: pip install 'jaxseg[itk]'") from None
    return SimpleITK


def correct_bias(
    plane: Float[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"], spacing: tuple[float, float, float]
) -> Float[np.ndarray, "x y z"]:
    """`plane` divided by its smooth bias field, found inside `mask` by N4 (Tustison et al., IEEE Trans. Med. Imaging 29, 2010).

    Values are moved to be positive first and back again; the mean inside the mask stays what it was. A channel without anything in the
    mask, or constant there, is returned as it is.
    """
    if not mask.any() or plane[mask].min() == plane[mask].max():
        return plane
    sitk = simpleitk()
    lowest = float(plane[mask].min())
    offset = 1.0 - lowest if lowest <= 0 else 0.0
    image = _image(sitk, np.maximum(plane + offset, 1e-3), _grid(plane.shape, spacing))
    inside = _image(sitk, mask.astype(np.uint8), _grid(plane.shape, spacing))
    factors = [max(1, min(round(_N4_VOXELS / mm), n // 4)) for mm, n in zip(spacing, plane.shape)]
    small, small_mask = sitk.Shrink(image, factors), sitk.Shrink(inside, factors)
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetNumberOfThreads(1)
    correct.SetMaximumNumberOfIterations([50, 50, 30, 20])
    try:
        correct.Execute(small, small_mask)
    except RuntimeError as error:
        raise InputError(f"N4 could not fit a bias field ({_last_line(error)}); prepare this scan without --n4") from error
    field = np.exp(sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0))
    corrected = (plane + offset) / np.maximum(field, 1e-3)
    corrected *= float((plane[mask] + offset).mean()) / float(corrected[mask].mean())
    return (corrected - offset).astype(np.float32)


def register(moving: Volume, fixed: Volume, kind: Literal["rigid", "affine"]) -> Volume:
    """`moving` with the affine that lays it over `fixed`; no voxel is interpolated.

    Mattes' mutual information on three resolutions (Mattes et al., IEEE Trans. Med. Imaging 22, 2003), from the scanner's own frame.
    The first channel of each decides.

    Raises:
        InputError: the scans hardly overlap, or nothing was found that fits better than where they lie.
    """
    sitk = simpleitk()
    still, moved = (_image(sitk, volume.array[..., 0].astype(np.float32), volume.grid) for volume in (fixed, moving))
    method = _method(sitk)
    start = sitk.CenteredTransformInitializer(
        still,
        moved,
        sitk.Euler3DTransform() if kind == "rigid" else sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.GEOMETRY,
    )
    start.SetTranslation((0.0, 0.0, 0.0))
    method.SetInitialTransform(start, inPlace=True)
    try:
        before = method.MetricEvaluate(still, moved)
        method.Execute(still, moved)
        after = method.MetricEvaluate(still, moved)
    except RuntimeError as error:
        raise InputError(
            f"channel {moving.channels[0]} could not be registered to {fixed.channels[0]} ({_last_line(error)}): {fixed.grid.describe()}; "
            f"{moving.grid.describe()}"
        ) from error
    if after > before:
        return moving
    # The transform leads from the fixed world to the moving one: its inverse moves the scan.
    return replace(moving, affine=np.linalg.inv(_matrix(start)) @ moving.affine)


def registered_onto(moving: Volume, fixed: Volume, kind: Literal["rigid", "affine"]) -> Volume:
    """`register`, then `moving` sampled on the grid of `fixed` (linear)."""
    return to_grid(register(moving, fixed, kind), fixed.grid)


def _method(sitk: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 150, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-5)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _matrix(transform: Any) -> Float[np.ndarray, "4 4"]:
    """The homogeneous matrix of an ITK transform, in RAS+ millimetres."""
    matrix, centre = np.eye(4), np.asarray(transform.GetCenter())
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.asarray(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return _LPS @ matrix @ _LPS


def _image(sitk: Any, array: np.ndarray, grid: Grid) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    affine = _LPS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / grid.spacing).ravel().tolist())
    return image


def _grid(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> Grid:
    x, y, z = shape
    return Grid((x, y, z), np.diag([*spacing, 1.0]))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
