"""Peak resident memory of this process from a moment on, by the kernel's count. Called inside each contender."""

import ctypes
import gc
import resource
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


def peak_mib(*, in_children: bool = False) -> float:
    """The most that this process has held since `forget_peak`, in MiB; or the most that one which it started and waited for ever held."""
    if in_children:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
