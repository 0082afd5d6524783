"""Folders of DICOM studies for tests: a series of five slices each, and the SEG and RTSTRUCT objects that were drawn on it."""

import numpy as np
from pydicom.uid import generate_uid

from tests.dicom_files import item, save, segmentation, stack, structures

PLACES = [(-10.0, 20.0, 30.0 + 2 * z) for z in range(5)]  # of the slices of `stack`: 6 columns of 0.75 mm, 5 rows of 0.5 mm


def uid(name):
    return generate_uid(entropy_srcs=[name])


def scan(folder, study, *, series="", **elements):
    """A series of five slices, of a patient of its own, in a folder of its own."""
    named = {"StudyInstanceUID": uid(study), "SeriesInstanceUID": uid(study + series), "PatientID": study, **elements}
    return save(folder, stack(**named))


def drawn_in_seg(folder, study, masks, *, about=None, name="contours{}.dcm", **elements):
    """A SEG of masks (6, 5, 5), slices without a voxel left out, that says which series it was drawn on."""
    frames = [(number, z) for number, mask in enumerate(masks.values(), 1) for z in range(5) if mask[:, :, z].any()]
    planes = np.stack([list(masks.values())[number - 1][:, :, z].T for number, z in frames])
    said = {} if about == "" else {"ReferencedSeriesSequence": [item(SeriesInstanceUID=uid(about or study))]}
    labels = dict(enumerate(masks, 1))
    made = segmentation([PLACES[z] for _, z in frames], planes, [number for number, _ in frames], labels=labels, **said)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = uid(study), uid(study + name), study
    for key, value in elements.items():
        setattr(made, key, value)
    return save(folder, [made], name)


def square(z, low=0.9, high=3.1):
    """A closed contour from 0.9 to 3.1 mm of the first voxel along columns and rows, in slice z; LPS mm."""
    x, y, place = PLACES[z]
    return np.array([[x + a, y + b, place] for a, b in ((low, low), (high, low), (high, high), (low, high))])


def drawn_in_structures(folder, study, contours, *, name="rs{}.dcm"):
    made = structures(contours)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = uid(study), uid(study + name), study
    series = [item(SeriesInstanceUID=uid(study))]
    made.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[item(RTReferencedSeriesSequence=series)])]
    return save(folder, [made], name)


def box(x, y, z):
    mask = np.zeros((6, 5, 5), bool)
    mask[x, y, z] = True
    return mask
