"""The compilation cache: on disk, private, found again by a second process, and said aloud where it cannot be."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxseg import compilation
from jaxseg.doctor import examine

PROGRAM = """
import jax
from jaxseg.compilation import use_cache
assert use_cache()
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("compilation_cache/cache_hits") else None)
jax.jit(lambda x: (x * 3 - 1).sum())(jax.numpy.arange(7.0)).block_until_ready()
print(len(hits))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's cache folder with nothing in it; JAX's own settings are put back afterwards."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation._say_once.cache_clear()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def finding() -> tuple[str, bool]:
    return next((what, fine) for name, what, fine in examine() if name == "compilation cache")


def test_the_folder_is_the_user_s_alone(home):
    assert compilation.use_cache()
    folder = home / "jaxseg" / "xla"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_second_process_compiles_nothing_and_the_doctor_counts(home):
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_NUM_CPU_DEVICES": "1"}
    assert "cold" in finding()[0]
    first, second = (subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert int(first.stdout) == 0 and int(second.stdout) > 0
    programs, size = compilation.cache_size(home / "jaxseg" / "xla")
    assert programs > 0 and size > 0
    text, fine = finding()
    assert fine and "cold" not in text and f"{programs} programs" in text and "MiB" in text


def test_a_folder_that_cannot_be_is_said_once_and_leaves_the_cache_off(home, capsys):
    (home / "jaxseg").write_text("a file where the folder should be")
    assert not compilation.use_cache() and not compilation.use_cache()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(home) in said and "JAX_COMPILATION_CACHE_DIR" in said
    assert jax.config.jax_compilation_cache_dir is None
    text, fine = finding()
    assert fine and text.startswith("off")  # slower, but jaxseg works


def test_a_folder_that_others_may_write_to_is_refused_unless_it_was_named(home, monkeypatch, capsys):
    folder = home / "jaxseg" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert not compilation.use_cache() and "others" in capsys.readouterr().err
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    assert compilation.use_cache()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_unusable(home):
    folder = home / "jaxseg" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    assert "cannot be written" in str(compilation.why_unusable(folder))


def test_an_empty_or_missing_folder_is_cold(tmp_path):
    assert compilation.cache_size(tmp_path) == compilation.cache_size(Path(tmp_path / "none")) == (0, 0)


def test_an_address_of_another_machine_is_left_to_jax(home, monkeypatch, tmp_path):
    """Hosts of a TPU pod share a bucket; taken for a folder it would be made here, and shared with nobody."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    assert compilation.use_cache() and jax.config.jax_compilation_cache_dir == before
    text, fine = finding()
    assert fine and text.startswith("gs://bucket/cache")
    assert list(tmp_path.iterdir()) == []
