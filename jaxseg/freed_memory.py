"""Keep the memory that a program frees, instead of giving it back to the system and asking for it again. Called by the programs that train and
segment, and by the bench for our side.

A compiled step on a CPU asks for all its working memory anew and frees it at its end. The C library hands blocks of that size back to the
system, which must then clear every page when the next step touches it: half of the time of a small batch's step.
"""

import ctypes
import os
import sys

# mallopt(3): names of malloc.h, which Python does not have.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed for the next time. Returns whether it will.

    The peak of the process stays about what it was, but it does not sink between two steps. Call it before anything starts a thread: JAX does when
    it is first used, and some libraries when they are imported (pyarrow). Each new thread may get a heap of its own, and one heap more is enough
    for some of JAX's threads to be given it. Nothing is changed where the C library is another, or where the environment sets up its memory already
    (`MALLOC_…` or `GLIBC_TUNABLES`).
    """
    if sys.platform != "linux" or any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Only the main heap can grow to the size of a step: all threads share it, nothing is mapped on its own, and its end is never cut off.
    return all(library.mallopt(option, value) == 1 for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))
