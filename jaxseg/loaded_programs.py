"""How many compiled programs a process may hold. Called by every training before it begins, so that one process can train hundreds of times."""

import sys
from pathlib import Path

_MAPS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def forget_programs(share: float = 0.25) -> bool:
    """Forget JAX's compiled programs if this process has used up more than `share` of the memory maps that Linux allows it. Returns whether it did.

    Each program that is loaded on a CPU takes some maps, a small training 2500, and JAX keeps thousands of programs after their functions are
    gone. A process may have 65 530 maps (vm.max_map_count). At that limit the next compilation fails, and the process dies, without a message,
    while it raises the error. What is still used afterwards is compiled again, or read from the compilation cache. Nothing is done on other systems.
    """
    if "jax" not in sys.modules or not (_MAPS.exists() and _LIMIT.exists()):
        return False
    if memory_maps() <= share * int(_LIMIT.read_text()):
        return False
    sys.modules["jax"].clear_caches()
    return True


def memory_maps() -> int:
    """How many memory maps this process has (Linux)."""
    return _MAPS.read_bytes().count(b"\n")
