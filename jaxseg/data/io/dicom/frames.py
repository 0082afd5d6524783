"""What one DICOM file says of its frames: where each lies, how large it is, what its values mean. Called by `series`.

Single-frame objects state this once (PS3.3 C.7.6.2), enhanced multi-frame objects in functional groups (C.7.6.16).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.dicom.elements import hashed, items, number, numbers, read_dataset, syntax_of, text
from jaxseg.data.io.stream import open_file
from jaxseg.errors import GeometryError, InputError

SEG_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_SCAN_CLASSES = {
    "1.2.840.10008.5.1.4.1.1." + end
    for end in "2 2.1 2.2 4 4.1 4.4 128 128.1 130 13.1.1 13.1.2 13.1.3".split()  # CT, MR, PET, plain, enhanced and legacy converted; X-ray 3-D
}
_NOT_SCANS = {
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture (a screenshot or a processed picture)",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report (such as a dose report)",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.481": "a radiotherapy object",
    "1.2.840.10008.5.1.4.1.1.66": "a registration, parametric map or other derived object",
    "1.2.840.10008.5.1.4.1.1.6": "ultrasound",
    "1.2.840.10008.5.1.4.1.1.3": "ultrasound",
    "1.2.840.10008.5.1.4.1.1.1": "a projection (X-ray) image",
    "1.2.840.10008.5.1.4.1.1.12": "a projection (X-ray) image",
    "1.2.840.10008.5.1.4.1.1.20": "a nuclear medicine image, whose frames state no position",
    "1.2.840.10008.5.1.4.1.1.77": "a photograph or slide",
    "1.2.840.10008.1.3.10": "a DICOMDIR",
}
_BURNED_IN = (
    "text is burned into its pixels (Burned In Annotation YES) and may name the patient; remove it and clear the tag, or, if it names nobody, "
    "admit such scans with --allow-burned-in (load_volume: burned_in=True)"
)
_DERIVED = {"LOCALIZER": "a localiser", "SCREEN SAVE": "a screenshot", "DOSE": "a dose page"}
MODALITIES = {"PT": "PET", "MR": "MR", "CT": "CT"}
_OTHER = set("SEG RTSTRUCT RTDOSE RTPLAN SR KO PR OT US NM CR DX MG XA DOC REG SC".split())
# Elements that tell volumes apart which share every position: phases, echoes, diffusion weights, Dixon parts.
_PLAIN_KINDS = ("TemporalPositionIdentifier AcquisitionNumber EchoNumbers EchoTime DiffusionBValue DiffusionGradientOrientation "
                "TriggerTime ImageType InversionTime FrameReferenceTime").split()  # fmt: skip
_HEADER = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality Rows Columns NumberOfFrames BitsAllocated BitsStored "
    "HighBit PixelRepresentation SamplesPerPixel PhotometricInterpretation ImagePositionPatient ImageOrientationPatient PixelSpacing "
    "SliceThickness SpacingBetweenSlices RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence AcquisitionDate AcquisitionTime "
    "ContentTime BurnedInAnnotation SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
).split() + _PLAIN_KINDS


@dataclass(frozen=True)
class Instance:
    """One file: hashed identifiers, what kind of object it is, how its pixels are stored, and why it is no scan (or empty)."""

    path: Path
    bytes: int
    series: str
    study: str
    patient: str
    uid: str
    sop_class: str
    modality: str
    syntax: str
    rows: int
    columns: int
    frames: int
    bits: int
    bits_stored: int
    signed: bool
    photometric: str
    rescale_type: str
    reason: str = ""
    burned_in: bool = False


@dataclass(frozen=True)
class Frame:
    """One slice: its first pixel's position and the directions of its rows and columns (LPS), pixel spacing (down, across; mm), scaling.

    `thickness` is the stated distance of slices, used for a single one alone; `kinds` tells volumes at the same place apart.
    """

    instance: Instance
    index: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    slope: float
    inter: float
    kinds: dict[str, str] = field(default_factory=dict, hash=False)
    time: str = ""

    @property
    def name(self) -> str:
        """The file's name, with the frame's number where the file has several."""
        return self.instance.path.name + (f" frame {self.index + 1}" if self.instance.frames > 1 else "")


def read_frames(path: Path, rules: Rules) -> tuple[Instance, list[Frame]]:
    """The header of a DICOM file; no frames where `Instance.reason` says that it is no scan.

    Raises:
        InputError: not DICOM or damaged; GeometryError: a frame without a usable position, orientation or spacing.
    """
    with open_file(path) as file:
        dataset = read_dataset(file, path, rules, only=_HEADER)
    instance = describe(dataset, path)
    if instance.reason == _BURNED_IN and rules.burned_in:
        instance = replace(instance, reason="", burned_in=True)
    if instance.reason:
        return instance, []
    if instance.rows < 1 or instance.columns < 1 or instance.bits not in (8, 16, 32):
        found = f"{instance.rows} rows, {instance.columns} columns, {instance.bits} bits"
        raise InputError(f"{path}: damaged, or no picture: {found}; expected at least 1 × 1 pixels of 8, 16 or 32 bits")
    if "ModalityLUTSequence" in dataset:
        raise InputError(f"{path}: values are given by a Modality LUT; expected a rescale slope and intercept")
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return instance, [_plain_frame(dataset, instance)]
    return instance, enhanced_frames(dataset, instance)


def enhanced_frames(dataset: Any, instance: Instance) -> list[Frame]:
    """The frames of a multi-frame object, by its functional groups."""
    groups = items(dataset, "PerFrameFunctionalGroupsSequence", instance.path)
    if len(groups) != instance.frames:
        raise InputError(f"{instance.path}: damaged: {instance.frames} frames, but functional groups for {len(groups)}")
    shared = (items(dataset, "SharedFunctionalGroupsSequence", instance.path) or [None])[0]
    return [_enhanced_frame(dataset, [group, shared], instance, index) for index, group in enumerate(groups)]


def describe(dataset: Any, path: Path) -> Instance:
    """What a dataset says of itself, without its frames."""

    def whole(keyword: str, default: int = 0) -> int:
        return int(number(dataset, keyword, path, default))

    bits = whole("BitsAllocated", 16)
    return Instance(
        path=path,
        bytes=path.stat().st_size,
        series=hashed(text(dataset, "SeriesInstanceUID")),
        study=hashed(text(dataset, "StudyInstanceUID")),
        patient=hashed(text(dataset, "PatientID")),
        uid=hashed(text(dataset, "SOPInstanceUID")),
        sop_class=text(dataset, "SOPClassUID"),
        modality=MODALITIES.get(text(dataset, "Modality"), text(dataset, "Modality") if text(dataset, "Modality") in _OTHER else ""),
        syntax=syntax_of(dataset),
        rows=whole("Rows"),
        columns=whole("Columns"),
        frames=max(1, whole("NumberOfFrames", 1)),
        bits=bits,
        bits_stored=whole("BitsStored", bits),
        signed=whole("PixelRepresentation") == 1,
        photometric=text(dataset, "PhotometricInterpretation") or "MONOCHROME2",
        rescale_type=text(dataset, "RescaleType"),
        reason=_why_no_scan(dataset, whole("SamplesPerPixel", 1), whole("NumberOfFrames", 1)),
    )


def _why_no_scan(dataset: Any, samples: int, frames: int) -> str:
    """What an object is that is no scan; empty for CT, MR, PET and anything else that states positions in the patient."""
    uid = text(dataset, "SOPClassUID")
    words = set(text(dataset, "ImageType").upper().split("\\"))
    derived = next((reason for word, reason in _DERIVED.items() if word in words), "")
    if uid not in _SCAN_CLASSES:
        parents = [known for known in _NOT_SCANS if uid == known or uid.startswith(f"{known}.")]
        if parents:
            return f"not a scan: {_NOT_SCANS[max(parents, key=len)]}"
        if text(dataset, "Modality") not in MODALITIES:
            return "not a scan: its modality is none of CT, MR and PET"
    if derived:
        return f"not a scan: {derived}"
    if samples != 1:
        return f"not a scan: {samples} colours a pixel"
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        return "several frames that state no position"
    return _BURNED_IN if text(dataset, "BurnedInAnnotation").upper() == "YES" else ""


def _plain_frame(dataset: Any, instance: Instance) -> Frame:
    path = instance.path
    where = [numbers(dataset, key, path) for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")]
    _check_place(where, path.name, path)
    return Frame(
        instance,
        0,
        where[0],
        where[1],
        where[2],
        number(dataset, "SpacingBetweenSlices", path, number(dataset, "SliceThickness", path, 0.0)),
        number(dataset, "RescaleSlope", path, 1.0),
        number(dataset, "RescaleIntercept", path, 0.0),
        {name: text(dataset, name) for name in _PLAIN_KINDS},
        text(dataset, "AcquisitionDate") + text(dataset, "AcquisitionTime") or text(dataset, "ContentTime"),
    )


def _enhanced_frame(dataset: Any, groups: list[Any], instance: Instance, index: int) -> Frame:
    path = instance.path

    def macro(name: str) -> Any:
        """The item of a functional group: the frame's own, else the one that all frames share, else the object's own elements."""
        own = [found[0] for group in groups if group is not None and (found := items(group, name, path))]
        return own[0] if own else dataset

    measures, content, values = macro("PixelMeasuresSequence"), macro("FrameContentSequence"), macro("PixelValueTransformationSequence")
    where = [
        numbers(macro("PlanePositionSequence"), "ImagePositionPatient", path),
        numbers(macro("PlaneOrientationSequence"), "ImageOrientationPatient", path),
        numbers(measures, "PixelSpacing", path),
    ]
    _check_place(where, f"{path.name} frame {index + 1}", path)
    kinds = {"TemporalPositionIndex": text(content, "TemporalPositionIndex"), "StackID": text(content, "StackID")}
    kinds |= {"EffectiveEchoTime": text(macro("MREchoSequence"), "EffectiveEchoTime")}
    kinds |= {"DiffusionBValue": text(macro("MRDiffusionSequence"), "DiffusionBValue")}
    kinds |= {"FrameType": text(macro("MRImageFrameTypeSequence"), "FrameType") + text(macro("CTImageFrameTypeSequence"), "FrameType")}
    return Frame(
        instance,
        index,
        where[0],
        where[1],
        where[2],
        number(measures, "SpacingBetweenSlices", path, number(measures, "SliceThickness", path, 0.0)),
        number(values, "RescaleSlope", path, 1.0),
        number(values, "RescaleIntercept", path, 0.0),
        kinds,
        text(content, "FrameAcquisitionDateTime"),
    )


def _check_place(where: Sequence[tuple[float, ...]], name: str, path: Path) -> None:
    position, orientation, spacing = where
    if len(position) != 3 or len(orientation) != 6:
        raise GeometryError(f"{path}: {name} states no position or orientation in the patient, so that its place is unknown")
    if len(spacing) != 2 or min(spacing) <= 0:
        raise GeometryError(f"{path}: PixelSpacing of {name} is {list(spacing)}, expected two positive numbers in mm")
