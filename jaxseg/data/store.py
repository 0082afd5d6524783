"""Makes and updates a store: scans are prepared, written as a dataset, and the memory-mapped cache is made from that.

Called by `jaxseg prepare` and the main job. On disk: `tfds/` (ArrayRecord, the versioned truth), `cache/` (`.npy` per case), `store.json`.
The manifest is written last and what it replaces is removed after it, so that a run killed at any moment goes on with the same command.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.cache import CACHE_SUFFIXES, damaged_files, write_cache
from jaxseg.data.cases import Case, CaseSet
from jaxseg.data.catalog import Entry, Store, manifest, open_store
from jaxseg.data.intensity import air_value
from jaxseg.data.io.decoded import PLAIN, Rules
from jaxseg.data.memory import memory_limit
from jaxseg.data.recipe import Recipe
from jaxseg.data.records import damaged, read_records, version_folder, write_records
from jaxseg.data.staging import Job, file_stem, inputs_hash, is_staged, read_stage, without_paths
from jaxseg.data.workers import Outcome, stage_all
from jaxseg.errors import InputError
from jaxseg.files import lock_folder, storage_errors, write_json

__all__ = ["Entry", "Store", "build_store", "open_store"]

Progress = Callable[[int, int, str], None]
Stage = Callable[[Sequence[Job]], Iterator[Outcome]]


@dataclass(frozen=True)
class Plan:
    """What a build has to do: jobs to stage by case, records to take from the old dataset, cases that cannot be used; and what files are read by."""

    jobs: dict[str, Job]
    kept: dict[str, int]
    left_out: dict[str, str]
    rules: Rules

    @property
    def names(self) -> list[str]:
        return sorted({*self.jobs, *self.kept} - set(self.left_out))


def build_store(
    cases: CaseSet | Iterable[Case],
    recipe: Recipe,
    out: str | Path,
    *,
    patients: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    processes: int | None = None,
    memory_gib: float | None = None,
    stage: Stage | None = None,
    progress: Progress | None = None,
) -> Store:
    """Prepare every case by the recipe and store it under `out`; what is there already and unchanged is kept.

    Args:
        cases: the cases, ids unique.
        recipe: how they are prepared; part of the hash that says whether a case has changed.
        out: the store's folder; one process at a time may build in it.
        patients: patient key by case id, for splits by patient; by default each case is a patient of its own.
        left_out: reasons by case id of cases that were found unusable before, to be listed with the others.
        processes: worker processes (spawned), each holding one case; by default 2 (1 on one core); 1 prepares in this process.
        memory_gib: what all workers together may take, estimated from headers; by default four fifths of what is free.
        stage: stages jobs elsewhere (`beam.stage_on_beam`) instead of in worker processes.
        progress: called as `progress(done, total, text)`.

    Returns:
        The open store. A case that could not be prepared is in `store.left_out` as {"name", "reason"}.

    Raises:
        InputError: two cases share an id or are read by different rules, no case could be prepared, or `out` holds a store of another version.
        StorageError: `out` cannot be written, is full, or another process is building in it.
    """
    out, found = Path(out), _unique(cases)
    processes = min(2, os.cpu_count() or 1) if processes is None else processes
    report = progress or (lambda done, total, text: None)
    with lock_folder(out), storage_errors(out):
        old = open_store(out) if (out / "store.json").is_file() else None
        plan = _plan(found, recipe, out, old, patients or {})
        plan.left_out.update(left_out or {})
        _stage(plan, stage or (lambda jobs: stage_all(jobs, processes, memory_limit(memory_gib))), report)
        if not plan.names:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(plan.left_out.items())[:3])
            raise InputError(f"{out}: none of the {len(found)} cases could be prepared. {reasons}")
        if old is None or plan.jobs.keys() & set(plan.names) or plan.names != list(old.names) or plan.left_out != _reasons(old):
            dataset = _write_dataset(plan, recipe, out, old, report)
            _write_store(plan, recipe, out, dataset, old, report)
        else:
            _mend_cache(out, old, recipe)
        _clean(out)
        return open_store(out)


def _unique(cases: Iterable[Case]) -> list[Case]:
    found: dict[str, Case] = {}
    for case in cases:
        if case.id in found:
            raise InputError(f"two cases are called {case.id!r}; a store needs one name a case: rename one of them")
        found[case.id] = case
    return list(found.values())


def _common_rules(cases: Sequence[Case]) -> Rules:
    rules = {case.rules for case in cases}
    if len(rules) > 1:
        raise InputError(
            "the cases of a store are read by one set of rules (of files without an orientation, or with two), and these have several"
        )
    return next(iter(rules), PLAIN)


def _plan(cases: list[Case], recipe: Recipe, out: Path, old: Store | None, patients: Mapping[str, str]) -> Plan:
    plan = Plan({}, {}, {}, _common_rules(cases))
    usable = old is not None and not damaged(old.tfds, old.dataset["version"], old.dataset["files"])
    for case in cases:
        try:
            inputs = inputs_hash(case, recipe)
        except InputError as error:
            plan.left_out[case.id] = without_paths(str(error), case)
            continue
        entry = old.entry(case.id) if old is not None and case.id in old.names else None
        patient = patients.get(case.id, case.id)
        if usable and entry is not None and (entry.inputs, entry.patient) == (inputs, patient):
            plan.kept[case.id] = entry.record
        else:
            plan.jobs[case.id] = Job(case, recipe, _staging(out) / f"{file_stem(case.id)}.npz", inputs, patient)
    return plan


def _stage(plan: Plan, stage: Stage, report: Progress) -> None:
    todo = [job for job in plan.jobs.values() if not is_staged(job)]
    for done, (job, reason) in enumerate(stage(todo), 1):
        if reason is not None:
            plan.left_out[job.case.id] = reason
        report(done, len(todo), f"prepared {job.case.id}")


def _write_dataset(plan: Plan, recipe: Recipe, out: Path, old: Store | None, report: Progress) -> dict[str, Any]:
    number = 0 if old is None else int(old.dataset["version"].rpartition(".")[2]) + 1
    before = read_records(old.tfds, old.dataset["version"]) if old is not None and plan.kept else None

    def records() -> Iterator[dict[str, Any]]:
        for done, name in enumerate(plan.names, 1):
            if before is not None and name in plan.kept:
                yield before[plan.kept[name]]
            else:
                yield _staged(plan.jobs[name])
            report(done, len(plan.names), f"dataset: {name}")

    version = f"1.0.{number}"
    return {"version": version, "files": write_records(out / "tfds", version, records, len(recipe.channels))}


def _staged(job: Job) -> dict[str, Any]:
    record = read_stage(job.path)
    if record is None:
        raise InputError(f"{job.path}: this staging file went missing while the store was being built; run the same command again")
    return record


def _write_store(plan: Plan, recipe: Recipe, out: Path, dataset: dict[str, Any], old: Store | None, report: Progress) -> None:
    records = read_records(out / "tfds", dataset["version"])
    entries = []
    for index in range(len(records)):
        record = records[index]
        name = record["name"]
        entry = old.entry(name) if old is not None and name in plan.kept else None
        if entry is not None and not damaged_files(out / "cache", entry.files):
            entries.append(replace(entry, record=index))
        else:
            entries.append(_cached(out, recipe, record, index))
        report(index + 1, len(records), f"cache: {name}")
    _write_manifest(out, recipe, dataset, entries, plan.left_out, plan.rules)


def _mend_cache(out: Path, old: Store, recipe: Recipe) -> None:
    broken = [name for name in old.names if damaged_files(old.cache, old.entry(name).files)]
    if broken:
        records = read_records(old.tfds, old.dataset["version"])
        mended = {name: _cached(out, recipe, records[old.entry(name).record], old.entry(name).record) for name in broken}
        entries = [mended.get(name, old.entry(name)) for name in old.names]
        _write_manifest(out, recipe, old.dataset, entries, _reasons(old), old.rules)


def _cached(out: Path, recipe: Recipe, record: dict[str, Any], index: int) -> Entry:
    values, counts = np.unique(record["label"], return_counts=True)
    stem = file_stem(record["name"])
    return Entry(
        name=record["name"],
        file=stem,
        shape=record["mask"].shape,
        spacing=tuple(record["spacing"].tolist()),
        affine=record["affine"],
        present=tuple(record["present"].tolist()),
        air=tuple(air_value(rule) if there else 0.0 for rule, there in zip(recipe.intensity, record["present"], strict=True)),
        patient=record["patient"],
        label_counts=dict(zip(values.tolist(), counts.tolist(), strict=True)) if record["labelled"] else None,
        inputs=record["inputs"],
        record=index,
        info=json.loads(record["info"]),
        files=write_cache(out / "cache", stem, record),
    )


def _write_manifest(
    out: Path, recipe: Recipe, dataset: dict[str, Any], entries: Sequence[Entry], left_out: Mapping[str, str], rules: Rules
) -> None:
    reasons = [{"name": name, "reason": reason} for name, reason in sorted(left_out.items())]
    write_json(out / "store.json", manifest(asdict(recipe), dataset, sorted(entries, key=lambda entry: entry.name), reasons, rules))


def _reasons(store: Store) -> dict[str, str]:
    return {item["name"]: item["reason"] for item in store.left_out}


def _staging(out: Path) -> Path:
    return out / "staging"


def _clean(out: Path) -> None:
    """Remove what the manifest does not name: staging files, older versions of the dataset, cache files of cases that are gone.

    Nothing else: a user's own files may lie there, too.
    """
    store = open_store(out)
    for path in _staging(out).glob("*.npz"):
        path.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        _staging(out).rmdir()
    current = version_folder(store.tfds, store.dataset["version"])
    for folder in current.parent.iterdir():
        if folder != current and re.fullmatch(r"\d+\.\d+\.\d+|incomplete\..*", folder.name):
            shutil.rmtree(folder)
    named = {file["file"] for name in store.names for file in store.entry(name).files.values()}
    for path in store.cache.iterdir():
        if path.name not in named and path.name.endswith(CACHE_SUFFIXES):
            path.unlink()
