"""What machine this is, what is installed, and whether jaxseg can work on it. Called by `jaxseg doctor`."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "nibabel")


def examine(folder: str | Path = ".") -> list[tuple[str, str, bool]]:
    """Rows of (what, finding, is it fine): Python, packages, memory, disk space under `folder`, devices and the compilation cache."""
    rows = [("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.version_info >= (3, 11))]
    rows += [_package(name) for name in PACKAGES]
    rows.append(("memory", f"{_memory_gib():.1f} GiB, {os.cpu_count()} cores", _memory_gib() >= 7))
    free = shutil.disk_usage(Path(folder).resolve()).free / 2**30
    rows.append(("disk", f"{free:.1f} GiB free under {folder}", free >= 2))
    return [*rows, _devices(), _cache()]


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
    except RuntimeError as error:
        return "devices", f"JAX finds none: {error}", False
    kinds = {device.device_kind for device in devices}
    note = "" if devices[0].platform != "cpu" else " (no GPU or TPU: for one, pip install 'jaxseg[cuda]' or 'jaxseg[tpu]')"
    return "devices", f"{len(devices)} x {', '.join(sorted(kinds))}{note}", True


def _cache() -> tuple[str, str, bool]:
    from jaxseg.compilation import cache_folder

    folder = cache_folder()
    entries = sum(1 for _ in folder.glob("*")) if folder.is_dir() else 0
    return "compilation cache", f"{folder}: {entries} programs" + ("" if entries else " (cold: the first run compiles everything)"), True
