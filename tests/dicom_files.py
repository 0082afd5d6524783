"""DICOM files for tests, written with pydicom: slices, enhanced multi-frame objects, segmentations and structure sets."""

import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PET = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "4", "128"))
ENHANCED_CT, SEG, RTSTRUCT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "66.4", "481.3"))
SERIES = generate_uid(entropy_srcs=["series"])
AXIAL = (1.0, 0, 0, 0, 1, 0)


def dataset(sop_class: str = CT, **elements) -> Dataset:
    """An object that names its class and a patient, with these elements."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.SeriesInstanceUID, made.StudyInstanceUID = SERIES, generate_uid(entropy_srcs=["study"])
    made.PatientName, made.PatientID, made.PatientBirthDate = "SENTINEL^NAME", "SENTINEL-ID", "19630229"
    made.Modality = {CT: "CT", MR: "MR", PET: "PT", ENHANCED_CT: "CT", SEG: "SEG", RTSTRUCT: "RTSTRUCT"}.get(sop_class, "OT")
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def with_pixels(made: Dataset, pixels: np.ndarray) -> Dataset:
    """Pixels `(rows, columns)` or `(frames, rows, columns)`, 16 bits, stored in an object."""
    made.Rows, made.Columns = pixels.shape[-2:]
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    return made


def a_slice(
    position, pixels: np.ndarray | None = None, *, sop_class: str = CT, orientation=AXIAL, spacing=(0.5, 0.75), **elements
) -> Dataset:
    """One slice of a series at `position` (LPS mm); `spacing` is (down, across)."""
    made = dataset(sop_class, ImagePositionPatient=[float(f"{x:.6f}") for x in position], ImageOrientationPatient=list(orientation))
    made.PixelSpacing, made.SliceThickness = list(spacing), 3.0
    made = with_pixels(made, np.arange(30, dtype=np.int16).reshape(5, 6) if pixels is None else pixels)
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def stack(count: int = 5, step: float = 2.0, **elements) -> list[Dataset]:
    """Axial slices `step` mm apart whose pixels are `100 z + 10 row + column`."""
    plane = (10 * np.arange(5)[:, None] + np.arange(6)).astype(np.int16)
    return [a_slice((-10.0, 20.0, 30.0 + step * z), plane + np.int16(100 * z), InstanceNumber=count - z, **elements) for z in range(count)]


def to_bytes(made: Dataset) -> bytes:
    """The file's bytes. Its identifiers are made when it is written, so that copies of a slice are slices of their own."""
    if "SOPInstanceUID" not in made:
        made.SOPInstanceUID = generate_uid()
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def save(folder: Path, slices: list[Dataset], name: str = "s{}.dcm") -> Path:
    """Write slices as s0.dcm, s1.dcm, … into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, made in enumerate(slices):
        (folder / name.format(number)).write_bytes(to_bytes(made))
    return folder


def item(**elements) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def enhanced(positions, pixels: np.ndarray, *, sop_class: str = ENHANCED_CT, frames: list[dict] | None = None, **elements) -> Dataset:
    """A multi-frame object with one functional group a frame; `frames` adds sequences (name → item) to each."""
    made = with_pixels(dataset(sop_class, NumberOfFrames=len(positions), ImageType=["ORIGINAL", "PRIMARY"]), pixels)
    made.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=3.0)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=list(AXIAL))],
        )
    ]
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=list(map(float, position)))]) for position in positions]
    for group, more in zip(groups, frames or [{}] * len(groups), strict=True):
        for name, value in more.items():
            setattr(group, name, [value])
    made.PerFrameFunctionalGroupsSequence = groups
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def segmentation(positions, planes: np.ndarray, owners: list[int], *, kind: str = "BINARY", labels: dict[int, str], **elements) -> Dataset:
    """A SEG whose frame k is `planes[k]`, of segment `owners[k]`; binary planes are packed without padding between frames."""
    frames = [{"SegmentIdentificationSequence": item(ReferencedSegmentNumber=owner)} for owner in owners]
    made = enhanced(positions, planes.astype(np.uint8), sop_class=SEG, frames=frames if kind != "LABELMAP" else None)
    made.SegmentationType = kind
    made.SegmentSequence = [item(SegmentNumber=number, SegmentLabel=label) for number, label in labels.items()]
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 2.0
    if kind == "BINARY":
        made.BitsAllocated = made.BitsStored = 1
        made.HighBit = 0
        packed = np.packbits(planes.astype(bool).ravel(), bitorder="little").tobytes()
        made.PixelData = packed + b"\0" * (len(packed) % 2)
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def structures(contours: dict[str, list[np.ndarray]], kind: str = "CLOSED_PLANAR") -> Dataset:
    """An RTSTRUCT; contours are `(n, 3)` LPS mm."""
    made = dataset(RTSTRUCT)
    made.StructureSetROISequence = [item(ROINumber=number, ROIName=name) for number, name in enumerate(contours, 1)]
    made.ROIContourSequence = [
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(ContourGeometricType=kind, NumberOfContourPoints=len(each), ContourData=[f"{x:.4f}" for x in each.ravel()])
                for each in contours[name]
            ],
        )
        for number, name in enumerate(contours, 1)
    ]
    return made
