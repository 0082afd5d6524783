"""Row 33 of docs/robustness.md: a name planted in headers, extensions, paths and DICOM tags is in no output but the index's paths, job.json and names.json."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxseg.cli import main
from jaxseg.data.archive import read_index
from jaxseg.data.pseudonyms import may_name_people
from jaxseg.data.store import open_store
from jaxseg.errors import ConfigError
from jaxseg.prepare import prepare_folder
from jaxseg.train.run import provenance
from tests.dicom_files import save, stack
from tests.tiny_store import write_scans

SENTINEL = b"SENTINEL"


def plant(folder: Path, count: int, *, labelled: bool, seed: int, first: int = 0) -> Path:
    """Cases whose folders, files, header fields and extensions name a patient each."""
    write_scans(folder, count, labelled=labelled, seed=seed, first=first)
    for number in range(first, first + count):
        person = f"SENTINEL{'ABCDEFGH'[number]}^JANE_1962030{number + 1}"
        case = (folder / f"case_{number}").rename(folder / person)
        for path in list(case.glob("*.nii.gz")):
            image = nib.load(path)
            head = nib.Nifti1Header(image.header.binaryblock)
            for field in ("descrip", "db_name", "aux_file", "intent_name"):
                head[field] = b"SENTINEL^NAME"
            head.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SENTINEL^NAME"))
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, head), case / f"{person}_{path.name}")
            path.unlink()
    return folder


def leaks(out: Path, allowed: set[str]) -> list[str]:
    """Files whose name or content (also unzipped) holds the sentinel, or a planted date."""
    found = []
    for path in (path for path in out.rglob("*") if path.is_file() and path.relative_to(out).as_posix() not in allowed):
        data = path.read_bytes()
        data += gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b""
        if SENTINEL.lower() in data.lower() or b"1962030" in data or "sentinel" in path.relative_to(out).as_posix().lower():
            found.append(path.relative_to(out).as_posix())
    return found


def test_an_index_and_a_store_name_nobody(tmp_path, capsys):
    scans = plant(tmp_path / "SENTINEL_archive", 3, labelled=True, seed=0)
    save(scans / "SENTINEL^DICOM", stack(4))
    broken = next(scans.glob("SENTINELC*")) / "SENTINELC_broken_T1.nii.gz"
    broken.write_bytes(b"<html>")
    assert main(["index", str(scans), "--out", str(tmp_path / "out/index")]) == 3
    assert "SENTINEL" not in capsys.readouterr().out
    index = read_index(tmp_path / "out/index")
    assert index.ok == 10 and not any("SENTINEL" in json.dumps({**row, "path": "", "perceptual": ""}) for row in index.rows)
    broken.unlink()
    (scans / "SENTINEL^DICOM").rename(tmp_path / "dicom")
    label = next(scans.glob("SENTINELB*/*seg.nii.gz"))
    label.write_bytes(label.read_bytes()[:80])
    assert main(["prepare", str(scans), "--out", str(tmp_path / "out/store")]) == 3
    printed = capsys.readouterr()
    assert "SENTINEL" not in printed.out + printed.err and "truncated" in printed.err
    assert "replaced by keys" in printed.err and "--names FILE" in printed.err
    assert leaks(tmp_path / "out", {"index/scans.parquet"}) == []
    store = open_store(tmp_path / "out/store")
    assert len(store.names) == 2 and "SENTINEL" not in json.dumps(store.contents(store.names)) + json.dumps(store.hashes(store.names))
    before = (tmp_path / "out/store/store.json").read_bytes()
    assert main(["prepare", str(scans), "--out", str(tmp_path / "out/store")]) == 3
    assert (tmp_path / "out/store/store.json").read_bytes() == before  # the same keys again
    capsys.readouterr()
    assert main(["prepare", str(scans), "--out", str(tmp_path / "out/store"), "--names", str(tmp_path / "private.json")]) == 3
    printed = capsys.readouterr()
    assert "private.json says whose they are" in printed.err and "SENTINEL" not in printed.out + printed.err.replace(str(tmp_path), "")
    private, [left] = json.loads((tmp_path / "private.json").read_text()), open_store(tmp_path / "out/store").left_out
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600
    assert set(private) == {*store.names, left["name"]} and private[left["name"]] == label.parent.name
    with pytest.raises(ConfigError, match="outside"):
        prepare_folder(scans, tmp_path / "out/store", names=tmp_path / "out/store/names.json")


def test_names_are_kept_when_that_is_asked_for(tmp_path):
    scans = plant(tmp_path / "in", 2, labelled=True, seed=0)
    assert all("SENTINEL" in name for name in prepare_folder(scans, tmp_path / "store", keep_names=True).names)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (["STS_001", "STS_002"], False),
        (["sub-01_ses-1", "sub-02_ses-1"], False),
        (["BraTS20_Training_001", "BraTS20_Training_002"], False),
        (["IXI012", "IXI013", "IXI014"], False),
        (["a", "b"], False),
        (["0f3a9c11d2e47b60", "a81b2c3d4e5f6071"], False),
        (["case_0"], False),
        (["DOE_JANE", "SMITH_JOHN"], True),
        (["case_doe", "case_smith", "case_3"], True),
        (["scan_19620304", "scan_19710921"], True),
        (["p-01.02.1962", "p-03.04.1970"], True),
        (["DOE^JANE"], True),
    ],
)
def test_codes_are_told_from_names(ids, named):
    assert may_name_people(ids) is named


def test_provenance_keeps_hashes_in_the_place_of_paths(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/usr/bin/jaxseg", "pretrain", "brain_mae", "--store", "/data/SENTINEL/store", "--out=/x/SENTINEL", "--seed", "3"]
    )
    command = provenance()["command"]
    assert (
        command[:4] == ["jaxseg", "pretrain", "brain_mae", "--store"]
        and command[4].startswith("path:")
        and command[5].startswith("--out=path:")
    )
    assert command[6:] == ["--seed", "3"] and "SENTINEL" not in json.dumps(command)
    monkeypatch.setattr("sys.argv", ["/repo/finetune/__main__.py", "SENTINEL/settings.py", "--seed", "3"])
    command = provenance()["command"]
    assert command[0] == "__main__.py" and command[1].startswith("path:") and command[2:] == ["--seed", "3"]


@pytest.mark.slow
def test_the_main_job_names_nobody(tmp_path, capfd):
    unlabelled = plant(tmp_path / "SENTINEL_u", 3, labelled=False, seed=1)
    broken = next(unlabelled.glob("SENTINELB*/*T2.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:200])
    labelled, test = (plant(tmp_path / f"SENTINEL_{name}", 2, labelled=True, seed=seed, first=seed) for name, seed in (("l", 2), ("t", 4)))
    folders = ["--unlabelled", str(unlabelled), "--labelled", str(labelled), "--test", str(test)]
    assert main(["run", *folders, "--out", str(tmp_path / "out"), "--minutes", "0.01"]) == 3
    printed = capfd.readouterr()
    assert "SENTINEL" not in (printed.out + printed.err).replace(str(tmp_path), "")
    assert leaks(tmp_path / "out", {"index/scans.parquet", "job.json", "names.json"}) == []
    assert printed.err.count("names.json") == 1 and "--keep-names" in printed.err
    names = json.loads((tmp_path / "out/names.json").read_text())
    assert (tmp_path / "out/names.json").stat().st_mode & 0o777 == 0o600
    assert set(names.values()) == {path.name for folder in (unlabelled, labelled, test) for path in folder.iterdir()}
    written = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out/predictions/scratch").glob("*.nii.gz")}
    assert {names[key] for key in written} == {path.name for path in test.iterdir()}


@pytest.mark.slow
def test_the_main_job_refuses_test_scans_that_it_would_pretrain_on(tmp_path, capsys):
    scans = write_scans(tmp_path / "scans", 3)
    command = [
        "run",
        "--unlabelled",
        str(scans),
        "--labelled",
        str(scans),
        "--labels",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--minutes",
        "0.01",
    ]
    assert main(command) == 2
    assert "has seen 2 of the 2 test cases (case_1, case_2)" in capsys.readouterr().err
