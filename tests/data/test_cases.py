"""Folders as people lay them out are sorted into cases by names alone; what is ambiguous is refused with the names."""

import itertools
import json
import shutil
import unicodedata
from collections import Counter

import pytest

from jaxseg.data.archive.walk import declared_channels
from jaxseg.data.cases import find_cases
from jaxseg.data.scan_names import modalities_differ, modality, modality_of_file, numbers_are_channels, role_of, split_name
from jaxseg.errors import InputError
from jaxseg.pairing import label_files


@pytest.fixture
def lay(tmp_path):
    """Make empty files: names are all that matters (and broken scans must not be opened)."""

    def lay(*names, **jsons):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        for name, data in jsons.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
        return tmp_path

    return lay


def table(found, folder):
    return {
        case.id: (
            {name: str(path.relative_to(folder)) for name, path in case.images.items()},
            case.label and str(case.label.relative_to(folder)),
        )
        for case in found
    }


def test_flat_folder(lay):
    folder = lay("IXI012_T1.nii.gz", "IXI012_structures.nii.gz", "IXI013_T1.nii.gz", ".hidden.nii.gz", "LICENSE.txt")
    found = find_cases(folder)
    assert table(found, folder) == {
        "IXI012": ({"T1": "IXI012_T1.nii.gz"}, "IXI012_structures.nii.gz"),
        "IXI013": ({"T1": "IXI013_T1.nii.gz"}, None),
    }
    assert found.channels == ("T1",) and found.labels is None and len(found.labelled) == 1 and len(found) == 2


def test_dicom_beside_other_scans_is_counted_in_a_warning(lay):
    folder = lay("A/T1.nii.gz", "B/T1.nii.gz", "C/1/IM_1.dcm", "C/1/IM_2.DCM", "C/1/.IM_3.dcm")
    with pytest.warns(RuntimeWarning, match=r"2 DICOM files \(\.dcm\) lie beside scans of another format and are passed over"):
        assert [case.id for case in find_cases(folder)] == ["A", "B"]


def test_flat_folder_with_made_up_channel_names(lay):
    found = find_cases(lay(*[f"sub_{i}_{name}.nii" for i in range(3) for name in ("warm", "cold", "tumor_mask")]))
    assert [case.id for case in found] == ["sub_0", "sub_1", "sub_2"] and found.channels == ("cold", "warm") and len(found.labelled) == 3


def test_flat_folder_of_single_files(lay):
    assert [case.id for case in find_cases(lay("anna.nii.gz", "bert.nii.gz"))] == ["anna", "bert"]
    found = find_cases(lay(*[f"many/case_{i:04}.nii.gz" for i in range(12)]) / "many")
    assert len(found) == 12 and found.channels == ("image",) and found.cases[3].id == "case_0003"
    assert find_cases(lay("nn/a_0000.nii.gz", "nn/a_0001.nii.gz", "nn/b_0000.nii.gz") / "nn").channels == ("0000", "0001")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["images/case_{}"] * 6, 6),
        (["images/case_{}"] * 6 + ["labels/case_{}"] * 2, 6),
        (["images/case_{}"] * 3 + ["labels/case_{}_seg"] * 2, 3),
        (["images/img_{}"] * 3 + ["labels/label_{}"] * 1, 3),
        (["images/lung_tumor_{}"] * 3, 3),
        (["scan_{}"] * 4, 4),
        (["case_{}", "case_{}_seg"], 1),
        (["T1/case_{}", "labels/case_{}_seg"], 1),
        (["siteA/case_{}"] * 10, 10),
    ],
)
def test_numbers_of_four_digits_may_count_cases(lay, names, cases, first):
    seen = Counter()
    files = []
    for name in names:
        files.append(f"{name.format(f'{first + seen[name]:04}')}.nii.gz")
        seen[name] += 1
    found = find_cases(lay(*files))
    assert len(found) == cases and len(found.channels) == 1 and all(case.id[-4:].isdigit() for case in found)
    assert len(found.labelled) == sum("labels" in name or "_seg" in name for name in names)
    assert len({case.patient or case.id for case in found}) == cases


