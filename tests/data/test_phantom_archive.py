"""The phantom archive on disk: same bytes, resumable, of the geometry it says, found by `find_cases`, and broken where it says."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from jaxseg.data.archive import index_archive
from jaxseg.data.cases import find_cases
from jaxseg.data.phantom import archive as module
from jaxseg.data.phantom import make_case, write_archive
from jaxseg.data.phantom.archive import ORIENTATIONS, nifti, plan_archive
from jaxseg.data.phantom.broken import FAULTS, pack
from jaxseg.errors import ConfigError, StorageError
from jaxseg.files import sha256_of

SMALL = {"unlabelled": 2, "labelled": 1, "broken": 1, "processes": 1}


@pytest.fixture(scope="module")
def coarse():
    """make_case, but on few voxels: the files are what is tested here."""
    return lambda seed, *, spacing, **rest: make_case(seed, spacing=[max(s, 5.0) for s in spacing], working_mm=5.0, **rest)


@pytest.fixture(scope="module")
def written(tmp_path_factory, coarse):
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_case", coarse)
        return write_archive(folder, **SMALL)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*.gz"))}


def test_an_interrupted_archive_goes_on_and_ends_in_the_same_bytes(tmp_path, written, monkeypatch, coarse):
    made = []

    def failing(seed, **rest):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(seed)
        return coarse(seed, **rest)

    monkeypatch.setattr(module, "make_case", failing)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path, **SMALL)
    partial = hashes(tmp_path)
    assert len(partial) == 4
    (tmp_path / next(iter(partial))).unlink()
    counts = []
    monkeypatch.setattr(module, "make_case", coarse)
    write_archive(tmp_path, **SMALL, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert hashes(tmp_path) == hashes(written.unlabelled.parent)
    counts.clear()
    write_archive(tmp_path, **SMALL, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(3, 3)]


def test_two_archives_do_not_mix(written):
    with pytest.raises(StorageError, match="another folder"):
        write_archive(written.unlabelled.parent, **{**SMALL, "seed": 1})


@pytest.mark.parametrize("counts", [{"unlabelled": 2, "broken": 3}, {"labelled": -1}])
def test_counts_that_make_no_sense(tmp_path, counts):
    with pytest.raises(ConfigError, match="impossible"):
        write_archive(tmp_path, **counts)


def test_find_cases_reads_both_layouts_channels_and_regions(written):
    unlabelled, labelled = find_cases(written.unlabelled), find_cases(written.labelled)
    assert [case.id for case in unlabelled] == ["PH_U000", "PH_U001"]
    assert set(unlabelled.channels) == set(labelled.channels) == {"T1", "T1c", "T2", "FLAIR"}
    assert unlabelled.labelled == () and len(labelled.labelled) == 1
    assert labelled.regions and labelled.labels == {"whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing": [3]}
    assert all(set(case.images) == {"T1", "T1c", "T2", "FLAIR"} for case in (*unlabelled, *labelled))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_stored_orientation_and_spacing_are_what_the_header_says(orientation):
    values = np.zeros((6, 7, 8), np.float32)
    values[1, 2, 3] = 1000
    affine = np.array([[1.2, 0, 0, -5], [0, 3.0, 0, -6], [0, 0, 2.0, -7], [0, 0, 0, 1]])
    image = nib.Nifti1Image.from_bytes(nifti(values, affine, orientation).to_bytes())
    assert "".join(nib.aff2axcodes(image.affine)) == orientation
    assert sorted(image.header.get_zooms()) == pytest.approx([1.2, 2, 3])
    place = np.argwhere(np.asarray(image.dataobj) > 0)[0]
    np.testing.assert_allclose(image.affine @ [*place, 1], affine @ [1, 2, 3, 1], atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_weak_signals_are_stored_with_a_slope(tmp_path):
    values = np.linspace(0, 100, 4**3, dtype=np.float32).reshape(4, 4, 4)
    image = nifti(values, np.eye(4), "RAS")
    assert image.get_data_dtype() == np.int16
    path = tmp_path / "weak.nii.gz"
    path.write_bytes(pack(image))
    np.testing.assert_allclose(nib.load(path).get_fdata(), values, atol=0.07)


def test_the_archive_exercises_geometry_and_spreads_the_damage():
    plans = plan_archive()
    assert len(plans) == 72 and len({plan.seed for plan in plans}) == 72
    spacings = {plan.spacing for plan in plans}
    assert {(1.0, 1.0, 5.0), (2.0, 2.0, 2.0)} <= spacings
    assert len({plan.orientation for plan in plans}) >= 5 and len({plan.scanner for plan in plans}) == 4
    assert len({plan.fault for plan in plans if plan.fault}) == 4
    assert all(plan.tumour for plan in plans if plan.folder == "labelled")
    assert plans == plan_archive() and plans != plan_archive(seed=1)


def test_broken_files_are_where_the_archive_says(written):
    [(path, fault)] = written.broken.items()
    assert path.exists() and path.is_relative_to(written.unlabelled) and fault in FAULTS
    for other in written.unlabelled.rglob("*.nii.gz"):
        if other != path:
            gzip.decompress(other.read_bytes())
            assert np.isfinite(nib.load(other).get_fdata()).all()


def test_every_fault_is_one(tmp_path):
    rng = np.random.default_rng(0)
    image = nifti(rng.uniform(0, 900, (16, 15, 14)).astype(np.float32), np.diag([2.0, 2, 2, 1]), "LPS")
    files = {name: tmp_path / f"{number}.nii.gz" for number, name in enumerate(FAULTS)}
    for name, path in files.items():
        path.write_bytes(FAULTS[name](image))
    with pytest.raises(EOFError):
        gzip.decompress(files["truncated"].read_bytes())
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(files["checksum"].read_bytes())
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(files["web page"].read_bytes())
    assert np.isnan(nib.load(files["not finite"]).get_fdata()).sum() == 216
    assert np.ptp(nib.load(files["constant"]).get_fdata()) == 0
    header = nib.load(files["qform and sform conflict"]).header
    assert np.abs(header.get_qform() - header.get_sform()).max() > 4
    assert np.linalg.det(header.get_qform()[:3, :3]) * np.linalg.det(header.get_sform()[:3, :3]) < 0


def test_the_index_leaves_out_every_fault_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    image = nifti(rng.uniform(0, 900, (16, 15, 14)).astype(np.float32), np.diag([2.0, 2, 2, 1]), "LPS")
    for number, damage in enumerate([*FAULTS.values(), pack]):
        (tmp_path / "scans" / f"P{number}").mkdir(parents=True)
        (tmp_path / "scans" / f"P{number}" / f"P{number}_T1.nii.gz").write_bytes(damage(image))
    index = index_archive([tmp_path / "scans"], tmp_path / "index")
    assert len(index.left_out) == len(FAULTS)
    assert [Path(row["path"]).name for row in index.rows if row["ok"]] == [f"P{len(FAULTS)}_T1.nii.gz"]
    assert len({row["reason"] for row in index.left_out}) == len(FAULTS)  # six faults, six reasons


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path):
    one = write_archive(tmp_path / "one", **SMALL)
    two = write_archive(tmp_path / "two", **{**SMALL, "processes": 2})
    assert hashes(one.labelled.parent) == hashes(two.labelled.parent)
