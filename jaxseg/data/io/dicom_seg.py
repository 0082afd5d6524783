"""DICOM segmentation objects (SEG: binary, fractional, label map) to masks and label maps. Called by `read` and users.

DICOM PS3.3 C.8.20. Segments may overlap, empty slices are left out of the file, and the bits of binary frames follow one another without
padding, so that a frame may begin in the middle of a byte.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.io.decoded import LPS_TO_RAS, Decoded, Header, Rules, check_caps, usable_affine
from jaxseg.data.io.dicom.elements import items, number, numbers, pixel_bytes, read_dataset, text
from jaxseg.data.io.dicom.frames import SEG_CLASSES, Frame, Instance, describe, enhanced_frames
from jaxseg.data.io.dicom.geometry import distances, normal_of
from jaxseg.data.io.dicom.pixels import is_plain, stored_frames
from jaxseg.data.io.stream import open_file, read_bytes
from jaxseg.data.volume import Grid, Source, Volume, to_grid
from jaxseg.errors import GeometryError, InputError

_SAME_PLACE = 0.01  # mm


@dataclass(frozen=True)
class Segment:
    """One segment: its number in the file and its label."""

    number: int
    label: str


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a SEG file holds: segments, the grid of its slices (gaps filled), and a plane for each frame.

    Attributes:
        planes: (segment's number, slice's index along z, stored values (rows, columns)); the number is None in a label map.
        full: stored value that means 1 (the maximum of a fractional segmentation).
        padding: the value that the file gives to voxels of no segment (PixelPaddingValue of a label map), else 0.
    """

    path: Path
    segments: tuple[Segment, ...]
    grid: Grid
    planes: tuple[tuple[int | None, int, np.ndarray], ...]
    full: int
    kind: str
    padding: int = 0

    def fraction(self, number: int) -> np.ndarray:
        """`(x, y, z)` float32 from 0 to 1: how much of each voxel (or how probably) the segment fills."""
        return self._stored(number).astype(np.float32) / np.float32(self.full)

    def mask(self, number: int) -> np.ndarray:
        """`(x, y, z)` bool: where a segment is; of a fractional one, where it is at least a half."""
        return self._stored(number) * 2 >= self.full

    @cached_property
    def overlap(self) -> int:
        """Number of voxels that belong to more than one segment."""
        count = np.zeros(self.grid.shape, np.uint16)
        for segment in self.segments:
            count += self.mask(segment.number)
        return int(np.count_nonzero(count > 1))

    def label_map(self, *, background: int = 0) -> np.ndarray:
        """`(x, y, z)`: the number of the segment at each voxel, `background` where there is none.

        Raises:
            InputError: segments overlap, so that one number a voxel cannot hold them.
        """
        if self.overlap:
            raise InputError(
                f"{self.path}: {self.overlap:,} voxels belong to several of its {len(self.segments)} segments; "
                "load it with load_segmentation, which gives each segment a channel"
            )
        highest = max(background, *(segment.number for segment in self.segments))
        labels = np.full(self.grid.shape, background, np.uint8 if highest < 256 else np.uint16)
        for segment in self.segments:
            labels[self.mask(segment.number)] = segment.number
        return labels

    def _stored(self, number: int) -> np.ndarray:
        if number not in {segment.number for segment in self.segments}:
            raise InputError(f"{self.path}: no segment {number}; there are {', '.join(str(s.number) for s in self.segments)}")
        array = np.zeros(self.grid.shape[::-1], np.uint16)
        for owner, z, plane in self.planes:
            if owner is None:
                array[z] = (plane == number) * self.full
            elif owner == number:
                array[z] = np.maximum(array[z], plane)
        return array.transpose(2, 1, 0)