def test_which_numbers_of_four_digits_are_channels():
    def channels(*names, owners=()):
        return numbers_are_channels(names, owners)

    assert channels("a_0000", "b_0000") and channels("a_0000", "a_0001", "b_0000", "b_0001")
    assert channels("a_0000", "a_0001", "b_0000") and channels("a_0000", "a_0001", "b_0001")  # some lack a channel
    assert channels("BRATS_001_0000", "BRATS_001_0001") and channels("a_0000") and channels("a_0001", owners=["a"])
    assert channels("a_0000", "a_0001", "a_seg") and not channels("a_0000", "a_0000_seg", "b_0000")
    assert not channels("A_0001", "A_0002", "B_0001", "B_0002")  # from 1
    assert not channels("a_0000", "a_0002", "b_0000", "b_0002")  # a gap
    assert not channels("a_0000", "b_0001", "c_0002") and not channels("a_0000", "a_0001")
    assert not channels(*(f"{site}_{number:04}" for site in "AB" for number in range(9))) and not channels("a", "b")


def test_a_folder_per_case_keeps_numbers_as_channels(lay):
    assert find_cases(lay(*[f"p{i}/p{i}_000{c}.nii" for i in (1, 2) for c in (0, 1)])).channels == ("0000", "0001")


def test_folder_per_case(lay):
    names = ("T1", "PET", "CT", "T1_tumour", "brainmask")
    folder = lay(*[f"STS_00{i}/{name}.nii.gz" for i in (1, 2) for name in names if (i, name) != (2, "CT")], "LICENSE.txt", ".git/x.nii")
    found = find_cases(folder)
    assert found.channels == ("CT", "PET", "T1") and set(found.cases[1].images) == {"PET", "T1"}
    assert found.cases[0].label == folder / "STS_001/T1_tumour.nii.gz"
    assert find_cases(folder, channels=["t1", "CT"]).channels == ("t1", "CT")
    assert list(find_cases(folder, channels=["pet", "T1"]).cases[0].images) == ["pet", "T1"]
    with pytest.raises(InputError, match=r"no case has the channel FLAIR; there is: CT, PET, T1"):
        find_cases(folder, channels=["FLAIR"])
    with pytest.raises(InputError, match="case STS_002 has none of the channels CT"):
        find_cases(folder, channels=["CT"])


def test_brats_names(lay):
    folder = lay(*[f"BraTS20_Training_00{i}/BraTS20_Training_00{i}_{name}.nii.gz" for i in (1, 2) for name in ("flair", "t1ce", "seg")])
    found = find_cases(folder)
    assert found.channels == ("flair", "t1ce") and len(found.labelled) == 2 and found.cases[0].id == "BraTS20_Training_001"


def test_one_differently_named_file_per_folder_is_one_channel(lay):
    assert find_cases(lay("a/xyz.nii", "b/uvw.nii")).channels == ("image",)


def test_nnunet(lay):
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    folder = lay(
        *[f"imagesTr/case_{i}_000{c}.nii.gz" for i in (1, 2) for c in (0, 1)], "labelsTr/case_1.nii.gz", "labelsTr/case_2.nii.gz",
        "imagesTs/case_3_0000.nii.gz",
        "imagesTs/case_3_0001.nii.gz", dataset={"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"},
    )  # fmt: skip
    found = find_cases(folder)
    assert found.kind == "nnU-Net" and found.channels == ("T1", "T2") and found.regions
    assert found.labels == {"whole": [1, 2], "core": [2], "ignore": 3}
    assert [(case.id, case.split, case.label is not None) for case in found] == [
        ("case_1", "train", True),
        ("case_2", "train", True),
        ("case_3", "test", False),
    ]
    assert found.cases[0].images["T2"] == folder / "imagesTr/case_1_0001.nii.gz"


