"""What machine this is, what is installed, and whether jaxseg can work on it. Called by `jaxseg doctor`."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "nibabel")


def examine(folder: str | Path = ".") -> list[tuple[str, str, bool]]:
    """Rows of (what, finding, is it fine): Python, packages, memory, disk space under `folder`, devices, float64, compilation cache."""
    rows = [("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.version_info >= (3, 11))]
    rows += [_package(name) for name in PACKAGES]
    rows.append(("memory", f"{_memory_gib():.1f} GiB, {os.cpu_count()} cores", _memory_gib() >= 7))
    free = shutil.disk_usage(Path(folder).resolve()).free / 2**30
    rows.append(("disk", f"{free:.1f} GiB free under {folder}", free >= 2))
    return [*rows, _devices(), _numbers(), _cache()]


def device_memory_gib() -> float:
    """What training may take of the first device's memory; on a machine without an accelerator half of its own."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["bytes_limit"] / 2**30 if stats and "bytes_limit" in stats else 0.5 * _memory_gib()


def _package(name: str) -> tuple[str, str, bool]:
    try:
        return name, importlib.metadata.version(name), True
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed: pip install jaxseg", False


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _devices() -> tuple[str, str, bool]:
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion without words where JAX_PLATFORMS names a plugin that is not installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        advice = (
            f"JAX_PLATFORMS is {asked!r}: unset it, or pip install 'jaxseg[cuda]' or 'jaxseg[tpu]'"
            if asked
            else "install jax and jaxlib anew"
        )
        return "devices", f"JAX finds none{f' ({error})' if str(error) else ''}; {advice}", False
    kinds = {device.device_kind for device in devices}
    note = "" if devices[0].platform != "cpu" else " (no GPU or TPU: for one, pip install 'jaxseg[cuda]' or 'jaxseg[tpu]')"
    return "devices", f"{len(devices)} x {', '.join(sorted(kinds))}{note}", True


def _numbers() -> tuple[str, str, bool]:
    import jax

    if not jax.config.read("jax_enable_x64"):
        return "numbers", "float32, or bfloat16 where a config says so", True
    return (
        "numbers",
        "float64 is on (jax_enable_x64), which jaxseg is not tested with and which takes more memory: unset JAX_ENABLE_X64",
        False,
    )


def _cache() -> tuple[str, str, bool]:
    from jaxseg.compilation import cache_folder, cache_size, remote_cache, why_unusable

    if remote := remote_cache():
        return "compilation cache", f"{remote}: not on this machine, not looked into", True
    folder = cache_folder()
    obstacle = why_unusable(folder)
    if obstacle is not None:
        return "compilation cache", f"off, so that every run compiles everything: {obstacle}", True
    programs, size = cache_size(folder)
    state = f"{programs} programs, {size / 2**20:.1f} MiB" if programs else "cold: the first run compiles everything"
    return "compilation cache", f"{folder}: {state}", True
