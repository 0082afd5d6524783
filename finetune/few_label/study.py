"""A few-label study: the grid is checked, its cells filled in as time allows, and the results written after each. Called by `__main__`.

Cells that are done are kept, failed ones are kept and reported; what is not measured says so.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from finetune.config import FinetuneConfig
from finetune.few_label.arms import Arm, arms_of, settings_of
from finetune.few_label.cells import DONE, FAILED, Cell, choose_cells, grid_of, read_cell, write_cell
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.measure import measure
from finetune.few_label.page import write_report
from finetune.few_label.results import Plan, summarise
from finetune.few_label.subsets import DRAWS, keep_split, labelled_cases
from finetune.floor import position_floor
from jaxseg.audit import card_of, refuse_overlap
from jaxseg.config import as_json
from jaxseg.data.cases import Case, find_cases
from jaxseg.data.duplicates import find_overlaps, scans_of_card, scans_of_store
from jaxseg.data.pseudonyms import kept_salt, pseudonymous
from jaxseg.data.split import refuse_shared_patients, select_cases
from jaxseg.data.store import Store, open_store
from jaxseg.errors import ConfigError, JaxsegError, Preempted, StorageError
from jaxseg.files import lock_folder, read_json, sha256_of, write_json
from jaxseg.prepare import NAMES

Measure = Callable[..., dict[str, Any]]
"""What fills in a cell: `measure.measure`, or a test's own."""


@dataclass(frozen=True)
class Results:
    """A study's folder and what its `results.json` holds."""

    folder: Path
    content: dict[str, Any]


def run_study(config: FewLabelConfig, *, measure: Measure = measure) -> Results:
    """Fill in the cells that `config.cells` asks for, and write `results.json`, `table.md`, `learning_curve.png` and `index.html` into `config.out`.

    A cell whose training or scoring fails is kept as failed, with the reason. The same command goes on where it was stopped.

    Raises:
        ConfigError: a field is missing or wrong, a cell was measured with other settings, labelled cases or the pretraining share scans
            with the test cases. StorageError, Preempted: as fine-tuning.
    """
    missing = [name for name in ("scans", "store", "out") if not getattr(config, name)]
    missing += ["pretrained"] if not config.pretrained and {"pretrained", "frozen"} & set(config.arms) else []
    if missing:
        raise ConfigError(f"a few-label study needs {', '.join('--' + name for name in missing)}")
    arms, store = arms_of(config.arms, config.pretrained), open_store(config.store)
    cells = grid_of(arms, config.labels, config.draws, config.seeds)
    chosen, out = choose_cells(cells, config.cells), Path(config.out)
    with lock_folder(out):
        split = config.split or str(_own_split(config, store))
        tests = _test_cases(config, store, split)
        audits = _audit(config, store, split, arms)
        plan = Plan(config, arms, split, audits, _floors(config, store, split, tests))
        try:
            _fill_in(plan, store, cells, chosen, tests, measure)
        finally:
            # Also when the study is told to stop: what there is of it can be looked at.
            content = _results(plan, cells)
            write_report(out, content)
    return Results(out, content)


def _fill_in(plan: Plan, store: Store, cells: Sequence[Cell], chosen: Sequence[Cell], tests: Sequence[Case], measure: Measure) -> None:
    """Measure the chosen cells that are not yet, until the minutes are over; `results.json` is written after each."""
    config, folder, started = plan.config, Path(plan.config.out) / "cells", time.monotonic()
    for cell in chosen:
        names = labelled_cases(store, plan.split, cell.labels, cell.draw)
        settings = settings_of(cell.arm, config.finetune, labels=cell.labels, seed=cell.seed, spacing=store.recipe.spacing)
        settings = dataclasses.replace(settings, store=config.store, out=str(folder / cell.name))
        identity = _identity(settings, names, config)
        status = read_cell(folder, cell, identity)["status"]
        if status == DONE or (status == FAILED and not config.retry_failed):
            continue
        if config.max_minutes is not None and time.monotonic() - started > 60 * config.max_minutes:
            print(f"few_label: {config.max_minutes:g} minutes are over; the other cells wait", file=sys.stderr)
            return
        print(f"few_label: {cell.name}", file=sys.stderr)
        try:
            scores = measure(settings, names, tests, store.recipe, overlap=config.overlap)
            write_cell(folder, cell, identity, DONE, labelled=len(names), **scores)
        except (Preempted, StorageError, ConfigError):
            # Not this cell's own: every other one would meet it too.
            raise
        except (JaxsegError, jax.errors.JaxRuntimeError) as error:
            print(f"few_label: {cell.name} failed: {error}", file=sys.stderr)
            write_cell(folder, cell, identity, FAILED, reason=f"{type(error).__name__}: {error}")
        _results(plan, cells)


