"""Rows 1 to 19 and 25 of docs/robustness.md: a file with each fault, through the reader and through the index; never a crash, never a silent answer."""

import gzip
import pickle
import tracemalloc
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from jaxseg.data.archive import index_archive
from jaxseg.data.io import load_volume
from jaxseg.data.io.nifti import encode
from jaxseg.data.volume import Grid
from jaxseg.errors import InputError

AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
SHAPE = (18, 17, 16)


def raw(array=None, affine=AFFINE, **fields):
    """Bytes of a sound file whose header fields are then overwritten."""
    array = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16) if array is None else array
    data = encode(array, Grid(array.shape[:3], affine), zipped=False)
    head = nib.Nifti1Header(data[:348], check=False)
    for name, value in fields.items():
        head.structarr[name] = value
    return head.structarr.tobytes() + data[348:]


def zipped(data):
    return gzip.compress(data, mtime=0)


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 0x10
    return bytes(changed)


def with_values(values, at=slice(0, 3)):
    array = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    array[0, 0, at] = values
    return raw(array)


@dataclass(frozen=True)
class Fault:
    """A row of the table: the bytes, words that the message must hold, and the flag in the index."""

    row: int
    data: bytes
    words: tuple[str, ...]
    flag: str
    name: str = "scan.nii"


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>" * 20
FAULTS = [
    Fault(1, raw()[:-1000], ("truncated", "8,792 bytes", "expected 9,792"), "truncated"),
    Fault(2, zipped(raw())[:-900], ("truncated", "ends early"), "truncated", "scan.nii.gz"),
    Fault(2, zipped(raw()[:-1000]), ("truncated", "8,792 bytes", "expected 9,792"), "truncated", "scan.nii.gz"),
    Fault(3, flipped(zipped(raw()), -6), ("gzip stream is damaged",), "damaged", "scan.nii.gz"),
    Fault(3, flipped(gzip.compress(raw(), 0, mtime=0), -60), ("gzip stream is damaged", "CRC"), "damaged", "scan.nii.gz"),
    Fault(4, raw(vox_offset=1e6), ("byte 1,000,000", "holds 10,144"), "truncated"),
    Fault(4, raw(vox_offset=np.inf), ("said to begin at byte inf",), "truncated"),
    Fault(5, raw(dim=[3, 32000, 32000, 32000, 1, 1, 1, 1]), ("32,768,000,000,000 voxels", "limit"), "too large"),
    Fault(5, zipped(raw(dim=[3, 1200, 1200, 1200, 1, 1, 1, 1])), ("truncated", "expected 3,456,000,000"), "truncated", "scan.nii.gz"),
    Fault(5, zipped(raw() + bytes(90 << 20)), ("bytes follow the voxels",), "damaged", "scan.nii.gz"),
    Fault(6, raw(dim=[3, 0, 17, 16, 1, 1, 1, 1]), ("damaged header", "at least 1"), "damaged"),
    Fault(6, raw(dim=[3, -18, 17, 16, 1, 1, 1, 1]), ("damaged header", "at least 1"), "damaged"),
    Fault(6, raw(dim=[9, 18, 17, 16, 1, 1, 1, 1]), ("9 dimensions", "expected 3"), "damaged"),
    *(Fault(7, raw(pixdim=[1, value, 2, 3, 0, 0, 0, 0]), ("voxel sizes", "positive"), "voxel size") for value in (0.0, np.nan, -1.5)),
    *(Fault(8, raw(srow_x=row, qform_code=0), ("not an invertible affine",), "affine") for row in ([np.nan] * 4, [0.0] * 4, [0, 2, 0, 0])),
    Fault(9, raw(srow_x=[-1.5, 0.3, 0, 10], qform_code=0), ("sheared", "refuses"), "sheared"),
    Fault(10, raw(srow_x=[1.5, 0, 0, 10]), ("mirror image", "'sform' or 'qform'"), "forms conflict"),
    Fault(11, raw(qform_code=0, sform_code=0), ("states no orientation", "assume_orientation"), "no orientation"),
    Fault(13, with_values(np.nan), ("3 of 4,896 voxels are not finite", "3 NaN"), "not finite"),
    Fault(13, with_values([np.inf, -np.inf, np.nan]), ("3 of 4,896", "1 NaN, 2 infinite"), "not finite"),
    Fault(15, raw(np.ones((6, 5, 4, 3), np.int16)), ("4-D image with 3 volumes", "channel"), "not 3-D"),
    Fault(15, raw(dim=[5, 18, 17, 4, 1, 4, 1, 1]), ("5-D image",), "not 3-D"),
    Fault(16, raw(dim=[2, 18, 17, 1, 1, 1, 1, 1]), ("2-D image of 18×17 pixels", "expected a 3-D scan"), "not 3-D"),
    *(
        Fault(17, raw(datatype=code), ("voxels are", word), "not grey values")
        for code, word in ((128, "RGB"), (32, "complex"), (77, "unknown"))
    ),
    Fault(18, raw(sizeof_hdr=349), ("sizeof_hdr is 349", "expected 348"), "not a scan file"),
    Fault(19, PAGE, ("HTML page",), "not a scan file"),
    Fault(19, PAGE, ("HTML page",), "not a scan file", "scan.nii.gz"),
    Fault(19, b"id,age\n1,40\n" * 50, ("text that begins 'id,age",), "not a scan file"),
    Fault(19, pickle.dumps({"a": list(range(500))}), ("Python pickle",), "not a scan file"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"row{fault.row}-{number}" for number, fault in enumerate(FAULTS)])
