"""Which series a DICOM segmentation or structure set was drawn on, by its own references. Called by `data.contoured`."""

from pathlib import Path

from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.dicom.elements import hashed, items, read_dataset, text
from jaxseg.data.io.stream import open_file


def series_drawn_on(path: Path, rules: Rules | None = None) -> tuple[str, ...]:
    """Keys (`ScanRef.key`) of the series that the object refers to, in its order; empty where it names none.

    A SEG says it in ReferencedSeriesSequence (DICOM PS3.3 C.12.4), an RTSTRUCT per frame of reference (C.8.8.5). A series of several volumes has
    keys of their own, which are not these.

    Raises:
        InputError: not DICOM, or damaged.
    """
    with open_file(path) as file:
        only = ["SOPClassUID", "Modality", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]
        dataset = read_dataset(file, path, rules or Rules(), only=only)
    found = list(items(dataset, "ReferencedSeriesSequence", path))
    for frame in items(dataset, "ReferencedFrameOfReferenceSequence", path):
        for study in items(frame, "RTReferencedStudySequence", path):
            found += items(study, "RTReferencedSeriesSequence", path)
    named = dict.fromkeys(text(item, "SeriesInstanceUID") for item in found)
    return tuple(hashed(f"series {hashed(uid)}") for uid in named if uid)