def test_one_folder_of_a_dataset_is_its_cases_with_their_names_and_labels(lay, monkeypatch):
    described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    images = [f"images{part}/case_{i}_000{c}.nii.gz" for part, i in (("Tr", 1), ("Tr", 2), ("Ts", 1)) for c in (0, 1)]
    folder = lay(*images, "labelsTr/case_1.nii.gz", "labelsTs/case_1.nii.gz", dataset=described)
    test, train = find_cases(folder / "imagesTs"), find_cases(folder / "imagesTr")
    for found in (test, train):
        assert found.channels == ("T1", "T2") and found.labels == {"tumour": 1} and found.kind == "nnU-Net"
    assert [(case.id, case.label) for case in test] == [("case_1", folder / "labelsTs/case_1.nii.gz")]
    assert [(case.id, case.label) for case in train] == [("case_1", folder / "labelsTr/case_1.nii.gz"), ("case_2", None)]
    assert train.cases[1].images["T2"] == folder / "imagesTr/case_2_0001.nii.gz"
    monkeypatch.chdir(folder / "imagesTs")
    assert [case.label.name for case in find_cases(".").labelled] == ["case_1.nii.gz"] and len(find_cases(".")) == 1
    with pytest.raises(InputError, match="twice"):
        find_cases(folder)


def test_one_folder_of_a_decathlon_is_its_cases(lay):
    described = {
        "modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "tumour"}, "test": ["./imagesTs/c.nii.gz"],
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"],
    }  # fmt: skip
    folder = lay(*[f"{part}/{name}.nii.gz" for part in ("imagesTr", "labelsTr") for name in "ab"], "imagesTs/c.nii.gz", dataset=described)
    assert [(case.id, case.label is None, case.packed) for case in find_cases(folder / "imagesTs")] == [("c", True, ("FLAIR", "T1w"))]
    assert [case.id for case in find_cases(folder / "imagesTr").labelled] == ["a", "b"]
    assert declared_channels(folder / "imagesTr", None) == ("FLAIR", "T1w") and declared_channels(folder / "labelsTr", None) == ()


@pytest.mark.parametrize(
    "layout",
    [("images/{}.nii", "labels/{}.nii"), ("{}_T1.nii", "{}_seg.nii"), ("{}/T1.nii", "labels/{}.nii"), ("{}/{}_T1.nii", "{}/{}_seg.nii")],
)
def test_accents_in_one_piece_or_two_are_the_same_name(lay, layout):
    """Copies that macOS made may hold them in two; half the files went through one."""
    forms = [unicodedata.normalize(form, "Zoë 1") for form in ("NFC", "NFD")]
    alone = "{}/" in layout[1]  # one folder holds both
    for image, label in itertools.product(forms, forms):
        folder = lay(
            layout[0].replace("{}", image),
            layout[1].replace("{}", image if alone else label),
            *(name.replace("{}", "b") for name in layout),
        )
        assert [(case.id, case.label is not None) for case in find_cases(folder)] == [(forms[0], True), ("b", True)]
        assert forms[0] in label_files(folder / "labels" if "labels" in layout[1] else folder)
        shutil.rmtree(folder)
        folder.mkdir()


def test_a_dataset_one_level_below_is_found_and_two_are_refused(lay, tmp_path):
    lay("Dataset001/imagesTr/a_0000.nii.gz", "Dataset001/labelsTr/a.nii.gz")
    text = json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}})
    (tmp_path / "Dataset001/dataset.json").write_text(text)
    assert find_cases(tmp_path).labels == {"liver": 1}
    (tmp_path / "Other").mkdir()
    (tmp_path / "Other/dataset.json").write_text(text)
    with pytest.raises(InputError, match="several datasets lie here: Dataset001, Other"):
        find_cases(tmp_path)


