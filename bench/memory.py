"""Peak memory of this process: what it has held since some moment by the kernel's count, or of a GPU by its library's. Called inside each
contender."""

import ctypes
import gc
import resource
from pathlib import Path
from typing import Literal

_STATUS, _CLEAR, _MAPS = (Path("/proc/self") / name for name in ("status", "clear_refs", "smaps_rollup"))


def forget_peak() -> bool:
    """Give freed memory back and start the peak anew (Linux). False where the kernel offers no such thing: the peak is then that of the
    whole life."""
    gc.collect()
    if not _CLEAR.exists():
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        _CLEAR.write_text("5")
    except PermissionError:
        return False
    return True


def anonymous_mib() -> float | None:
    """What this process holds now that is no file's page, in MiB: pages of mapped files can be taken from it at any time. None where unknown."""
    if not _MAPS.exists():
        return None
    line = next(line for line in _MAPS.read_text().splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1]) / 1024


def peak_mib(*, in_children: bool = False) -> float:
    """The most that this process has held since `forget_peak`, in MiB; or the most that one which it started and waited for ever held."""
    if in_children:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def forget_gpu_peak(side: Literal["peer", "ours"]) -> None:
    """Start the peak anew, of what was tried before the form that is measured; only PyTorch's can be. JAX's stays that of the whole life."""
    if side == "peer":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gpu_peak_mib(side: Literal["peer", "ours"]) -> float:
    """The most that the arrays of PyTorch (the peer, since `forget_gpu_peak`) or JAX (ours) have taken on the first GPU, in MiB."""
    if side == "peer":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    import jax

    stats = jax.local_devices()[0].memory_stats()
    assert stats is not None, "a GPU keeps account of its memory"
    return stats["peak_bytes_in_use"] / 2**20