def test_rows_1_to_19_a_file_with_a_fault_is_refused_and_listed(tmp_path, fault):
    path = tmp_path / "in" / fault.name
    path.parent.mkdir()
    path.write_bytes(fault.data)
    with pytest.raises(InputError) as caught:
        load_volume(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2
    assert all(words in str(caught.value) for words in fault.words), str(caught.value)
    index = index_archive(tmp_path / "in", tmp_path / "out", threads=1)
    [row] = index.rows
    assert (row["ok"], row["flags"], index.ok) == (False, [fault.flag], 0), row["reason"]
    assert fault.words[0] in row["reason"] and fault.name not in row["reason"] and len(row["sha256"]) == 64
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["scans.parquet", "summary.json"]


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.row == 5])
def test_row_5_nothing_is_allocated_for_what_a_file_cannot_hold(tmp_path, fault):
    path = tmp_path / fault.name
    path.write_bytes(fault.data)
    tracemalloc.start()
    with pytest.raises(InputError):
        load_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


def row_of(tmp_path, data, name="scan.nii", **options) -> dict[str, Any]:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / name).write_bytes(data)
    return index_archive(tmp_path / "in", tmp_path / "out", threads=1, **options).rows[0]


def test_row_10_a_policy_decides_between_conflicting_forms(tmp_path):
    data = raw(srow_x=[1.5, 0, 0, 10])
    assert [row_of(tmp_path, data, policy=policy)["orientation"] for policy in ("sform", "qform")] == ["RAS", "LAS"]


def test_row_11_an_orientation_can_be_assumed_and_is_noted(tmp_path):
    row = row_of(tmp_path, raw(qform_code=0, sform_code=0), assume_orientation="LPS")
    assert row["ok"] and row["orientation"] == "LPS" and "LPS assumed" in row["notes"] and "orientation assumed" in row["flags"]


@pytest.mark.parametrize(("slope", "inter"), [(0, 5), (np.nan, np.nan)])
def test_row_12_a_slope_of_zero_or_nan_means_unscaled_and_is_noted(tmp_path, slope, inter):
    plain = row_of(tmp_path, raw())
    row = row_of(tmp_path, raw(scl_slope=slope, scl_inter=inter))
    assert row["ok"] and row["voxel_hash"] == plain["voxel_hash"] and "mean unscaled" in row["notes"]


def test_row_14_a_constant_image_is_not_ok_but_a_constant_label_is(tmp_path):
    data = raw(np.full(SHAPE, 7, np.int16))
    row = row_of(tmp_path, data)
    assert not row["ok"] and row["flags"] == ["constant"] and "every voxel is 7" in row["reason"]
    assert row_of(tmp_path, data, "case_seg.nii")["ok"]


def test_row_15_declared_channels_and_a_trailing_one_are_fine(tmp_path):
    values = np.random.default_rng(0).integers(0, 99, (6, 5, 4, 3)).astype(np.int16)
    row = row_of(tmp_path, raw(values), channels=["T1", "T2", "FLAIR"])
    assert row["ok"] and row["channels"] == 3
    assert row_of(tmp_path, raw(values[..., :1]))["shape"] == [6, 5, 4]


def test_row_25_orientation_never_changes_what_is_hashed(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(1).integers(0, 900, SHAPE).astype(np.int16), np.diag([1.5, 2, 3, 1]))
    (tmp_path / "in").mkdir()
    for codes in ("RAS", "LPS", "PSR", "ILA"):
        turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
        nib.save(image.as_reoriented(turn), tmp_path / "in" / f"{codes}.nii.gz")
    rows = index_archive(tmp_path / "in", tmp_path / "out").rows
    assert {row["orientation"] for row in rows} == {"RAS", "LPS", "PSR", "ILA"}
    assert len({row["voxel_hash"] for row in rows}) == 1 and sum(row["duplicate_of"] is not None for row in rows) == 3


def test_random_damage_is_a_row_and_never_a_crash(tmp_path):
    rng, sound = np.random.default_rng(3), raw(np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16))
    (tmp_path / "in").mkdir()
    for number in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, 352, rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        (tmp_path / "in" / f"{number}.nii").write_bytes(bytes(data))
        squeezed = bytearray(zipped(sound))
        squeezed[rng.integers(0, len(squeezed))] = rng.integers(0, 256)
        (tmp_path / "in" / f"{number}.nii.gz").write_bytes(bytes(squeezed))
    index = index_archive(tmp_path / "in", tmp_path / "out")
    assert index.scans == 300 and all(row["ok"] or row["reason"] for row in index.rows)
    assert not any("did not foresee" in row["reason"] for row in index.rows)
