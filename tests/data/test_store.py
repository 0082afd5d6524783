"""The store: what goes in comes out of dataset and cache, only what changed is done again, and damage is found."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from jaxseg.data import staging
from jaxseg.data.cache import open_cache
from jaxseg.data.cases import Case
from jaxseg.data.preprocess import prepare_case
from jaxseg.data.recipe import Recipe
from jaxseg.data.records import read_records
from jaxseg.data.store import build_store, open_store
from jaxseg.errors import InputError, StorageError
from jaxseg.files import read_json, write_json

RECIPE = Recipe(channels=("T1", "T2"), spacing=(1.0, 1.0, 2.0), intensity=("zscore", "zscore"), labels={"core": 1, "rim": 2})


def scan(path: Path, seed: int, shape=(16, 15, 10), label: Path | None = None) -> Path:
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    array = np.zeros(shape, np.float32)
    array[2:-2, 2:-2, 1:-1] = rng.uniform(50, 100, [n - k for n, k in zip(shape, (4, 4, 2))])
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    if label is not None:
        truth = np.zeros(shape, np.uint8)
        truth[5:9, 5:9, 3:6] = 2
        truth[6:8, 6:8, 4] = 1
        nibabel.save(nibabel.Nifti1Image(truth, affine), label)
    return path


def make_cases(folder: Path, n=3) -> list[Case]:
    """Case k: T1 always, T2 but for the last, a label for even k; names as archives have them."""
    folder.mkdir(exist_ok=True)
    cases = []
    for k in range(n):
        images = {"T1": scan(folder / f"{k}_T1.nii", 10 * k, (16 + k, 15, 10), folder / f"{k}_seg.nii" if k % 2 == 0 else None)}
        if k < n - 1:
            images["T2"] = scan(folder / f"{k}_T2.nii", 10 * k + 1, (16 + k, 15, 10))
        cases.append(Case(["a", "../b c", "ü#3", "d"][k], images, folder / f"{k}_seg.nii" if k % 2 == 0 else None))
    return cases


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    cases = make_cases(folder / "scans")
    return cases, build_store(cases, RECIPE, folder / "store", patients={"a": "P1"}, processes=1)


@pytest.fixture
def copied(built, tmp_path):
    cases, store = built
    shutil.copytree(store.path, tmp_path / "store")
    return cases, tmp_path / "store"


def count_prepared(monkeypatch) -> list[str]:
    names: list[str] = []
    original = staging.prepare_case

    def counting(case, recipe):
        names.append(case.id)
        return original(case, recipe)

    monkeypatch.setattr(staging, "prepare_case", counting)
    return names


def test_cache_holds_what_prepare_case_gives(built):
    cases, store = built
    assert set(store.names) == {"a", "../b c", "ü#3"} and store.recipe == RECIPE and store.left_out == []
    for case in cases:
        expected, entry, arrays = prepare_case(case, RECIPE), store.entry(case.id), store.arrays(case.id)
        assert isinstance(arrays.image, np.memmap) and arrays.image.dtype == np.float16
        np.testing.assert_array_equal(arrays.image, expected.image.astype(np.float16))
        np.testing.assert_array_equal(arrays.mask, expected.mask)
        assert entry.shape == expected.mask.shape and entry.present == tuple(expected.present)
        np.testing.assert_allclose(entry.affine, expected.grid.affine)
        assert entry.spacing == pytest.approx((1, 1, 2)) and entry.air == (0, 0)
        if case.label is None:
            assert arrays.label is None and entry.label_counts is None and arrays.foreground == {}
        else:
            np.testing.assert_array_equal(arrays.label, expected.label)
            assert entry.label_counts == {value: int((expected.label == value).sum()) for value in (0, 1, 2)}
    assert store.entry("a").patient == "P1" and store.entry("ü#3").patient == "ü#3"
    store.verify()


def test_foreground_lists_every_voxel_of_a_label(built):
    _, store = built
    arrays = store.arrays("a")
    for value in (1, 2):
        np.testing.assert_array_equal(arrays.foreground[value], np.argwhere(arrays.label == value))
    np.testing.assert_array_equal(arrays.body, np.argwhere(arrays.mask))


def test_foreground_samples_are_bounded_spread_and_repeatable():
    from jaxseg.data.cache import MAX_FOREGROUND, sample_foreground

    record = {"name": "x", "mask": np.ones((40, 30, 20), np.uint8), "label": np.ones((40, 30, 20), np.uint8), "labelled": True}
    record["label"][0] = 255
    voxels = sample_foreground(record)
    assert set(voxels) == {"body", "1"} and voxels["1"].shape == (MAX_FOREGROUND, 3) and voxels["1"].dtype == np.int32
    assert len(np.unique(voxels["1"], axis=0)) == MAX_FOREGROUND and voxels["1"][:, 0].min() == 1
    np.testing.assert_allclose(voxels["body"].mean(0), (19.5, 14.5, 9.5), atol=0.5)
    np.testing.assert_array_equal(voxels["1"], sample_foreground(record)["1"])


def test_dataset_is_plain_tfds_in_array_record_and_needs_no_tensorflow(built):
    _, store = built
    code = f"""
        import sys, tensorflow_datasets as tfds
        builder = tfds.builder_from_directory({str(store.tfds / "jaxseg_cases" / store.dataset["version"])!r})
        print(builder.info.file_format.value, sorted(r["name"].decode() for r in builder.as_data_source(split="cases")))
        assert not any(name.split(".")[0] in ("tensorflow", "torch", "jax") for name in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"array_record {sorted(store.names)}"


def test_cache_is_made_from_the_dataset(built):
    _, store = built
    records = read_records(store.tfds, store.dataset["version"])
    for name in store.names:
        record = records[store.entry(name).record]
        assert record["name"] == name and record["inputs"] == store.entry(name).inputs
        np.testing.assert_array_equal(record["image"], store.arrays(name).image)


def test_file_names_are_safe_and_nothing_leaves_the_folder(built):
    _, store = built
    assert {path.name for path in store.path.iterdir()} == {"cache", "tfds", "store.json", ".lock"}
    assert all(path.name.isascii() and not set(path.name) & set(" #/") for path in store.cache.iterdir())
    assert len(list(store.cache.glob("*.image.npy"))) == 3
    assert staging.file_stem("a b") != staging.file_stem("a_b") != staging.file_stem("a?b")


def test_building_is_silent(copied, tmp_path, capfd):
    cases, _ = copied
    build_store(cases[:1], RECIPE, tmp_path / "other", processes=1)
    assert capfd.readouterr() == ("", "")


def test_building_leaves_nothing_among_the_temporary_files(copied, tmp_path, monkeypatch):
    """TFDS makes a folder there for what it would fetch from its public bucket, and forgets it."""
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cases, _ = copied
    build_store(cases[:1], RECIPE, tmp_path / "other", processes=1)
    assert list(temporary.iterdir()) == []


def test_second_call_prepares_nothing_and_changes_nothing(copied, monkeypatch):
    cases, out = copied
    names = count_prepared(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    build_store(cases, RECIPE, out, patients={"a": "P1"}, processes=1)
    assert names == []
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


def test_only_the_changed_case_is_prepared_again(copied, monkeypatch, tmp_path):
    cases, out = copied
    names = count_prepared(monkeypatch)
    changed = Case("a", {**cases[0].images, "T1": scan(tmp_path / "new.nii", 99)}, cases[0].label)
    kept = (out / "cache" / open_store(out).entry("ü#3").files["image"]["file"]).stat().st_mtime_ns
    store = build_store([changed, *cases[1:]], RECIPE, out, patients={"a": "P1"}, processes=1)
    assert names == ["a"]
    np.testing.assert_array_equal(store.arrays("a").image, prepare_case(changed, RECIPE).image.astype(np.float16))
    assert (store.cache / store.entry("ü#3").files["image"]["file"]).stat().st_mtime_ns == kept
    assert [path.name for path in (out / "tfds" / "jaxseg_cases").iterdir()] == ["1.0.1"]
    store.verify()


def test_cases_that_are_gone_leave_no_files(copied):
    cases, out = copied
    store = build_store(cases[:1], RECIPE, out, patients={"a": "P1"}, processes=1)
    assert store.names == ("a",) and {path.name.split(".")[0] for path in store.cache.iterdir()} == {"a"}
    store.verify()


def test_another_recipe_prepares_everything_again(copied, monkeypatch):
    from dataclasses import replace

    cases, out = copied
    names = count_prepared(monkeypatch)
    store = build_store(cases, replace(RECIPE, spacing=(2.0, 2.0, 2.0)), out, processes=1)
    assert len(names) == 3 and store.entry("a").spacing == pytest.approx((2, 2, 2)) and store.arrays("a").image.shape[0] < 12


def test_a_broken_case_is_left_out_with_its_reason(copied, tmp_path):
    cases, _ = copied
    bad, gone = tmp_path / "bad.nii", tmp_path / "gone.nii"
    bad.write_bytes(b"<html>not a scan</html>")
    store = build_store([*cases, Case("bad", {"T1": bad}), Case("gone", {"T1": gone})], RECIPE, tmp_path / "s", processes=1)
    assert len(store.names) == 3
    assert {item["name"]: Path("x.nii").suffix in item["reason"] for item in store.left_out} == {"bad": True, "gone": True}
    with pytest.raises(InputError, match=r"none of the 1 cases.*bad: T1\.nii"):
        build_store([Case("bad", {"T1": bad})], RECIPE, tmp_path / "t", processes=1)


def test_two_cases_of_one_name_are_refused(copied, tmp_path):
    cases, _ = copied
    with pytest.raises(InputError, match="two cases are called 'a'"):
        build_store([cases[0], cases[0]], RECIPE, tmp_path / "s")


def test_a_run_that_stops_half_way_goes_on(copied, monkeypatch, tmp_path):
    cases, _ = copied
    original = staging.prepare_case

    def stopping(case, recipe):
        if case.id == cases[2].id:
            raise KeyboardInterrupt
        return original(case, recipe)

    monkeypatch.setattr(staging, "prepare_case", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_store(cases, RECIPE, tmp_path / "s", processes=1)
    assert len(list((tmp_path / "s" / "staging").iterdir())) == 2
    monkeypatch.setattr(staging, "prepare_case", original)
    names = count_prepared(monkeypatch)
    store = build_store(cases, RECIPE, tmp_path / "s", processes=1)
    assert names == [cases[2].id] and len(store.names) == 3
    store.verify()


def test_killed_at_any_stage_it_goes_on(tmp_path):
    cases = make_cases(tmp_path / "scans", 4)
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_store
        from jaxseg.data.store import build_store
        cases = test_store.make_cases(Path({str(tmp_path / "scans")!r}), 4)
        def progress(done, total, text):
            if text.startswith(sys.argv[1]) and done == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        build_store(cases, test_store.RECIPE, {str(tmp_path / "s")!r}, processes=1, progress=progress)
    """
    for moment in ("prepared", "dataset", "cache"):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), moment], env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == -signal.SIGKILL
        with pytest.raises(InputError, match="no store here"):
            open_store(tmp_path / "s")
    store = build_store(cases, RECIPE, tmp_path / "s", processes=1)
    assert len(store.names) == 4 and {path.name for path in store.path.iterdir()} == {"cache", "tfds", "store.json", ".lock"}
    store.verify()


def test_two_processes_make_the_same_store(built, tmp_path):
    cases, store = built
    seen: list[tuple[int, int, str]] = []
    other = build_store(cases, RECIPE, tmp_path / "s", patients={"a": "P1"}, processes=2, progress=lambda *what: seen.append(what))
    assert {name: other.entry(name).files for name in other.names} == {name: store.entry(name).files for name in store.names}
    assert seen[-1][:2] == (3, 3)


@pytest.mark.parametrize("kind", ["image", "mask", "foreground"])
def test_damage_is_found_and_mended_from_the_dataset(copied, kind, monkeypatch):
    cases, out = copied
    path = out / "cache" / open_store(out).entry("a").files[kind]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"1 files.*{path.name}.*jaxseg prepare"):
        open_store(out).verify()
    names = count_prepared(monkeypatch)
    build_store(cases, RECIPE, out, patients={"a": "P1"}, processes=1).verify()
    assert names == []


@pytest.mark.parametrize("kind", ["image", "label", "foreground"])
def test_missing_and_truncated_cache_files_are_named(copied, kind):
    _, out = copied
    path = out / "cache" / open_store(out).entry("a").files[kind]["file"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{path.name}.*case a"):
        open_store(out).arrays("a")
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}.*case a is missing"):
        open_store(out).arrays("a")


def test_cases_open_in_many_threads_while_the_collector_calls_python(built):
    _, store = built

    def opened(_):
        return [open_cache(store.cache, name, store.entry(name).files).image.shape for name in store.names]

    def callback(*_):
        # Long enough for another thread to take over: JAX has such a callback, and the header of an array is parsed to an `ast` meanwhile.
        sum(range(100))

    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(callback)
    try:
        gc.set_threshold(5)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as threads:
            shapes = list(threads.map(opened, range(200)))
    finally:
        gc.callbacks.remove(callback)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert len(shapes) == 200 and all(each == shapes[0] for each in shapes)


def test_a_damaged_dataset_is_made_again(copied, monkeypatch):
    cases, out = copied
    record = next((out / "tfds").rglob("*.array_record*"))
    record.write_bytes(record.read_bytes()[:-100])
    with pytest.raises(InputError, match="array_record"):
        open_store(out).verify()
    names = count_prepared(monkeypatch)
    build_store(cases, RECIPE, out, patients={"a": "P1"}, processes=1).verify()
    assert len(names) == 3


def test_object_arrays_are_refused(copied):
    _, out = copied
    np.save(out / "cache" / "a.image.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.image\.npy"):
        open_store(out).arrays("a")


def test_what_is_no_store_is_refused(copied, tmp_path):
    _, out = copied
    with pytest.raises(InputError, match="no store here"):
        open_store(tmp_path)
    with pytest.raises(InputError, match="no case 'z'"):
        open_store(out).entry("z")
    write_json(out / "store.json", {**read_json(out / "store.json"), "version": 99})
    with pytest.raises(InputError, match="version 99"):
        open_store(out)
    write_json(out / "store.json", {"version": 1})
    with pytest.raises(InputError, match="not a store's manifest"):
        open_store(out)


def test_two_builds_at_once_are_refused(copied, tmp_path):
    from jaxseg.files import lock_folder

    cases, out = copied
    with lock_folder(out), pytest.raises(StorageError, match="another run"):
        build_store(cases, RECIPE, out, processes=1)


def test_outliers_beyond_float16_are_clipped_and_counted(built):
    cases, _ = built
    prepared = prepare_case(cases[1], RECIPE)
    prepared.image[3, 3, 3, 0] = 1e6
    job = staging.Job(cases[1], RECIPE, Path("x.npz"), "h", "p")
    arrays = staging.to_arrays(prepared, job)
    assert arrays["image"][3, 3, 3, 0] == np.float16(65504) and '"clipped_to_float16": 1' in arrays["info"]


def test_a_bug_while_preparing_names_the_case(copied, monkeypatch, tmp_path):
    cases, _ = copied

    def broken(case, recipe):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(staging, "prepare_case", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        build_store(cases, RECIPE, tmp_path / "s", processes=1)
    assert caught.value.__notes__ == [f"while preparing case {cases[0].id}"]


def test_a_full_disk_while_writing_the_dataset_is_said_so(copied, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def full(self, **_):
        raise RuntimeError("Failed to finalize writing: write() failed: No space left on device; writing x.array_record")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", full)
    with pytest.raises(StorageError, match="no space left"):
        build_store(copied[0], RECIPE, tmp_path / "s", processes=1)


@pytest.mark.parametrize("header", ["scan.nhdr", "scan.mhd", "scan.hdr"])
def test_voxels_that_lie_beside_their_header_count_for_a_cases_hash(tmp_path, header):
    volume = {"scan.nhdr": "scan.raw", "scan.mhd": "scan.raw", "scan.hdr": "scan.img"}[header]
    texts = {
        "scan.nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: scan.raw\n",
        "scan.mhd": "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = scan.raw\n",
        "scan.hdr": "a header",
    }
    (tmp_path / header).write_text(texts[header])
    case = Case("a", {"T1": tmp_path / header})
    hashes = []
    for voxels in (b"\1" * 8, b"\2" * 8):
        (tmp_path / volume).write_bytes(voxels)
        hashes.append(staging.inputs_hash(case, RECIPE))
    assert hashes[0] != hashes[1]
