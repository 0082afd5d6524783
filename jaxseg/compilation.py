"""JAX's compilation cache on disk, in a folder of the user's own. Switched on by the command line, so that a second run starts quickly."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR, or `jaxseg/xla` in the user's cache folder."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxseg" / "xla"


def use_cache() -> None:
    """Keep every program that took a second or more to compile. A folder that cannot be written leaves the cache off."""
    import jax

    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