def test_decathlon(lay):
    data = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema"},
        "training": [{"image": "./imagesTr/B_1.nii.gz", "label": "./labelsTr/B_1.nii.gz"}],
        "test": ["./imagesTs/B_2.nii.gz"],
    }
    folder = lay("imagesTr/B_1.nii.gz", "imagesTs/B_2.nii.gz", "labelsTr/B_1.nii.gz", "imagesTr/._B_1.nii.gz", dataset=data)
    found = find_cases(folder)
    assert found.kind == "Medical Decathlon" and found.labels == {"edema": 1} and found.channels == ("FLAIR", "T1w")
    assert set(found.cases[0].images.values()) == {folder / "imagesTr/B_1.nii.gz"} and found.cases[1].split == "test"
    turned = find_cases(folder, channels=["T1w"]).cases[0]
    assert list(turned.images) == ["T1w"] and turned.packed == ("FLAIR", "T1w")
    data["training"] = [{"image": "imagesTr/B_0001.nii.gz", "label": "labelsTr/B_0001.nii.gz"}]
    data["test"] = []
    counted = find_cases(lay("imagesTr/B_0001.nii.gz", "labelsTr/B_0001.nii.gz", dataset=data))
    assert counted.kind == "Medical Decathlon" and counted.channels == ("FLAIR", "T1w") and [case.id for case in counted] == ["B_0001"]
    data["training"][0]["image"] = "../../secret.nii.gz"
    with pytest.raises(InputError, match="is not a file inside this folder"):
        find_cases(lay(dataset=data))


def test_images_and_labels(lay):
    folder = lay("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    assert table(find_cases(folder), folder) == {
        "a": ({"image": "images/a.nii.gz"}, "labels/a.nii.gz"),
        "b": ({"image": "images/b.nii.gz"}, None),
    }
    several = lay("m/images/p1_T1.nii", "m/images/p1_T2.nii", "m/labels/p1.nii") / "m"
    assert find_cases(several).channels == ("T1", "T2")


def test_what_is_ambiguous_is_refused_with_names(lay):
    two = lay("two/p1/T1.nii", "two/p1/seg.nii", "two/p1/lesion.nii") / "two"
    with pytest.raises(InputError, match=r"case p1 has 2 files that may be its label: lesion\.nii, seg\.nii; say which"):
        find_cases(two)
    assert find_cases(two, label="lesion").cases[0].label == two / "p1/lesion.nii"
    with pytest.raises(InputError, match=r"case q has a label \(q_seg.nii\) but no image"):
        find_cases(lay("lone/p_T1.nii", "lone/q_seg.nii") / "lone")
    with pytest.raises(InputError, match=r"two files for channel 'T1': p_T1.nii and p_T1.nii.gz"):
        find_cases(lay("same/p_T1.nii", "same/p_T1.nii.gz") / "same")
    with pytest.raises(InputError, match=r"1 case ids appear twice .*: a;"):
        find_cases(lay("twice/imagesTr/a_0000.nii", "twice/imagesTs/a_0000.nii") / "twice")
    with pytest.raises(InputError, match=r"both scans .* and folders with scans"):
        find_cases(lay("mix/a.nii", "mix/b/c.nii") / "mix")


def test_labels_are_passed_over_where_none_are_needed(lay):
    two = lay("two/p1/T1.nii", "two/p1/seg.nii", "two/p1/lesion.nii", "two/p2/T1.nii") / "two"
    found = find_cases(two, labels=False)
    assert [case.id for case in found] == ["p1", "p2"] and found.channels == ("T1",) and not found.labelled
    stray = lay("stray/p_T1.nii", "stray/q_mask.nii", "stray/p_brainmask.nii") / "stray"
    [case] = find_cases(stray, labels=False)
    assert case.id == "p" and case.mask == stray / "p_brainmask.nii"
    assert [case.id for case in find_cases(lay("said/p/T1.nii", "said/p/expert.nii") / "said", label="expert", labels=False)] == ["p"]
    with pytest.raises(InputError, match=r"only files that are called like labels or masks, such as q_seg.nii"):
        find_cases(lay("none/q_seg.nii") / "none", labels=False)