def _results(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    out = Path(plan.config.out)
    content = summarise(plan, [read_cell(out / "cells", cell) for cell in cells])
    write_json(out / "results.json", content)
    return content


def _own_split(config: FewLabelConfig, store: Store) -> Path:
    if config.test_cases < 1:
        raise ConfigError("a study needs --split FILE.json, or --test-cases to make one: how many labelled cases are held out to test on")
    patients = {name: store.entry(name).patient for name in store.labelled}
    draws = max(DRAWS, *(draw + 1 for draw in config.draws))
    return keep_split(Path(config.out) / "split.json", patients, test=config.test_cases, seed=config.split_seed, draws=draws)


def _test_cases(config: FewLabelConfig, store: Store, split: str) -> list[Case]:
    """The test cases in the folder of scans, each with its label; ConfigError if one is missing."""
    wanted = select_cases(store.names, f"{split}:test")
    found = find_cases(config.scans, channels=store.recipe.channels, label=config.label_name)
    key = Path(config.store) / NAMES
    found = pseudonymous(found, kept_salt(key)) if key.is_file() else found
    cases = {case.id: case for case in found if case.label is not None}
    absent = [name for name in wanted if name not in cases]
    if absent:
        raise ConfigError(
            f"{config.scans}: {len(absent)} of {len(wanted)} test cases have no scan with a label here: {', '.join(absent[:6])}"
        )
    return [cases[name] for name in wanted]


def _audit(config: FewLabelConfig, store: Store, split: str, arms: Sequence[Arm]) -> dict[str, Any]:
    """What labelled cases and pretrainings share with the test cases; ConfigError if that is anything, unless it is allowed."""
    tests = select_cases(store.names, f"{split}:test")
    drawn = {name for count in config.labels for draw in config.draws for name in labelled_cases(store, split, count, draw)}
    both = sorted(drawn & set(tests))
    if both:
        raise ConfigError(f"{split}: labels cases that are test cases: {', '.join(both[:6])}")
    refuse_shared_patients({n: store.entry(n).patient for n in store.names}, sorted(drawn), tests, "labelled cases and test cases")
    held = scans_of_store(store, tests)
    labelled = find_overlaps(scans_of_store(store, sorted(drawn)), held)
    if labelled.contents and not config.allow_overlap:
        raise ConfigError(
            f"labelled cases and test cases are alike ({'; '.join(labelled.lines()[:4])}): change the split, or say with --allow-overlap "
            "that they are different scans"
        )
    audits = {"labelled": labelled.counts()}
    for init in sorted({arm.init for arm in arms if arm.init}):
        seen = scans_of_card(card_of(init))
        if not config.allow_overlap:
            refuse_overlap(seen, held, "test cases")
        names = ", ".join(arm.name for arm in arms if arm.init == init)
        audits[names] = find_overlaps(seen, held).counts()
    return audits


def _floors(config: FewLabelConfig, store: Store, split: str, tests: Sequence[Case]) -> list[dict[str, Any]]:
    """The position-only floor of every subset, kept in `OUT/floor.json` with the subset that it was made of."""
    path = Path(config.out) / "floor.json"
    kept = read_json(path) if path.is_file() else []
    floors = []
    for count in config.labels:
        for draw in config.draws:
            cases = {"cases": list(labelled_cases(store, split, count, draw)), "tests": [case.id for case in tests]}
            known = next((floor for floor in [*kept, *floors] if all(floor[key] == value for key, value in cases.items())), None)
            dice = known["dice"] if known else position_floor(store, cases["cases"], cases["tests"])["dice"]
            floors.append({"labels": count, "draw": draw, "dice": dice, **cases})
    write_json(path, floors)
    return [{key: floor[key] for key in ("labels", "draw", "dice")} for floor in floors]


def _identity(settings: FinetuneConfig, names: Sequence[str], config: FewLabelConfig) -> dict[str, Any]:
    """All that a cell's scores depend on, as JSON: folders may move, so they stand as hashes of what is in them."""
    kept = {key: value for key, value in as_json(settings).items() if key not in ("store", "out", "init")}
    card = Path(settings.init) / "model" / "model.json"
    card = card if card.is_file() else Path(settings.init) / "model.json"
    pretraining = sha256_of(card) if settings.init and card.is_file() else None
    cases = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {**kept, "overlap": config.overlap, "cases": cases, "pretraining": pretraining}
