"""What a workload is: its cases, the setting they run under, and the work that each side hands to `bench.contender`."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from bench import workloads

SAME_MATHS, OUR_RECIPE = "same maths", "our recipe"
Kind = Literal["same maths", "our recipe"]
Side = Literal["peer", "ours"]
Sizes = TypeVar("Sizes")


class Absent(Exception):
    """The peer is not installed, or cannot use this device: its row then holds ours alone, and says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Equal for both contenders of a row: where and how precisely they compute, on how many threads, at full or quick sizes, and in about how
    many seconds for the row."""

    device: Literal["cpu", "gpu"] = "cpu"
    threads: int = 2
    quick: bool = False
    seconds: float = float("inf")

    @property
    def dtype(self) -> str:
        """What the networks compute in."""
        return "bfloat16" if self.device == "gpu" else "float32"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        variant: what tells it from other rows of its workload, such as "base_96".
        peer: whose code stands on the other side.
        kind: "same maths" (every number is checked) or "our recipe" (less or other work for the same purpose).
        sizes: whatever the workload's sides need; `quick` is its counterpart for a run of seconds.
        amount, unit: how much of what one run gets through, for rates: 1 "crops", 884736 "voxels".
        tolerance: largest differences allowed, by the name of what is checked; 1e-4 where not named.
        warmup: runs before the first that counts.
        gpu_only: too large for a CPU; there it runs only where it is named.
        voxels: how many voxels one run gets through, where `unit` counts something else.
    """

    variant: str
    peer: str
    kind: Kind
    sizes: Any
    quick: Any
    amount: Callable[[Any], float]
    unit: str
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warmup: int = 1
    gpu_only: bool = False
    voxels: Callable[[Any], float] | None = None

    def sizes_for(self, setting: Setting) -> Any:
        """The sizes that this setting asks for."""
        return self.quick if setting.quick else self.sizes


@dataclasses.dataclass(frozen=True)
class Work:
    """What one side of a row does.

    Attributes:
        check: numbers that must be equal on both sides, by name; called before anything is timed.
        run: what is timed; it returns when the work is done, not when it is queued.
        flops: floating-point operations of one run, where they are known.
        compile_s: seconds that compiling took, with nothing cached.
        form: which of the peer's forms was the fastest, and the milliseconds of all.
        in_children: the work is done by processes that it starts, and their memory counts.
    """

    check: Callable[[], dict[str, np.ndarray]]
    run: Callable[[], object]
    flops: float | None = None
    compile_s: float | None = None
    form: str | None = None
    in_children: bool = False


def workload_names() -> list[str]:
    """The workloads there are: the files of `bench/workloads`."""
    return sorted(module.name for module in pkgutil.iter_modules(workloads.__path__))


def load(name: str) -> Any:
    """A workload: a module with `CASES`, `peer(sizes, setting, folder) -> Work` and `ours(sizes, setting, folder) -> Work`.

    The peer is made first and may leave files (its weights) in `folder`, which ours reads.
    """
    return importlib.import_module(f"bench.workloads.{name}")


def find_case(workload: str, variant: str) -> Case:
    """The case of that name. ValueError if there is none."""
    cases = {case.variant: case for case in load(workload).CASES}
    if variant not in cases:
        raise ValueError(f"workload {workload} has no case {variant!r}; there are {', '.join(cases)}")
    return cases[variant]
