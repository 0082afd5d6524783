"""A step's working memory is asked of the system once, not once a step."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, statistics, sys
from jaxseg.freed_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
import jax, jax.numpy as jnp

def program(x):
    y = jnp.outer(x, x)
    return (y @ y)[::2].sum()

compiled, x = jax.jit(program), jnp.ones(2048)
for _ in range(8):
    compiled(x).block_until_ready()

pages = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    compiled(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(pages)))
"""


def run(mode: str, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` said, and how many pages a run of a program with 32 MiB of working memory asks for, once it has run some times.

    The median of nine: now and then the heap is in such pieces that a run finds no place in what was kept.
    """
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"JAX_PLATFORMS": "cpu", **environment})
    said, pages = done.stdout.split()
    return said, int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of the C library of Linux")
def test_working_memory_is_asked_for_once():
    (said, kept), (_, fresh) = run("keep"), run("leave")
    if said == "False":
        pytest.skip("the C library is not glibc")
    assert fresh > 4096, "the program should ask for its memory at every run, or this test shows nothing"
    assert kept < fresh / 20


def test_what_the_environment_sets_up_is_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] == "False"


HEAPS = """
import ctypes, sys, tempfile
try:
    exec(sys.argv[1])
except (SystemExit, Exception) as error:  # what it is asked for is not there: it has imported what it needs, and ends
    print(error, file=sys.stderr)
import jax.numpy as jnp
(jnp.ones((64, 64)) @ jnp.ones((64, 64))).block_until_ready()
libc = ctypes.CDLL(None)
if not hasattr(libc, "gnu_get_libc_version"):
    sys.exit("not glibc")
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
with tempfile.NamedTemporaryFile("r") as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print("heaps", file.read().count("<heap nr"))
"""
NOWHERE = "/dev/null/nowhere"
VERBS = {
    "demo": ["--out", NOWHERE],
    "run": ["--unlabelled", NOWHERE, "--labelled", NOWHERE, "--out", NOWHERE],
    "pretrain": ["brain_mae", "--store", NOWHERE, "--out", NOWHERE],
    "finetune": ["brain", "--store", NOWHERE, "--out", NOWHERE],
    "segment": [NOWHERE, NOWHERE, "--out", NOWHERE],
}
STUDY = ("--scans", "--store", "--pretrained", "--out")
PROGRAMS = {verb: f"from jaxseg.cli import main; main({[verb, *rest]})" for verb, rest in VERBS.items()} | {
    name: f"from {name}.__main__ import main; main({['brain', *(word for each in STUDY for word in (each, NOWHERE))]})"
    for name in ("finetune.few_label", "finetune.few_label.spacing")
}


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is one of the C library of Linux")
@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_that_trains_or_segments_has_one_heap(program):
    """A library that starts a thread when it is imported, before the setting is made, leaves a second heap, and some of JAX's threads get it."""
    done = subprocess.run([sys.executable, "-c", HEAPS, PROGRAMS[program]], capture_output=True, text=True, env={"JAX_PLATFORMS": "cpu"})
    if done.stderr.endswith("not glibc\n"):
        pytest.skip("the C library is not glibc")
    assert done.stdout.splitlines()[-1] == "heaps 1", done.stderr
    assert "nowhere" in done.stderr, "it should have got as far as looking for what it was given"
