"""`python -m bench [WORKLOAD[/VARIANT] ...]`: which rows, how many rounds, and in which form they are printed."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from bench.case import Setting, load, workload_names
from bench.frame import Unequal, measure
from bench.machine import describe
from bench.process import Failed
from bench.table import head, table

_ON_GPU = (
    "mae_from_disk/primus_m_160",
    "unetr/base_96_step_batch8",
    "sliding_window",
    "mae_step/base_64_token8",
    "evamae_step/primus_m_160_batch2",
    "unetr/base_96_forward",
    "resenc_unet",
    "swin_unetr",
    "augmentation/96_batch4",
)
"""What runs with --gpu where no workload is named, the most telling first; other workloads never touch a device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print. 0 if every row came out; 1 if contenders were unequal or failed (the other rows are printed all the same)."""
    given = _parser().parse_args(arguments)
    wanted = _chosen(given.workload or (_ON_GPU if given.gpu else workload_names()), large=given.gpu)
    if given.list:
        print("\n".join(f"{workload}/{variant}" for workload, variant in wanted))
        return 0
    setting = Setting("gpu" if given.gpu else "cpu", given.threads, given.quick)
    machine = describe(setting)
    print(json.dumps({"machine": machine}) if given.json else head(machine) + "\n", flush=True)
    rows, failures = [], 0
    end = time.monotonic() + 60 * given.budget_minutes
    for number, (workload, variant) in enumerate(wanted):
        share = (end - time.monotonic()) / (len(wanted) - number)
        if share <= 0:
            print(f"the budget is spent: {len(wanted) - number} rows, from {workload}/{variant} on, were not measured", file=sys.stderr)
            break
        try:
            row = measure(workload, variant, setting, rounds=given.rounds, seconds=share, limit=end - time.monotonic())
        except (Unequal, Failed) as problem:
            print(f"{workload}/{variant}: {problem}", file=sys.stderr, flush=True)
            failures += 1
            continue
        row["peak_fraction"] = None if row["tflops"] is None else row["tflops"] / machine["peak_tflops"]
        rows.append(row)
        if given.json:
            print(json.dumps(row), flush=True)
        else:
            print(f"{row['workload']}: done after {row['rounds']} rounds", file=sys.stderr, flush=True)
    if rows and not given.json:
        print(table(rows))
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="jaxseg beside its peers, checked equal, then timed in alternation"
    )
    parser.add_argument("workload", nargs="*", help="WORKLOAD or WORKLOAD/VARIANT; all by default")
    parser.add_argument("--list", action="store_true", help="print the rows there are, and end")
    parser.add_argument("--json", action="store_true", help="a JSON line per row instead of the table; the first is the machine")
    parser.add_argument("--quick", action="store_true", help="sizes of a few voxels: shows that everything runs, measures nothing")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, in bfloat16")
    parser.add_argument("--rounds", type=_positive, default=10, help="paired rounds a row")
    parser.add_argument(
        "--budget-minutes",
        type=float,
        default=float("inf"),
        help="share so many minutes among the rows, and end then: fewer rounds, or rows",
    )
    parser.add_argument("--threads", type=_positive, default=_cores(), help="of each contender")
    return parser


def _chosen(names: Sequence[str], *, large: bool) -> list[tuple[str, str]]:
    """(workload, variant) of every row that is meant; of those for a GPU alone only the named ones, unless `large`.

    Ends the program for a name that there is not.
    """
    rows = []
    for name in names:
        workload, _, variant = name.partition("/")
        if workload not in workload_names():
            sys.exit(f"there is no workload {workload!r}; there are {', '.join(workload_names())}")
        variants = [case.variant for case in load(workload).CASES if large or variant or not case.gpu_only]
        if variant and variant not in variants:
            sys.exit(f"workload {workload} has no row {variant!r}; there are {', '.join(variants)}")
        rows += [(workload, each) for each in ([variant] if variant else variants)]
    return rows


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
