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
