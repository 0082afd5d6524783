"""A folder of DICOM series is cases as any other layout is: a study each, a channel a modality."""

import pytest

from jaxseg.data.archive import index_archive
from jaxseg.data.cases import find_cases
from jaxseg.data.index_cases import cases_of_index
from jaxseg.data.io import load_volume
from jaxseg.errors import InputError
from jaxseg.prepare import prepare_folder
from tests.dicom_files import CT, PET, SEG, dataset, save, stack


def study(folder, uid, patient, *kinds):
    for number, kind in enumerate(kinds):
        elements = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.{number}", "PatientID": patient}
        save(folder / f"series{number}", stack(5, sop_class=kind, Modality={CT: "CT", PET: "PT"}[kind], **elements))


def test_studies_are_cases_and_modalities_channels(tmp_path):
    study(tmp_path / "in/p1/first", "1.2.1", "A", CT, PET)
    study(tmp_path / "in/p1/second", "1.2.2", "A", CT, CT)
    study(tmp_path / "in/p2", "1.2.3", "B", CT)
    found = find_cases(tmp_path / "in")
    assert found.kind == "DICOM" and found.channels == ("CT", "PET") and not found.labelled
    assert [case.id for case in found] == ["p1_first", "p1_second", "p1_second_2", "p2_series0"]
    assert [case.patient for case in found] == ["p1_first"] * 3 + ["p2_series0"]
    assert load_volume(found.cases[0].images["CT"]).shape == (6, 5, 5)
    assert find_cases(tmp_path / "in", channels=["ct"]).channels == ("ct",)
    index_archive(tmp_path / "in", tmp_path / "index")
    assert len(cases_of_index(tmp_path / "index", tmp_path / "drawn").cases) == 3


def test_a_series_is_a_case_called_by_its_folder_and_becomes_a_store(tmp_path):
    found = find_cases(save(tmp_path / "thorax", stack(5)))
    assert [(case.id, dict(case.images)) for case in found] == [("thorax", {"CT": tmp_path / "thorax"})]
    assert prepare_folder(tmp_path / "thorax", tmp_path / "store", processes=1).names == ("thorax",)


def test_dicom_files_without_a_scan_say_why(tmp_path):
    with pytest.raises(InputError, match="DICOM files hold no scan: in: a DICOM SEG object"):
        find_cases(save(tmp_path / "in", [dataset(SEG)]))
