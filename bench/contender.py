"""The process of one contender: builds its side of a case, then does what `bench.frame` asks for, line by line.

Standard input takes one word a line (check, warm, time, memory, stop); each is answered by one line of JSON. Run by `bench.process` alone.
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bench.case import Absent, Setting, Work, find_case, load
from bench.memory import anonymous_mib, forget_gpu_peak, forget_peak, gpu_peak_mib, peak_mib
from jaxseg.freed_memory import keep_freed_memory


def pin(threads: int) -> None:
    """So many of the cores that this process may use: XLA takes as many threads as cores, so this comes before its first use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def make_work(arguments: argparse.Namespace) -> Work:
    """The side of the case that the arguments name."""
    setting = Setting(arguments.device, arguments.threads, arguments.quick, arguments.seconds)
    case = find_case(arguments.workload, arguments.variant)
    if arguments.side == "ours":
        keep_freed_memory()  # as every program of ours does, before JAX starts
    return getattr(load(arguments.workload), arguments.side)(case.sizes_for(setting), setting, arguments.folder)


def timed(work: Work) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    work.run()
    return 1e3 * (time.perf_counter() - start)


def answer(word: str, work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what `word` asks for, and what there is to say of it."""
    match word:
        case "check":
            np.savez(arguments.folder / f"{arguments.side}_check.npz", **work.check())  # pyright: ignore[reportArgumentType]
            return {}
        case "warm":
            work.run()
            if arguments.device == "gpu":
                forget_gpu_peak(arguments.side)
            return {"reset": forget_peak()}
        case "time":
            return {"ms": timed(work)}
        case "memory":
            if arguments.device == "gpu":
                return {"mib": gpu_peak_mib(arguments.side), "anonymous": None}
            return {"mib": peak_mib(in_children=work.in_children), "anonymous": None if work.in_children else anonymous_mib()}
    raise ValueError(f"{word!r} is nothing that a contender can be asked for")


def serve(arguments: argparse.Namespace, out: TextIO) -> None:
    """Build, then answer until told to stop. What goes wrong is an answer too, and ends the process."""
    try:
        work = make_work(arguments)
        told = {"compile_s": work.compile_s, "flops": work.flops, "form": work.form}
        print(json.dumps(told), file=out, flush=True)
        for line in sys.stdin:
            if line.strip() == "stop":
                return
            print(json.dumps(answer(line.strip(), work, arguments)), file=out, flush=True)
    except Absent as reason:
        print(json.dumps({"absent": str(reason)}), file=out, flush=True)
    except Exception:
        # The parent cannot see this process: it is told everything, raises it there, and the run fails.
        print(json.dumps({"error": traceback.format_exc()}), file=out, flush=True)
        sys.exit(1)


def main() -> None:
    """Keep standard output for answers, whatever libraries print, and serve."""
    parser = argparse.ArgumentParser()
    for name in ("workload", "variant", "side"):
        parser.add_argument(name)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    pin(arguments.threads)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(arguments, out)


if __name__ == "__main__":
    main()
