"""Staging in several processes: memory is kept to, a worker that dies takes nobody with it, and an error names its case last."""

import os
import traceback

import pytest

from jaxseg.data.cases import Case, find_cases
from jaxseg.data.memory import estimated_bytes, memory_limit
from jaxseg.data.recipe import Recipe
from jaxseg.data.staging import Job
from jaxseg.data.store import build_store
from jaxseg.data.workers import _next, stage_all
from jaxseg.errors import ConfigError
from tests.tiny_store import write_scans

RECIPE = Recipe(("T1", "T2"), (2.0, 2.0, 2.5), ("zscore", "zscore"), labels={"ball": 1})


def jobs_of(folder, count):
    cases = find_cases(write_scans(folder / "scans", count=count)).cases
    return [Job(case, RECIPE, folder / f"{case.id}.npz", "hash", "p") for case in cases]


class Deadly:
    """Ends the process that receives it, as a crash in a decoder or the system's memory killer would."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_dies_is_found_and_the_others_go_on(tmp_path):
    good = jobs_of(tmp_path, 3)
    deadly = Job(Case("deadly", {"T1": Deadly()}), RECIPE, tmp_path / "deadly.npz", "hash", "p")
    outcomes = {job.case.id: reason for job, reason in stage_all([good[0], deadly, *good[1:]], 2)}
    assert {name for name, reason in outcomes.items() if reason is None} == {"case_0", "case_1", "case_2"}
    assert "process that prepared it died" in outcomes["deadly"]
    assert all(job.path.is_file() for job in good)


def test_an_error_of_our_own_shows_its_traceback_and_the_case_last(tmp_path):
    good = jobs_of(tmp_path, 1)
    broken = Job(Case("broken", {"T1": 5}), RECIPE, tmp_path / "broken.npz", "hash", "p")
    with pytest.raises(Exception) as caught:
        list(stage_all([broken, *good], 2))
    text = "".join(traceback.format_exception(caught.value))
    assert "read.py" in text and text.strip().splitlines()[-1] == "while preparing case broken"


def test_memory_is_told_from_headers_and_kept_to(tmp_path):
    jobs = jobs_of(tmp_path, 3)
    need = estimated_bytes(jobs[0].case, RECIPE)
    assert estimated_bytes(jobs[0].case, Recipe(("T1", "T2"), (0.2, 0.2, 0.25), ("zscore", "zscore"))) > need
    needs = {job.path: 4 for job in jobs}
    assert _next(jobs, [], 2, needs, 5) is jobs[0] and _next(jobs[1:], jobs[:1], 2, needs, 5) is None
    assert _next(jobs[1:], jobs[:1], 2, needs, 8) is jobs[1] and _next(jobs[2:], jobs[:2], 2, needs, None) is None
    assert memory_limit(2) == 2 * 2**30 and memory_limit(None) > 2**20
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="memory_gib"):
            memory_limit(wrong)


def test_a_case_larger_than_the_limit_is_left_out_with_numbers(tmp_path):
    cases = find_cases(write_scans(tmp_path / "scans", count=2)).cases
    large = find_cases(write_scans(tmp_path / "large", count=1, shape=(120, 120, 60))).cases[0]
    limit = (estimated_bytes(cases[0], RECIPE) + estimated_bytes(large, RECIPE)) / 2 / 2**30
    store = build_store([*cases, Case("large", large.images)], RECIPE, tmp_path / "store", processes=1, memory_gib=limit)
    assert store.names == ("case_0", "case_1") and "raise --memory-gib" in store.left_out[0]["reason"]
