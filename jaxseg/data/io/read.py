"""`load_volume`, `load_label` and `read_grid`: files to checked volumes. Called by `preprocess`, `archive`, `infer` and users."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from jaxseg.data.io import scans
from jaxseg.data.io.decoded import PLAIN, Decoded, Rules, slices_of
from jaxseg.data.volume import Grid, Source, Volume, stack_channels, to_ras
from jaxseg.errors import InputError

PathLike = str | Path


def load_volume(
    path: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    *,
    reorient: bool = True,
    channels: Sequence[str] | None = None,
    policy: Literal["sform", "qform"] | None = None,
    assume_orientation: str | None = None,
    nonfinite: float | None = None,
    series: str | None = None,
    burned_in: bool = False,
    max_voxels: int = 2**31,
    max_bytes: int = 2**33,
    rules: Rules | None = None,
) -> Volume:
    """Read a scan: NIfTI (also as a pair), NRRD, MetaImage, or a DICOM series by its folder or one of its files.

    Returns: float32 `(x, y, z, c)`, scaled (`source.unit` says to what), axes in RAS+ order unless `reorient=False`.

    Args:
        path: one file, several (a channel each), or {channel: file}. Several are put onto the first one's grid by world coordinates.
        channels: names of the channels of one 4-D file (which is refused without them) or of the files in a list; by default a
            channel is called as its file.
        policy: which affine to believe where a NIfTI file states qform and sform (refused without it where they contradict each other).
        assume_orientation: axis codes such as "RAS" for files that state no orientation (refused without it).
        nonfinite: value that replaces NaN and infinities (refused without it).
        series: which series of a folder with several (the error without it lists their keys).
        burned_in: read DICOM objects with text burned into their pixels, which may name the patient (refused without it).
        max_voxels, max_bytes: caps on what a header may declare, checked before memory is taken.
        rules: `policy`, `assume_orientation`, `burned_in` and the caps in one, such as a `Case` carries them; instead of these.

    Raises:
        InputError: missing, truncated or damaged file, not a 3-D scan, NaN; GeometryError: unusable or contradictory orientation.
    """
    rules = rules or Rules(policy, assume_orientation, max_voxels, max_bytes, burned_in)
    if isinstance(path, Mapping):
        named = [(name, Path(file)) for name, file in path.items()]
    elif isinstance(path, str | Path):
        return _load(Path(path), channels, rules, reorient, nonfinite, series)
    else:
        names = channels or [scans.stem(Path(file)) for file in path]
        if len(names) != len(path):
            raise InputError(f"{len(path)} files were given with {len(names)} channel names: {', '.join(names)}")
        named = [(name, Path(file)) for name, file in zip(names, path, strict=True)]
    if not named:
        raise InputError("no file was given; expected at least one scan")
    if len({file for _, file in named}) < len(named):
        raise InputError(
            f"{named[0][1]}: one file was given for several channels; load a 4-D file by itself with channels= in its own order"
        )
    volumes = [_load(file, [name], rules, reorient, nonfinite) for name, file in named]
    stacked = stack_channels(volumes)
    source = stacked.source
    assert source is not None
    return replace(stacked, source=replace(source, paths=tuple(file for _, file in named)))


def load_label(
    path: PathLike,
    *,
    reorient: bool = True,
    policy: Literal["sform", "qform"] | None = None,
    assume_orientation: str | None = None,
    max_voxels: int = 2**31,
    max_bytes: int = 2**33,
    rules: Rules | None = None,
) -> Volume:
    """Read a label map (any format of `load_volume`, or a DICOM segmentation whose segments do not overlap).

    Returns: whole numbers from 0 on, `(x, y, z, 1)`, as uint8, uint16 or int32, whichever is smallest.

    Raises:
        InputError: values that are negative or not whole (with counts), and all that `load_volume` refuses.
    """
    path = Path(path)
    rules = rules or Rules(policy, assume_orientation, max_voxels, max_bytes)
    decoded = scans.decode_path(path, rules, label=True)
    scaled = decoded.header.slope != 1 or decoded.header.inter != 0
    values = decoded.values() if scaled else decoded.stored
    return _volume(path, decoded, _whole_numbers(values, path), ["label"], reorient)


def read_grid(path: PathLike, rules: Rules = PLAIN) -> Grid:
    """The grid of a scan as stored, from its header alone; the same checks of the header as `load_volume`, by the same rules."""
    return scans.header_of(Path(path), rules).grid


def decoded_volume(path: Path, decoded: Decoded, channels: Sequence[str] | None, *, reorient: bool, nonfinite: float | None) -> Volume:
    """Intensities of a decoded file as a volume, checked to be finite and to have the channels said."""
    values = decoded.values()
    if values.ndim == 4 and len(channels or ()) != values.shape[3]:
        said = f"{len(channels)} were named: {', '.join(channels)}" if channels else "no channel was named"
        raise InputError(
            f"{path}: a 4-D image with {values.shape[3]} volumes, but {said}; name its channels (--channels, channels=), or split it into files"
        )
    if values.ndim == 3 and len(channels or " ") != 1:
        raise InputError(f"{path}: a 3-D image, but {len(channels or ())} channels were named: {', '.join(channels or ())}")
    # Slice by slice, here and below: what a whole scan is compared to takes as much memory as the scan.
    if count := sum(int(np.count_nonzero(~np.isfinite(part))) for (part,) in slices_of(values)):
        if nonfinite is None:
            nans = sum(int(np.count_nonzero(np.isnan(part))) for (part,) in slices_of(values))
            raise InputError(
                f"{path}: {count:,} of {values.size:,} voxels are not finite ({nans:,} NaN, {count - nans:,} infinite); "
                "mend the scan, or load it with load_volume(…, nonfinite=VALUE) in Python"
            )
        for (part,) in slices_of(values):
            part[~np.isfinite(part)] = nonfinite
    return _volume(path, decoded, values, channels or [scans.stem(path)], reorient)


def _load(
    path: Path, channels: Sequence[str] | None, rules: Rules, reorient: bool, nonfinite: float | None, series: str | None = None
) -> Volume:
    decoded = scans.decode_path(path, rules, series=series)
    return decoded_volume(path, decoded, channels, reorient=reorient, nonfinite=nonfinite)


def _volume(path: Path, decoded: Decoded, values: np.ndarray, channels: Sequence[str], reorient: bool) -> Volume:
    head = decoded.header
    source = Source((path,), head.grid, head.dtype.name, head.slope, head.inter, head.space_code, head.unit)
    volume = Volume(values if values.ndim == 4 else values[..., None], head.grid.affine, tuple(channels), source)
    return to_ras(volume) if reorient else volume


def _whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim != 3:
        raise InputError(f"{path}: a label map must be 3-D; found shape {values.shape}")
    if values.dtype.kind == "f":
        fractions = [part[~(part == np.round(part)) | ~np.isfinite(part)] for (part,) in slices_of(values)]
        if fraction := sum(part.size for part in fractions):
            raise InputError(
                f"{path}: {fraction:,} of {values.size:,} label values are not whole numbers, such as "
                f"{next(part[0] for part in fractions if part.size):g}; a label map holds classes 0, 1, 2, … "
                "(was it interpolated as if it were an image?)"
            )
    low, high = values.min(), values.max()
    if low < 0:
        count = sum(int(np.count_nonzero(part < 0)) for (part,) in slices_of(values))
        raise InputError(f"{path}: {count:,} label values are negative (down to {low:g}); expected 0, 1, 2, …")
    if high > 2**31 - 1:
        raise InputError(f"{path}: label values up to {high:g} are beyond 32 bits; expected 0, 1, 2, …")
    return values.astype(np.uint8 if high < 256 else np.uint16 if high < 65536 else np.int32)
