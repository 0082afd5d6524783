"""BIDS: subjects, sessions, contrasts and derivatives are cases, channels and labels; what is no 3-D scan is passed over."""

import numpy as np
import pytest

from jaxseg.data import bids
from jaxseg.data.cases import find_cases
from jaxseg.data.io import save_volume
from jaxseg.data.volume import Volume


def put(root, *names):
    for name in names:
        values = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
        save_volume(Volume(values, np.eye(4), ("a",)), root / name)
    return root


@pytest.mark.parametrize(
    ("name", "role", "channel"),
    [
        ("sub-01_T1w", "image", "T1w"),
        ("sub-01_ses-2_acq-mprage_run-1_T1w", "image", "acq-mprage_run-1_T1w"),
        ("sub-01_ce-gadolinium_T1w", "image", "T1C"),
        ("sub-01_FLAIR", "image", "FLAIR"),
        ("sub-01_task-rest_bold", None, "task-rest_bold"),
        ("sub-01_label-GM_probseg", None, "probseg"),
        ("sub-01_space-T1w_desc-brain_mask", "mask", "space-T1w_desc-brain_mask"),
        ("sub-r001s001_space-MNI_label-L_desc-T1lesion_mask", "label", "space-MNI_desc-T1lesion_mask"),
        ("sub-01_desc-aseg_dseg", "label", "desc-aseg_dseg"),
    ],
)
def test_names_say_what_they_are(name, role, channel):
    parsed = bids.parse(name)
    assert parsed is not None and parsed.role == role and parsed.full_channel == channel


@pytest.mark.parametrize("name", ["T1w", "sub-01", "case_01_T1w", "sub-01_T1-w", "sub_01_T1w"])
def test_other_names_are_no_bids(name):
    assert bids.parse(name) is None


def test_subjects_with_sessions_and_labels_in_derivatives_become_cases(tmp_path):
    for subject in ("01", "02"):
        for session in ("1", "2"):
            stem = f"sub-{subject}_ses-{session}"
            anat = f"sub-{subject}/ses-{session}/anat"
            put(tmp_path, f"{anat}/{stem}_T1w.nii.gz", f"{anat}/{stem}_ce-gd_T1w.nii.gz", f"{anat}/{stem}_FLAIR.nii.gz")
            put(tmp_path, f"sub-{subject}/ses-{session}/func/{stem}_task-rest_bold.nii.gz")
            put(
                tmp_path,
                f"derivatives/masks/{anat}/{stem}_label-lesion_mask.nii.gz",
                f"derivatives/prep/{anat}/{stem}_desc-preproc_T1w.nii.gz",
            )
            put(tmp_path, f"derivatives/prep/{anat}/{stem}_desc-brain_mask.nii.gz")
    found = find_cases(tmp_path)
    assert found.kind == "BIDS" and set(found.channels) == {"T1w", "T1C", "FLAIR"}
    assert [case.id for case in found] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"]
    assert all(len(case.images) == 3 and case.label is not None and case.label.name.endswith("label-lesion_mask.nii.gz") for case in found)
    assert not any("derivatives" in path.parts for case in found for path in case.images.values())


def test_several_files_of_one_contrast_keep_what_tells_them_apart(tmp_path):
    put(tmp_path, "sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-01/anat/sub-01_run-2_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz")
    assert set(find_cases(tmp_path).channels) == {"run-1_T1w", "run-2_T1w", "T2w"}


def test_a_folder_of_derivatives_alone_gives_its_images(tmp_path):
    anat = "derivatives/ATLAS/sub-r1/ses-1/anat"
    put(tmp_path, f"{anat}/sub-r1_ses-1_space-MNI_T1w.nii.gz", f"{anat}/sub-r1_ses-1_space-MNI_label-L_desc-T1lesion_mask.nii.gz")
    [case] = find_cases(tmp_path / "derivatives/ATLAS")
    assert set(case.images) == {"T1w"} and case.label is not None