def read_segmentation(path: str | Path, *, max_voxels: int = 2**31, max_bytes: int = 2**33) -> Segmentation:
    """Read a DICOM SEG file.

    Raises:
        InputError: not a SEG, truncated, damaged or too large; GeometryError: slices that lie on no common grid.
    """
    path, rules = Path(path), Rules(max_voxels=max_voxels, max_bytes=max_bytes)
    dataset = read_dataset(read_bytes(path, rules), path, rules)
    instance = describe(dataset, path)
    if instance.sop_class not in SEG_CLASSES:
        raise InputError(f"{path}: not a DICOM segmentation; load scans with load_volume")
    kind = text(dataset, "SegmentationType").upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or instance.bits not in (1, 8, 16):
        raise InputError(f"{path}: a segmentation of type {kind!r} with {instance.bits} bits; expected BINARY, FRACTIONAL or LABELMAP")
    if instance.rows < 1 or instance.columns < 1:
        raise InputError(f"{path}: damaged: {instance.rows} rows and {instance.columns} columns")
    full = int(number(dataset, "MaximumFractionalValue", path, 255)) if kind == "FRACTIONAL" else 1
    if full < 1:
        raise InputError(f"{path}: damaged: MaximumFractionalValue is {full}")
    check_caps((instance.columns, instance.rows, instance.frames), np.dtype(np.uint8), str(path), rules)
    frames = enhanced_frames(dataset, instance)
    grid, slices = _grid(frames, instance, str(path))
    check_caps(grid.shape, np.dtype(np.uint16), str(path), rules)
    owners = [None] * len(frames) if kind == "LABELMAP" else _owners(dataset, path)
    pixels = _bit_frames(dataset, instance) if instance.bits == 1 else stored_frames(dataset, instance, range(len(frames)))
    planes = tuple((owner, z, plane) for owner, z, plane in zip(owners, slices, pixels, strict=True))
    padding = int(number(dataset, "PixelPaddingValue", path, 0))
    return Segmentation(path, _segments(dataset, path), grid, planes, full, kind, padding if kind == "LABELMAP" else 0)


def is_segmentation(path: Path, rules: Rules) -> bool:
    """Whether a DICOM file is a segmentation, by its class."""
    with open_file(path) as file:
        return text(read_dataset(file, path, rules, only=["SOPClassUID", "Modality"]), "SOPClassUID") in SEG_CLASSES


def load_segmentation(path: str | Path, *, like: Volume | Grid | None = None) -> Volume:
    """A DICOM SEG as a volume: `(x, y, z, segments)` uint8 0/1, a channel a segment, called by its label (and number where labels repeat).

    Args:
        like: the scan (or its grid) to put the segments on, by world coordinates; by default the grid of the file's own slices.
    """
    segmentation = read_segmentation(path)
    labels = [segment.label for segment in segmentation.segments]
    names = tuple(s.label if s.label and labels.count(s.label) == 1 else f"{s.label} {s.number}".strip() for s in segmentation.segments)
    array = np.stack([segmentation.mask(segment.number) for segment in segmentation.segments], -1).astype(np.uint8)
    volume = Volume(array, segmentation.grid.affine, names, Source((Path(path),), segmentation.grid, "uint8"))
    return volume if like is None else to_grid(volume, like.grid if isinstance(like, Volume) else like, labels=True)


def decode(path: Path, rules: Rules) -> Decoded:
    """A SEG file as a label map for `scans`: see `Segmentation.label_map`."""
    segmentation = read_segmentation(path, max_voxels=rules.max_voxels, max_bytes=rules.max_bytes)
    labels = segmentation.label_map()
    notes = tuple(f"{segment.number}: {segment.label}" for segment in segmentation.segments)
    return Decoded(labels, Header(labels.shape, labels.dtype, 0, 1.0, 0.0, segmentation.grid, 1, notes))


