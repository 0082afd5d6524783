"""A case from beginning to end: both contenders built, their numbers compared, rounds taken in turn, a row. Called by `bench.__main__`."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import Case, Setting, Side, find_case
from bench.interval import paired_ratio
from bench.process import Process

_REST = 0.2
"""Seconds between two runs: threads of the one before still spin for a while."""
_DEFAULT = 1e-4
_HALF = 300
"""How much more bfloat16 may differ: its rounding is 2^16 times coarser, and errors partly cancel."""
_MOST = 0.05
"""What bfloat16 may differ by at most, of the range of the numbers or as a share of labels, unless the case itself allows more."""
Arrays = Mapping[str, np.ndarray]


class Unequal(Exception):
    """The contenders do not compute the same: there is nothing to time."""


def measure(
    workload: str, variant: str, setting: Setting, *, rounds: int, seconds: float = float("inf"), limit: float = float("inf")
) -> dict[str, Any]:
    """The row of a case: both sides checked equal, then timed in alternation, at most `rounds` times and about `seconds` long, and never
    longer than `limit`.

    Raises Unequal if the numbers differ by more than the case allows, process.Failed if a side ends with an error.
    """
    case = find_case(workload, variant)
    setting, begin = dataclasses.replace(setting, seconds=seconds), time.monotonic()
    deadline = begin + seconds
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        sides: dict[Side, Process] = {
            side: stack.enter_context(Process(workload, variant, side, folder, setting, limit - (time.monotonic() - begin)))
            for side in ("peer", "ours")
        }
        row: dict[str, Any] = {"workload": f"{workload}/{variant}", "peer": case.peer, "kind": case.kind}
        absent = sides["peer"].told.get("absent")
        contenders: list[Side] = ["ours"] if absent else ["peer", "ours"]
        if "absent" in sides["ours"].told:
            raise Unequal(f"{workload}/{variant}: our own side cannot run here: {sides['ours'].told['absent']}")
        equal = None if absent else _check(sides, folder, case, setting, f"{workload}/{variant}")
        times = _rounds(sides, contenders, case.warmup, rounds, deadline)
        memory = {side: sides[side].ask("memory") for side in contenders}
        row |= {f"{side}_anonymous_mib": memory[side]["anonymous"] for side in contenders}
        peaks: dict[Side, float] = {side: memory[side]["mib"] for side in contenders}
        row |= _numbers(times, peaks) | {"equal": equal, "absent": absent, "rounds": len(times["ours"])}
        row |= {"peer_form": sides["peer"].told.get("form"), "compile_s": sides["ours"].told["compile_s"]}
        return row | _rates(case, setting, row, sides["ours"].told["flops"])


def differences(peer: Arrays, ours: Arrays) -> dict[str, float]:
    """How far ours is from the peer, by name: the largest difference over the range of the peer's (or its size, for one number); for
    integers the share that differs. Infinite for other names, shapes or what is not finite."""
    if peer.keys() != ours.keys():
        return {name: float("inf") for name in peer.keys() ^ ours.keys()}
    return {name: _difference(np.asarray(peer[name]), np.asarray(ours[name])) for name in peer}


def check_equal(peer: Arrays, ours: Arrays, tolerance: Mapping[str, float], where: str, *, factor: float = 1.0) -> dict[str, float]:
    """The differences. Raises Unequal where one is larger than its tolerance times `factor`, or if nothing was given to compare."""
    found = differences(peer, ours)
    allowed = {name: _allowed(tolerance.get(name, _DEFAULT), factor) for name in found}
    far = {name: value for name, value in found.items() if not value <= allowed[name]}
    if far or not found:
        told = ", ".join(f"{name} differs by {value:.2g} (allowed {allowed[name]:.2g})" for name, value in far.items())
        raise Unequal(f"{where}: {told or 'nothing to compare'}; unequal contenders are not timed")
    return found


def _allowed(tolerance: float, factor: float) -> float:
    return max(tolerance, min(factor * tolerance, _MOST))


def _difference(peer: np.ndarray, ours: np.ndarray) -> float:
    if peer.shape != ours.shape or not peer.size:
        return float("inf")
    if not np.issubdtype(peer.dtype, np.floating):
        return float(np.mean(peer != ours))
    if not (np.isfinite(peer).all() and np.isfinite(ours).all()):
        return float("inf")
    scale = float(np.ptp(peer)) or float(np.abs(peer).max()) or 1.0
    return float(np.abs(peer.astype(np.float64) - ours.astype(np.float64)).max()) / scale


def _check(sides: Mapping[Side, Process], folder: Path, case: Case, setting: Setting, where: str) -> float:
    for process in sides.values():
        process.ask("check")
    with np.load(folder / "peer_check.npz") as peer, np.load(folder / "ours_check.npz") as ours:
        factor = _HALF if setting.dtype == "bfloat16" else 1.0
        return max(check_equal(dict(peer), dict(ours), case.tolerance, where, factor=factor).values())


def _rounds(sides: Mapping[Side, Process], order: list[Side], warmup: int, rounds: int, deadline: float) -> dict[Side, list[float]]:
    """Milliseconds by side. Who begins changes from round to round."""
    for side in order:
        for _ in range(warmup):
            sides[side].ask("warm")
    times: dict[Side, list[float]] = {side: [] for side in order}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for side in order[:: 1 if number % 2 == 0 else -1]:
            time.sleep(_REST)
            times[side].append(sides[side].ask("time")["ms"])
    return times


def _numbers(times: Mapping[Side, list[float]], peaks: Mapping[Side, float]) -> dict[str, float | None]:
    ours = statistics.median(times["ours"])
    if "peer" not in times:
        empty = dict.fromkeys(("peer_ms", "ratio", "ratio_low", "ratio_high", "peer_mib"))
        return {**empty, "ours_ms": ours, "ours_mib": peaks["ours"]}
    ratio = paired_ratio(times["peer"], times["ours"])
    return {
        "peer_ms": statistics.median(times["peer"]),
        "ours_ms": ours,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "peer_mib": peaks["peer"],
        "ours_mib": peaks["ours"],
    }


def _rates(case: Case, setting: Setting, row: Mapping[str, Any], flops: float | None) -> dict[str, Any]:
    seconds = row["ours_ms"] / 1e3
    sizes = case.sizes_for(setting)
    return {
        "per_second": case.amount(sizes) / seconds,
        "voxels_per_second": None if case.voxels is None else case.voxels(sizes) / seconds,
        "unit": case.unit,
        "tflops": None if flops is None else flops / seconds / 1e12,
    }