def test_a_label_called_unlike_any_word_known_here(lay):
    folder = lay("p1/T1.nii", "p1/expert2.nii", "p2/T1.nii", "p2/expert2.nii")
    assert find_cases(folder).channels == ("T1", "expert2")
    assert len(find_cases(folder, label="expert2").labelled) == 2 and find_cases(folder, label="expert2").channels == ("T1",)


def test_nothing_found_says_what_was_looked_at(lay, tmp_path):
    with pytest.raises(InputError, match=r"no cases found; there is 2 \.dcm, 1 \.txt\. Layouts that are understood"):
        find_cases(lay("x/1.dcm", "x/2.dcm", "x/README.txt") / "x")
    with pytest.raises(InputError, match="no files at all"):
        (tmp_path / "empty").mkdir()
        find_cases(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder"):
        find_cases(tmp_path / "absent")
    with pytest.raises(InputError, match="this is a file"):
        find_cases(lay("f.nii") / "f.nii")
    with pytest.raises(InputError, match="channel_names must look like"):
        find_cases(lay("bad/imagesTr/a.nii", **{"bad/dataset": {"channel_names": ["T1"], "labels": {}}}) / "bad")


def test_words_of_names():
    assert [role_of(name) for name in ("T1", "T1_tumour", "brainmask", "brain_mask", "mask", "WMHseg", "segment2")] == [
        "image", "label", "mask", "mask", "label", "label", "image",
    ]  # fmt: skip
    assert [modality(name) for name in ("IXI_T1", "t1ce", "CT", "suv", "Flair", "scan")] == ["T1", "T1C", "CT", "PET", "FLAIR", None]
    assert (
        split_name("tumor_001_T1") == ("tumor_001", "T1")
        and split_name("p-7_T1_tumour") == ("p-7", "T1_tumour")
        and split_name("anna") == ("anna", "")
    )


@pytest.mark.realdata
def test_real_folders(real_scans):
    expected = {
        "brain": (150, ("T1",)),
        "sarcoma": (38, ("CT", "PET", "T1")),
        "glioma": (3, ("FLAIR", "T1c")),
        "ms": (1, ("FLAIR", "T1", "T1POST", "T2")),
    }
    for name, (count, channels) in expected.items():
        found = find_cases(real_scans / name)
        assert (len(found.labelled), found.channels) == (count, channels)
    assert [case.id for case in find_cases(real_scans / "sarcoma") if "CT" not in case.images] == ["STS_019"]


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [("T1", "CT", True), ("t1w", "T1", False), ("image", "CT", False), ("MR", "FLAIR", False), ("MR", "CT", True), ("T1", "FLAIR", True)],
)
def test_modalities_that_exclude_each_other(one, other, differ):
    assert modalities_differ(modality(one), modality(other)) is differ
    assert modalities_differ(modality(other), modality(one)) is differ


@pytest.mark.parametrize(("name", "stated"), [("P1_T1", "T1"), ("T1", "T1"), ("PT_003", None), ("CT_study_T2w", "T2"), ("scan", None)])
def test_the_modality_of_a_file_is_not_looked_for_in_its_cases_name(name, stated):
    assert modality_of_file(name) == stated


@pytest.mark.parametrize(
    ("image", "label", "channel"),
    [
        ("scans/{}", "labels/{}", "image"),
        ("scans/{}", "segmentations/{}", "image"),
        ("volumes/{}", "labels/{}", "image"),
        ("img/{}", "masks/{}", "image"),
        ("mydata/{}", "tumour_labels/{}", "image"),
        ("T1/{}", "labels/{}", "T1"),
        ("images/{}", "labels/{}_seg", "image"),
        ("img/img{}", "label/label{}", "image"),
        ("CT/{}_CT", "gt/{}_seg", "CT"),
    ],
)
def test_a_folder_of_labels_beside_one_of_scans(lay, image, label, channel):
    ids = [f"p_{i}" for i in range(3)]
    folder = lay(*[f"{image.format(case)}.nii.gz" for case in ids], *[f"{label.format(case)}.nii.gz" for case in ids[:2]])
    found = find_cases(folder)
    assert len(found) == 3 and found.channels == (channel,) and found.kind == "images and labels"
    assert [case.id.removeprefix("img").removesuffix("_CT") for case in found] == ids
    assert [case.label for case in found] == [folder / f"{label.format(case)}.nii.gz" for case in ids[:2]] + [None]


