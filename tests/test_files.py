"""Files are written whole or not at all, and a folder is held by one process."""

import errno
import os
import subprocess
import sys

import pytest

from jaxseg.errors import InputError, StorageError
from jaxseg.files import lock_folder, read_json, sha256_of, write_bytes, write_json, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = write_bytes(tmp_path / "a.bin", b"before")

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        write_whole(path, fail)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "not writable")])
def test_a_full_or_read_only_disk_is_a_storage_error(tmp_path, number, words):
    def fail(temporary):
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=words):
        write_whole(tmp_path / "a.bin", fail)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, words in (("file", "this is a file"), ("file/below/it", "file is a file"), ("x" * 300, "too long")):
        with pytest.raises(StorageError, match=words):
            write_json(tmp_path / folder / "a.json", {})
        with pytest.raises(StorageError, match=r"no folder can be made here .*choose another --out"):
            lock_folder(tmp_path / folder).__enter__()
    with pytest.raises(StorageError, match="this is a folder, expected the name of a file"):
        write_json(tmp_path, {})
    assert os.listdir(tmp_path) == ["file"]


def test_json_that_is_missing_or_broken_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "page.json").write_text("<html>")
    with pytest.raises(InputError, match=r"page\.json: this is not a JSON file"):
        read_json(tmp_path / "page.json")


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    # the digest of "abc" in FIPS 180-2
    assert sha256_of(write_bytes(tmp_path / "abc", b"abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_second_process_is_refused_while_the_first_holds_the_folder(tmp_path):
    script = "import sys; from jaxseg.files import lock_folder\nwith lock_folder(sys.argv[1]): pass"

    def second():
        return subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)

    with lock_folder(tmp_path):
        refused = second()
        assert refused.returncode != 0
        assert f"another run (process {os.getpid()})" in refused.stderr
    assert second().returncode == 0


def test_a_byte_order_mark_before_json_is_passed_over(tmp_path):
    (tmp_path / "dataset.json").write_bytes(b"\xef\xbb\xbf" + '{"name": "ä"}'.encode())
    assert read_json(tmp_path / "dataset.json") == {"name": "ä"}