def _segments(dataset: Any, path: Path) -> tuple[Segment, ...]:
    found = [(numbers(item, "SegmentNumber", path), text(item, "SegmentLabel")) for item in items(dataset, "SegmentSequence", path)]
    segments = tuple(Segment(int(number[0]), label) for number, label in found if number and number[0] > 0)
    if not segments or len({segment.number for segment in segments}) < len(segments):
        raise InputError(f"{path}: damaged: its {len(segments)} segments do not have numbers of their own from 1 on")
    return segments


def _owners(dataset: Any, path: Path) -> list[int]:
    """The number of the segment that each frame belongs to."""
    shared = items(dataset, "SharedFunctionalGroupsSequence", path)[:1]
    owners = []
    for index, group in enumerate(items(dataset, "PerFrameFunctionalGroupsSequence", path)):
        said = next((found[0] for place in (group, *shared) if (found := items(place, "SegmentIdentificationSequence", path))), None)
        owner = () if said is None else numbers(said, "ReferencedSegmentNumber", path)
        if not owner:
            raise InputError(f"{path}: damaged: frame {index + 1} does not say to which segment it belongs")
        owners.append(int(owner[0]))
    return owners


def _bit_frames(dataset: Any, instance: Instance) -> list[np.ndarray]:
    if not is_plain(instance):
        raise InputError(f"{instance.path}: one bit a pixel, but compressed; expected uncompressed PixelData")
    data = pixel_bytes(dataset, instance.path)
    size = instance.rows * instance.columns
    if len(data) * 8 < size * instance.frames:
        raise InputError(
            f"{instance.path}: truncated: {len(data):,} bytes of PixelData, but {instance.frames} frames of "
            f"{instance.rows}×{instance.columns} bits need {-(-size * instance.frames // 8):,}; copy the file again"
        )
    packed = np.frombuffer(data, np.uint8)
    planes = []
    for start in range(0, size * instance.frames, size):
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        planes.append(bits[start % 8 :][:size].reshape(instance.rows, instance.columns))
    return planes


def _grid(frames: list[Frame], instance: Instance, name: str) -> tuple[Grid, list[int]]:
    """The grid that spans all frames, and each frame's slice in it. Empty slices may be left out, so gaps are whole numbers of slices."""
    along = distances(frames, name)
    first = frames[int(along.argmin())]
    turned = [frame.name for frame in frames if np.abs(np.subtract(frame.orientation, first.orientation)).max() > 2e-3]
    if turned:
        raise GeometryError(f"{name}: {len(turned)} frames are turned against the others ({turned[0]}, …); expected one orientation")
    offsets = along - along.min()
    places = np.unique(np.round(offsets, 2))
    gaps = np.diff(places)
    stated = first.thickness if first.thickness > 0 else 1.0
    step = next((size for size in (stated, *gaps[:1], *([gaps.min()] if len(gaps) else [])) if _whole_slices(offsets, size)), None)
    if step is None:
        raise GeometryError(f"{name}: its slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart, on no even grid; resample it first")
    slices = np.round(offsets / step).astype(int)
    count = int(slices.max()) + 1
    normal, (down, across) = normal_of(first.orientation, name), first.spacing
    far = frames[int(along.argmax())]
    exact = (along.max() - along.min()) / (count - 1) if count > 1 else step
    sideways = np.subtract(far.position, first.position) - normal * (along.max() - along.min())
    if np.linalg.norm(sideways) > 0.1 * min(down, across):
        raise GeometryError(f"{name}: gantry tilt: its slices are shifted sideways by {np.linalg.norm(sideways):.3g} mm; resample it first")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([np.array(first.orientation[:3]) * across, np.array(first.orientation[3:]) * down, normal * exact], 1)
    affine[:3, 3] = first.position
    grid = Grid((instance.columns, instance.rows, count), usable_affine(LPS_TO_RAS @ affine, "frames' positions", name))
    return grid, [int(z) for z in slices]


def _whole_slices(offsets: np.ndarray, step: float) -> bool:
    return step > _SAME_PLACE and bool(np.abs(offsets - np.round(offsets / step) * step).max() < 0.1 * step)