def test_several_folders_of_scans_are_channels(lay):
    ids = [f"case_{i:04}" for i in range(3)]
    folder = lay(*[f"{kind}/{case}.nii.gz" for case in ids for kind in ("T1", "warm", "labels") if (case, kind) != (ids[1], "T1")])
    found = find_cases(folder)
    assert found.channels == ("T1", "warm") and [case.id for case in found] == ids and len(found.labelled) == 3
    assert list(found.cases[1].images) == ["warm"]
    bare = find_cases(lay(*[f"bare/{kind}/{case}.nii.gz" for case in ids for kind in ("T1", "T2")]) / "bare")
    assert bare.channels == ("T1", "T2") and [case.id for case in bare] == ids
    named = find_cases(lay(*[f"n/{kind}/p{i}_{kind}.nii" for i in range(2) for kind in ("T1", "FLAIR", "seg")]) / "n")
    assert named.channels == ("FLAIR", "T1") and [case.id for case in named] == ["p0", "p1"] and len(named.labelled) == 2


def test_labels_in_one_folder_beside_a_folder_per_case(lay):
    found = find_cases(lay("p1/T1.nii", "p1/T2.nii", "p2/T1.nii", "p2/T2.nii", "labels/p1.nii", "labels/p2.nii"))
    assert found.channels == ("T1", "T2") and [case.label.name for case in found.labelled] == ["p1.nii", "p2.nii"]


def test_cases_whose_folders_are_called_like_labels_stay_cases(lay):
    found = find_cases(lay("tumor/T1.nii", "tumor/T2.nii", "control/T1.nii", "control/T2.nii"))
    assert [case.id for case in found] == ["control", "tumor"] and found.channels == ("T1", "T2")


def test_folders_without_a_channel_in_common_are_refused(lay):
    with pytest.raises(InputError, match=r"no name of a file is that of a channel.*p1 has axial, sagittal"):
        find_cases(lay("two/p1/axial.nii", "two/p1/sagittal.nii", "two/p2/thick.nii") / "two")
    assert find_cases(lay("fine/p1/T1.nii", "fine/p1/T2.nii", "fine/p2/PET.nii") / "fine").channels == ("PET", "T1", "T2")


def test_folders_of_several_cases_each(lay):
    found = find_cases(lay("s/siteA/U1_T1.nii", "s/siteA/U2_T1.nii", "s/siteA/U2_seg.nii", "s/siteB/U1_T1.nii", "s/siteB/U4_T2.nii") / "s")
    assert [case.id for case in found] == ["siteA_U1", "siteA_U2", "siteB_U1", "siteB_U4"] and found.channels == ("T1", "T2")
    assert [case.id for case in found.labelled] == ["siteA_U2"] and [case.patient for case in found] == ["U1", "U2", "U1", "U4"]
    channels = lay(*[f"c/p{i}/{name}.nii" for i in (1, 2) for name in ("pre_T1", "post_T1")]) / "c"
    assert [case.id for case in find_cases(channels)] == ["p1", "p2"] and find_cases(channels).channels == ("post_T1", "pre_T1")
    plain = find_cases(lay("n/north/p0.nii", "n/north/p1.nii", "n/south/p3.nii") / "n")
    assert [case.id for case in plain] == ["north_p0", "north_p1", "south_p3"] and plain.channels == ("image",)
    assert [case.patient for case in plain] == [None] * 3
    one = find_cases(lay(*[f"one/all/p{i:02}.nii" for i in range(20)]) / "one")
    assert [case.id for case in one] == [f"p{i:02}" for i in range(20)] and one.channels == ("image",)


