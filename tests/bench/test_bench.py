"""The bench's frame: intervals against the closed form, unequal contenders refused, rows of the promised form from real processes. No time is
asserted."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from bench import jax_side, torch_side
from bench.__main__ import main
from bench.case import OUR_RECIPE, SAME_MATHS, Absent, Setting, find_case, load, workload_names
from bench.frame import Unequal, check_equal, differences
from bench.interval import paired_ratio
from bench.process import Failed, Process
from bench.table import table
from tests.peers import import_peer

PROMISED = {
    "workload": str,
    "peer": str,
    "kind": str,
    "peer_ms": float,
    "ours_ms": float,
    "ratio": float,
    "ratio_low": float,
    "ratio_high": float,
    "peer_mib": float,
    "ours_mib": float,
    "equal": float,
}


def binomial_bounds(n):
    """The order statistics (from 0) that bound the bootstrap's median of n values, n odd: it is at most the k-th smallest with the
    probability that at least (n + 1) / 2 of n draws fall among the k smallest."""

    def at_most(k):
        return sum(math.comb(n, i) * (k / n) ** i * (1 - k / n) ** (n - i) for i in range((n + 1) // 2, n + 1))

    return [next(k - 1 for k in range(1, n + 1) if at_most(k) >= level) for level in (0.025, 0.975)]


@pytest.mark.parametrize("rounds", [5, 9, 15])
def test_the_interval_is_that_of_the_exact_bootstrap_of_a_median(rounds):
    ratios = np.sort(np.random.default_rng(rounds).uniform(0.5, 3, rounds))
    ours = np.random.default_rng(1).uniform(10, 20, rounds)
    low, high = binomial_bounds(rounds)
    assert paired_ratio(ratios * ours, ours) == pytest.approx((np.median(ratios), ratios[low], ratios[high]))


def test_what_slows_a_whole_round_changes_no_ratio():
    slow = np.array([1.0, 7.0, 2.0, 30.0])
    assert paired_ratio(2 * slow, slow) == (2, 2, 2)
    assert paired_ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="2 rounds of the peer and 1 of ours"):
        paired_ratio([1.0, 2.0], [1.0])


def test_unequal_contenders_are_refused():
    numbers = {"logits": np.array([0.0, 2.0], np.float32), "labels": np.array([1, 2, 3, 4])}
    found = differences(numbers, {"logits": numbers["logits"] + np.float32(0.5), "labels": np.array([1, 2, 3, 5])})
    assert found == {"logits": 0.25, "labels": 0.25}
    assert check_equal(numbers, numbers, {}, "row") == {"logits": 0, "labels": 0}
    assert check_equal(numbers, {**numbers, "labels": np.array([1, 2, 3, 5])}, {"labels": 0.3}, "row")["labels"] == 0.25
    with pytest.raises(Unequal, match=r"row: logits differs by 0\.00025 \(allowed 0\.0001\)"):
        check_equal(numbers, {**numbers, "logits": np.array([0.0, 2.0005])}, {}, "row")
    for wrong in ({}, {"logits": numbers["logits"]}, {**numbers, "logits": np.zeros(3)}, {**numbers, "logits": np.array([0, np.nan])}):
        with pytest.raises(Unequal):
            check_equal(numbers, wrong, {"logits": 1e9, "labels": 1e9}, "row")
    with pytest.raises(Unequal, match="nothing to compare"):
        check_equal({}, {}, {}, "row")


def test_a_row_without_a_peer_says_why_and_claims_no_ratio():
    empty = dict.fromkeys(("peer_ms", "ratio", "ratio_low", "ratio_high", "peer_mib", "equal", "peer_form", "compile_s", "tflops"))
    row = {"workload": "w/v", "kind": SAME_MATHS, "peer": "MONAI", "ours_ms": 12.5, "ours_mib": 100.0, "per_second": 80.0, "unit": "crops"}
    lines = table([{**row, **empty, "absent": "no GPU for it", "rounds": 3, "peak_fraction": 0.412}]).splitlines()
    assert lines[2] == "| w/v | same maths | MONAI | – | 12.5 | – | – | 100 | – | 80 crops | – | 41% |"
    assert lines[-1] == "w/v: no peer (no GPU for it)"


def test_every_workload_lists_rows_of_both_sizes(capsys):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.split()
    assert main(["--list", "--gpu"]) == 0
    on_gpu = capsys.readouterr().out.split()
    assert {"mae_from_disk/primus_m_160", "unetr/base_96_step_batch8", "sliding_window/unetr_small_240"} <= set(on_gpu)
    assert len(set(listed)) == len(listed) and {"mae_step/base_96_token16", "unetr/small_64_step"} <= set(listed)
    for workload in workload_names():
        module = load(workload)
        for case in module.CASES:
            assert case.kind in (SAME_MATHS, OUR_RECIPE)
            assert (f"{workload}/{case.variant}" in listed) != case.gpu_only and (
                not case.gpu_only or f"{workload}/{case.variant}" in on_gpu
            )
            assert type(case.quick) is type(case.sizes) and case.amount(case.quick) > 0 < case.amount(case.sizes)
        assert callable(module.peer) and callable(module.ours)
    with pytest.raises(SystemExit, match="no workload 'unetx'"):
        main(["unetx", "--list"])


@pytest.mark.parity
@pytest.mark.parametrize(
    "row",
    [
        "mae_step/base_64_token8",
        "evamae_step/primus_s_64_batch2",
        "unetr/base_96_step_batch8",
        "resenc_unet/m_64_step",
        "swin_unetr/24_64_step",
    ],
)
def test_without_its_peer_a_row_has_the_same_network(row, tmp_path, monkeypatch):
    """Where the peer is absent no weights are left to convert: the config must be the one that they would have told."""
    import_peer("monai")
    workload, setting = load(row.split("/")[0]), Setting("cpu", 1, quick=True)
    sizes = find_case(*row.split("/")).quick
    built = []
    monkeypatch.setattr(torch_side, "train_work", lambda net, *_: torch_side.save_weights(net, tmp_path / "both"))
    monkeypatch.setattr(jax_side, "train_work", lambda graph, params, *_: built.append(nnx.merge(graph, params).config))
    for name in ("both", "alone"):
        (tmp_path / name).mkdir()
    workload.peer(sizes, setting, tmp_path / "both")
    for name in ("both", "alone"):
        workload.ours(sizes, setting, tmp_path / name)
    assert built[0] == built[1]


class Half(Setting):
    """A CPU that computes as a GPU does."""

    dtype = property(lambda self: "bfloat16")


@pytest.mark.parity
@pytest.mark.parametrize("row", ["mae_step/base_64_token8", "evamae_step/primus_s_64_batch2", "unetr/base_96_step_batch8"])
def test_peers_run_in_half_precision(row, tmp_path):
    import_peer("monai")
    name, variant = row.split("/")
    numbers = load(name).peer(find_case(name, variant).quick, Half("cpu", 1, quick=True), tmp_path).check()
    assert numbers and all(np.isfinite(value).all() for value in numbers.values())


def test_half_precision_allows_more_but_not_anything():
    peer, near, far = ({"grad_norm": np.array(value), "loss": np.array(1.0)} for value in (1.0, 1.04, 1.2))
    assert check_equal(peer, near, {"grad_norm": 1e-2}, "row", factor=300)
    with pytest.raises(Unequal, match=r"grad_norm differs by 0.2 \(allowed 0.05\)"):
        check_equal(peer, far, {"grad_norm": 1e-2}, "row", factor=300)


def test_a_peer_that_fails_in_every_form_is_absent():
    def make(form):
        raise RuntimeError("Index put requires equal types")

    with pytest.raises(Absent, match="every form: plain fails .RuntimeError: Index put"):
        torch_side.fastest(make, ["plain"], Setting("cpu", 1, quick=True))


def test_a_contender_is_ended_at_the_limit(tmp_path):
    with pytest.raises(Failed, match="no time was left"):
        Process("surface", "brain", "ours", tmp_path, Setting("cpu", 1, quick=True), limit=0.01)


@pytest.mark.parity
@pytest.mark.slow
def test_two_workloads_run_to_the_end(capsys):
    import_peer("monai")
    assert main(["surface/brain", "unetr/small_64_forward", "--quick", "--json", "--rounds", "1", "--threads", "1"]) == 0
    machine, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["machine"]["peak_tflops"] > 0 and machine["machine"]["precision"] == "float32"
    assert [row["workload"] for row in rows] == ["surface/brain", "unetr/small_64_forward"]
    for row in rows:
        assert all(type(row[name]) is kind for name, kind in PROMISED.items())
        assert row["kind"] == SAME_MATHS and row["equal"] <= 1e-4 and row["absent"] is None and row["tflops"] is None
        assert row["ratio_low"] == row["ratio"] == row["ratio_high"] == pytest.approx(row["peer_ms"] / row["ours_ms"])
    assert rows[0]["compile_s"] is None and rows[1]["compile_s"] > 0 and rows[1]["peer_form"].startswith(("plain", "channels last"))


def test_the_bench_is_imported_where_there_is_no_pytest():
    """As on a machine with a GPU that holds what `make carry` brought."""
    modules = ["jax_side", "torch_side", "__main__", *(f"workloads.{name}" for name in workload_names())]
    program = f"import sys, importlib; sys.modules['pytest'] = None; [importlib.import_module('bench.' + name) for name in {modules}]"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
