"""JAX's compilation cache on disk, in a folder of the user's own. Switched on by the command line, so that a second run starts quickly;
`jaxseg doctor` says what it holds."""

import functools
import os
import sys
from pathlib import Path

_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def cache_folder() -> Path:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or `jaxseg/xla` in the user's cache folder."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "jaxseg" / "xla"


def remote_cache() -> str | None:
    """The address in JAX_COMPILATION_CACHE_DIR where it is none of a folder of this machine, such as gs://bucket/cache for all hosts of a TPU pod."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    return chosen if "://" in chosen else None


def use_cache() -> bool:
    """Keep every program that took a second or more to compile (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS changes that).

    Returns whether the cache is on. Where its folder cannot be used it stays off, and a line on stderr says so, once a process.
    """
    import jax

    if remote_cache():
        return True  # JAX has read the variable by itself, and knows such addresses
    folder = cache_folder()
    obstacle = why_unusable(folder)
    if obstacle is not None:
        _say_once(
            f"jaxseg: no compilation cache, so every start compiles anew: {obstacle}; set JAX_COMPILATION_CACHE_DIR to another folder"
        )
        # JAX has read the variable by itself, and would complain at every program.
        jax.config.update("jax_compilation_cache_dir", None)
        return False
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _LEAST_SECONDS not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return True


def why_unusable(folder: Path) -> str | None:
    """Makes the folder (for its owner alone, mode 0700) where it is missing; None where programs can be kept in it, else the reason.

    A program from the cache is run unseen. A folder of another user, or one that others may write to, is therefore refused, unless
    JAX_COMPILATION_CACHE_DIR names it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            return f"{folder} belongs to another user"
        if found.st_mode & 0o022:
            return f"{folder} can be written by others (chmod 700 it, once what lies in it is deleted)"
    return None if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else f"{folder} cannot be written"


def cache_size(folder: Path) -> tuple[int, int]:
    """How many programs the folder holds, and their bytes; (0, 0) where there is none, as before the first run."""
    sizes = []
    for path in folder.glob("*-cache"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # another process evicted it since the listing
            continue
    return len(sizes), sum(sizes)


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