def test_folders_within_cases_are_read(lay):
    names = ("T1", "labels/tumour", "followup/T1", "followup/labels/tumour")
    folder = lay(*[f"n/p{i}/{name}.nii" for i in (1, 2) for name in names if (i, name) != (2, names[3])]) / "n"
    found = find_cases(folder)
    assert [case.id for case in found] == ["p1", "p1_followup", "p2", "p2_followup"] and found.channels == ("T1",)
    assert [case.patient for case in found] == ["p1", "p1", "p2", "p2"]
    assert [str(case.label.relative_to(folder)) for case in found.labelled] == [
        f"p{n}/tumour.nii" for n in ("1/labels", "1/followup/labels", "2/labels")
    ]
    labelled = find_cases(lay(*[f"l/{name}.nii" for name in ("p1/T1", "p1/labels/tumour", "p2/T1")]) / "l")
    assert [(case.id, case.label is not None, case.patient) for case in labelled] == [("p1", True, None), ("p2", False, None)]
    beside = find_cases(lay(*[f"b/{name}.nii" for name in ("p1/T1", "p1/T2/x", "p2/T1", "labels/p2")]) / "b")
    assert [list(case.images) for case in beside] == [["T1", "T2"], ["T1"]] and [case.id for case in beside.labelled] == ["p2"]


def test_things_derived_from_scans_are_passed_over_by_name(lay):
    folder = lay("p1/T1.nii", "p1/warps/jacobian.nii", "p1/old/seg.nii", "p2/T1.nii")
    with pytest.warns(RuntimeWarning, match=r"scans in 2 folders within cases are passed over.*: p1/old, p1/warps; if they are scans"):
        assert [(case.id, list(case.images), case.label) for case in find_cases(folder)] == [("p1", ["T1"], None), ("p2", ["T1"], None)]
    with pytest.raises(InputError, match=r"p1/b and p1_b would both be case p1_b|p1_b and p1/b would both be case p1_b"):
        find_cases(lay("same/p1/T1.nii", "same/p1/b/T1.nii", "same/p1_b/T1.nii") / "same")
    with pytest.raises(InputError, match=r"siteA: holds both scans \(U1_T1.nii, …\) and folders with scans \(labels/, …\)"):
        find_cases(lay("s/siteA/U1_T1.nii", "s/siteA/U2_T1.nii", "s/siteA/labels/U1.nii", "s/siteB/U3_T1.nii") / "s")


def test_only_folders_of_predictions_are_no_scans(lay):
    folder = lay("a/T1.nii", "b/T1.nii", "pred/a.nii", "pred/.made_from/a.json", "b/out/b.nii", "b/out/.made_from/b.json")
    assert [case.id for case in find_cases(folder)] == ["a", "b"]
    corrected = find_cases(lay(*[f"c/{name}" for name in ("images/a.nii", "labels/a.nii", "labels/.made_from/a.json")]) / "c")
    assert [case.id for case in corrected.labelled] == ["a"]
    above = lay(*[f"d/{name}" for name in ("site/a.nii", "site/.made_from/a.json", "site/p1/T1.nii", "site/p2/T1.nii")]) / "d"
    with pytest.warns(RuntimeWarning, match="passed over.*: site/p1, site/p2"):  # never without a word
        assert [case.id for case in find_cases(above)] == ["site"]


def test_folders_deeper_than_one_level_are_cases(lay):
    names = [f"{site}/p{i}/v{j}" for site in ("site1", "site2") for i in (1, 2) for j in (1, 2)]
    folder = lay(*[f"{name}/{file}.nii.gz" for name in names for file in ("T1", "seg")])
    found = find_cases(folder)
    assert [case.id for case in found] == [name.replace("/", "_") for name in names]
    assert found.channels == ("T1",) and len(found.labelled) == 8
    assert [case.patient for case in found] == ["p1", "p1", "p2", "p2"] * 2
    split = find_cases(lay("kinds/images/p1/x.nii", "kinds/labels/p1/x.nii", "kinds/images/p2/x.nii") / "kinds")
    assert [(case.id, case.label is not None) for case in split] == [("p1", True), ("p2", False)]
    scans = find_cases(lay(*[f"series/p{i}/{kind}/{i}.nii" for i in (1, 2) for kind in ("T1", "T2")]) / "series")
    assert [case.id for case in scans] == ["p1", "p2"] and scans.channels == ("T1", "T2")
    sites = find_cases(lay(*[f"s/{site}/{kind}/p{i}.nii" for site in "ab" for kind in ("images", "labels") for i in (1, 2)]) / "s")
    assert [case.id for case in sites.labelled] == ["a_p1", "a_p2", "b_p1", "b_p2"] and sites.channels == ("image",)
    with pytest.raises(InputError, match=r"a/b_c and a_b/c would both be case a_b_c"):
        find_cases(lay("same/a/b_c/T1.nii", "same/a_b/c/T1.nii") / "same")


def test_a_label_that_is_named_is_none_other(lay):
    """A patient without a tumour contour has no label, and not that of another structure."""
    folder = lay("P1/FLAIR.nii", "P1/oedema_seg.nii", "P1/tumour_seg.nii", "P2/FLAIR.nii", "P2/oedema_seg.nii")
    assert {case.id: case.label and case.label.name for case in find_cases(folder, label="tumour_seg")} == {
        "P1": "tumour_seg.nii",
        "P2": None,
    }
    with pytest.raises(InputError, match="no case has a label called tumor_seg; there are oedema_seg, tumour_seg: name one of these"):
        find_cases(folder, label="tumor_seg")
    assert len(find_cases(folder, label="tumor_seg", labels=False)) == 2


def test_a_folder_of_labels_names_them_by_their_cases(lay):
    folder = lay("images/P1.nii", "images/P2.nii", "labels/P1.nii")
    assert [case.label is not None for case in find_cases(folder, label="tumour")] == [True, False]


def test_channels_that_differ_in_capitals_alone_are_refused(lay):
    with pytest.raises(InputError, match="two files for channel"):
        find_cases(lay("P1/T1.nii", "P1/t1.nii", "P2/T1.nii"))


@pytest.mark.parametrize(
    "names, channels",
    [
        (("volume-0", "volume-1", "segmentation-0", "segmentation-1"), {"image"}),
        (("img0", "img1", "label0", "label1"), {"image"}),
        (("T1_P1", "T1_P2", "seg_P1", "seg_P2"), {"T1"}),
        (("T1_001", "FLAIR_001", "T1_002", "FLAIR_002", "mask_001", "mask_002"), {"T1", "FLAIR"}),
    ],
)
def test_names_that_begin_with_what_a_file_is(lay, names, channels):
    """As LiTS has them: not so read, label maps are scans without labels."""
    cases = list(find_cases(lay(*(f"{name}.nii.gz" for name in names))))
    assert len(cases) == 2 and all(case.label is not None and set(case.images) == channels for case in cases)
    assert all(case.label.name.split(".")[0].endswith(case.id) for case in cases)


def test_names_that_end_in_what_a_file_is_are_read_as_before(lay):
    folder = lay("seg_study_1_T1.nii", "seg_study_1_seg.nii", "seg_study_2_T1.nii", "seg_study_2_seg.nii")
    assert {case.id for case in find_cases(folder)} == {"seg_study_1", "seg_study_2"}


@pytest.mark.parametrize("name", ["msk", "contours", "gt"])
def test_a_folder_of_labels_may_be_called_otherwise_and_others_are_named(lay, name):
    folder = lay("img/a.nii", "img/b.nii", f"{name}/a.nii", f"{name}/b.nii")
    assert all(case.label is not None for case in find_cases(folder))
    with pytest.warns(UserWarning, match="lungs beside the folder of images is passed over"):
        find_cases(lay("lungs/a.nii"))
