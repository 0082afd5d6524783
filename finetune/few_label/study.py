"""A few-label study: the grid is checked, its cells filled in as time allows, and the results written after each. Called by `__main__`.

Cells that are done are kept, failed ones are kept and reported; what is not measured says so.
"""

import contextlib
import dataclasses
import hashlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from finetune.config import FinetuneConfig, stored
from finetune.few_label.arms import INITIALISED, PACED, SEMI, arms_of, settings_of
from finetune.few_label.cells import DONE, FAILED, NOT_POSSIBLE, Cell, choose_cells, clear_failed, grid_of, read_cell, write_cell
from finetune.few_label.config import FewLabelConfig, Labels
from finetune.few_label.equal_time import STEPS, hash_of_pretraining, seconds_of_pretraining, stated_seconds, steps_of_cell
from finetune.few_label.leakage import audit_study
from finetune.few_label.measure import measure
from finetune.few_label.page import write_report
from finetune.few_label.pictures import picture_section
from finetune.few_label.results import Plan, summarise
from finetune.few_label.stacks import check_stack, train_stack
from finetune.few_label.subsets import DRAWS, check_split, keep_split, labelled_cases
from finetune.floor import position_floor
from finetune.side_by_side import Run
from jaxseg.data.cases import Case
from jaxseg.data.catalog import Store, open_store
from jaxseg.data.contoured import DRAWN, find_contoured
from jaxseg.data.datasets import open_dataset
from jaxseg.data.index_cases import cases_of_index
from jaxseg.data.mixed_stores import cases_content, open_others
from jaxseg.data.preprocess import check_label
from jaxseg.data.pseudonyms import kept_salt, pseudonymous
from jaxseg.data.split import select_cases
from jaxseg.data.staging import inputs_hash
from jaxseg.errors import ConfigError, InputError, JaxsegError, Preempted, StorageError
from jaxseg.files import lock_folder, read_json, write_json
from jaxseg.prepare import NAMES, ORIGIN

Measure = Callable[..., dict[str, Any]]
"""What fills in a cell: `measure.measure`, that of `bench.anchor`, or a test's own."""
ELSEWHERE = ("anchor",)  # kinds of arms that need what this library never imports


class Task(NamedTuple):
    """A cell to fill in: the cases to train on, the run, what the scores depend on, and (arms of equal time) why it has its steps."""

    names: tuple[str, ...]
    settings: FinetuneConfig
    identity: dict[str, Any]
    given: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A study's folder and what its `results.json` holds."""

    folder: Path
    content: dict[str, Any]


def run_study(config: FewLabelConfig, *, measure: Measure = measure, only: Sequence[str] | None = None) -> Results:
    """Fill in the cells that `config.cells` asks for, and write `results.json`, `table.md`, `learning_curve.png` and `index.html` into `config.out`.

    A cell whose training or scoring fails is kept as failed, with the reason; one that asks for more labels than its draw has, or for a draw that the
    split lacks, is not possible, and says so. The same command goes on where it was stopped. `only`: the kinds of arms that `measure` is for; None for
    all but those of `ELSEWHERE`.

    Raises:
        ConfigError: a field is missing or wrong, a cell was measured with other settings, scans or test cases, or what is trained on shares
            scans with the test cases (`leakage.audit_study`); or, when all others are filled in, cells have settings that cannot be trained.
        StorageError, Preempted: as fine-tuning.
    """
    missing = [name for name in ("scans", "store", "out") if not getattr(config, name)]
    taught = [] if config.pretrained else [kind for kind in config.arms if kind in INITIALISED or kind in PACED]
    if missing or taught:
        needs = ", ".join(f"--{name}" for name in (*missing, *(["pretrained"] if taught else [])))
        without = f"; the arms {', '.join(taught)} need a pretraining: --arms scratch … is a study without them" if taught else ""
        raise ConfigError(f"a few-label study needs {needs}{without}")
    arms, store = arms_of(config.arms, config.pretrained), open_store(config.store)
    stated_seconds(config)
    for arm in (arm for arm in arms if arm.given):
        seconds_of_pretraining(arm.pretraining, config)  # Known now, or the study would stop at the first cell of equal time.
    cells = grid_of(arms, config.labels, config.draws, config.seeds)
    chosen = [
        cell for cell in choose_cells(cells, config.cells) if (cell.arm.kind not in ELSEWHERE if only is None else cell.arm.kind in only)
    ]
    check_stack(config, chosen)
    # What is given another arm's wall time comes when that is known.
    chosen, out = sorted(chosen, key=lambda cell: cell.arm.kind in PACED), Path(config.out)
    with lock_folder(out):
        split = config.split or str(keep_own_split(config, store))
        check_split(split)
        impossible = _impossible(store, split, cells)
        possible = [cell for cell in cells if cell.name not in impossible]
        if not possible:
            raise ConfigError(f"no cell of this study is possible: {impossible[cells[0].name]}")
        tests = _test_cases(config, store, split)
        audits = audit_study(config, store, split, arms, possible)
        tested = _digest(_as_prepared(config, store, tests))
        chosen = [cell for cell in chosen if cell.name not in impossible]
        shown = [cell for cell in possible if cell in chosen or read_cell(out / "cells", cell)["status"] == DONE]
        plan = Plan(config, arms, split, audits, _floors(config, store, split, tests, shown, tested), tested, impossible)
        _refuse_strange(plan, store, possible)
        try:
            _fill_in(plan, store, cells, chosen, tests, measure)
        finally:
            # Also when the study is told to stop: what there is of it can be looked at.
            content = _results(plan, cells)
            write_report(out, content, picture_section(out, content, possible, tests, store.recipe))
    return Results(out, content)


def _fill_in(plan: Plan, store: Store, cells: Sequence[Cell], chosen: Sequence[Cell], tests: Sequence[Case], measure: Measure) -> None:
    """Measure the chosen cells that are not yet, until the minutes are over; `results.json` is written after each.

    ConfigError in the end for cells whose settings cannot be trained; nothing is kept of these, and the others are filled in before.
    """
    config, folder, started = plan.config, Path(plan.config.out) / "cells", time.monotonic()
    stacked: set[str] = set()
    wrong: dict[str, list[Cell]] = {}
    for place, cell in enumerate(chosen):
        before = read_cell(folder, cell)["status"]
        if before == FAILED and not config.retry_failed:
            continue
        try:
            task = _task(plan, store, cell)
        except InputError as error:
            if before == DONE:
                raise
            # Of the cells that its steps follow from: others of its arm may have better ones.
            print(f"few_label: {cell.name} failed: {error}", file=sys.stderr)
            write_cell(folder, cell, {}, FAILED, reason=f"{type(error).__name__}: {error}")
            _results(plan, cells)
            continue
        if task is None or read_cell(folder, cell, task.identity)["status"] == DONE:
            continue
        if config.max_minutes is not None and time.monotonic() - started > 60 * config.max_minutes:
            print(f"few_label: {config.max_minutes:g} minutes are over; the other cells wait", file=sys.stderr)
            break
        if before == FAILED:
            clear_failed(folder, cell, task.identity, keep=[STEPS])
        try:
            if config.stack > 1 and cell.name not in stacked and cell.arm.kind not in ELSEWHERE:
                beside = [each for each in chosen[place + 1 :] if each.arm.kind not in (*ELSEWHERE, *PACED)]
                stacked |= train_stack({cell.name: Run(task.settings, task.names), **_runs(plan, store, beside)}, config)
            print(f"few_label: {cell.name}", file=sys.stderr)
            scores = measure(task.settings, task.names, tests, store.recipe, overlap=config.overlap)
            write_cell(folder, cell, task.identity, DONE, labelled=len(task.names), **task.given, **scores)
        except (Preempted, StorageError):
            # Not this cell's own: every other one would meet it too.
            raise
        except ConfigError as error:
            # Kept in no cell, so that it can be mended. Other cells of its arm, of more labels say, need not have it.
            if str(error) not in wrong:
                print(f"few_label: {cell.name}: {error}", file=sys.stderr)
            wrong.setdefault(str(error), []).append(cell)
        except Exception as error:
            if not isinstance(error, (JaxsegError, jax.errors.JaxRuntimeError)):
                traceback.print_exc()  # a mistake of ours, or of a library: the cell keeps one line of it
            print(f"few_label: {cell.name} failed: {error}", file=sys.stderr)
            write_cell(folder, cell, task.identity, FAILED, reason=f"{type(error).__name__}: {error}")
        _results(plan, cells)
    if wrong:
        raise ConfigError("; ".join(f"{_told(refused)}: {why}" for why, refused in wrong.items()))


def _told(cells: Sequence[Cell]) -> str:
    return cells[0].name if len(cells) == 1 else f"{len(cells)} cells of {', '.join(dict.fromkeys(cell.arm.name for cell in cells))}"


def _task(plan: Plan, store: Store, cell: Cell) -> Task | None:
    """What filling in a cell means; None where its steps follow from cells that are not done yet."""
    config, folder = plan.config, Path(plan.config.out) / "cells"
    names = labelled_cases(store, plan.split, cell.labels, cell.draw)
    given = steps_of_cell(folder, cell, config) if cell.arm.kind in PACED else {}
    if given is None:
        print(f"few_label: {cell.name} waits for {cell.arm.given} and {PACED[cell.arm.kind]} at the same N, draw and seed", file=sys.stderr)
        return None
    pool = f"{plan.split}:pretrain" if cell.arm.kind in SEMI else ""
    settings = settings_of(
        cell.arm, config, labels=len(names), seed=cell.seed, spacing=store.recipe.spacing, pool=pool, steps=given.get("steps")
    )
    settings = dataclasses.replace(settings, store=config.store, out=str(folder / cell.name))
    return Task(names, settings, _identity(settings, names, plan, store), {"given": given} if given else {})


def _runs(plan: Plan, store: Store, cells: Sequence[Cell]) -> dict[str, Run]:
    """The runs of these cells, by name. One whose settings cannot be says so in its own turn."""
    runs = {}
    for cell in cells:
        with contextlib.suppress(ConfigError):
            if task := _task(plan, store, cell):
                runs[cell.name] = Run(task.settings, task.names)
    return runs


def _results(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    out = Path(plan.config.out)
    known = [
        {**cell.to_json(), "status": NOT_POSSIBLE, "reason": plan.impossible[cell.name]}
        if cell.name in plan.impossible
        else read_cell(out / "cells", cell)
        for cell in cells
    ]
    content = summarise(plan, known)
    write_json(out / "results.json", content)
    return content


def keep_own_split(config: FewLabelConfig, store: Store) -> Path:
    """`OUT/split.json`, made where the study was given no split; ConfigError if it cannot be, or another one is there."""
    if config.test_cases < 1:
        raise ConfigError("a study needs --split FILE.json, or --test-cases to make one: how many labelled cases are held out to test on")
    patients = {name: store.entry(name).patient for name in store.names}
    draws, path = max(DRAWS, *(draw + 1 for draw in config.draws)), Path(config.out) / "split.json"
    return keep_split(path, patients, labelled=store.labelled, test=config.test_cases, seed=config.split_seed, draws=draws)


def dataset_of(store: str) -> str | None:
    """The public dataset that a store was prepared from by its name (`jaxseg prepare --dataset`), if any: its reader then finds the cases."""
    origin = Path(store) / ORIGIN
    return read_json(origin)["dataset"] if origin.is_file() else None


def _test_cases(config: FewLabelConfig, store: Store, split: str) -> list[Case]:
    """The test cases in the folder of scans, each with its label; ConfigError if one is missing, its label cannot be scored, or the store has none."""
    wanted = select_cases(store.names, f"{split}:test")
    if not wanted:
        raise ConfigError(f"{split}: its test set is empty; a study needs test cases to score")
    reasons: list[str] = []
    drawn, labels = Path(config.store) / DRAWN, store.recipe.labels or None
    if dataset := dataset_of(config.store):
        found = open_dataset(dataset, config.scans, channels=store.recipe.channels, drawn=drawn).cases
    elif (Path(config.scans) / "scans.parquet").is_file():
        indexed = cases_of_index(config.scans, drawn, channels=store.recipe.channels, label=config.label_name, labels=labels)
        found, reasons = indexed.cases, list(indexed.left_out.values())
    else:
        contoured = find_contoured(config.scans, drawn, channels=store.recipe.channels, label=config.label_name, labels=labels)
        found, reasons = contoured.cases, list(contoured.left_out.values())
    found = found.read_by(store.rules)
    key = Path(config.store) / NAMES
    found = pseudonymous(found, kept_salt(key)) if key.is_file() else found
    cases = {case.id: case for case in found if case.label is not None}
    absent = [name for name in wanted if name not in cases]
    if absent:
        raise ConfigError(
            f"{config.scans}: {len(absent)} of {len(wanted)} test cases have no scan with a label here: {', '.join(absent[:6])}"
            + "".join(f"; {reason}" for reason in reasons[:2])
        )
    late = [name for name in wanted if not store.entry(name).labelled]
    if late:
        raise ConfigError(
            f"{config.store}: {len(late)} of {len(wanted)} test cases were labelled after the store was made ({', '.join(late[:6])}): prepare the scans again"
        )
    unusable = []
    for name in wanted:
        try:
            check_label(cases[name], store.recipe)
        except InputError as error:
            unusable.append(f"{name}: {error}")
    if unusable:
        raise ConfigError(
            f"{len(unusable)} of {len(wanted)} test cases cannot be scored; mend their labels, or take them out of the split: {'; '.join(unusable[:3])}"
        )
    return [cases[name] for name in wanted]


def _as_prepared(config: FewLabelConfig, store: Store, tests: Sequence[Case]) -> list[str]:
    """Each test case's name and the hash of its files; ConfigError where they are not those of the store, which is what the leakage audit looks at."""
    found = {case.id: inputs_hash(case, store.recipe) for case in tests}
    if changed := [name for name, inputs in found.items() if inputs != store.entry(name).inputs]:
        raise ConfigError(
            f"{config.scans}: {len(changed)} of {len(found)} test cases are not those that {config.store} was prepared from, or it was prepared by other "
            f"rules: {', '.join(changed[:6])}; prepare the scans again (unchanged ones are kept), or give the folder that the store was made of"
        )
    return [f"{name} {inputs}" for name, inputs in found.items()]


def _floors(
    config: FewLabelConfig, store: Store, split: str, tests: Sequence[Case], cells: Sequence[Cell], tested: str
) -> list[dict[str, Any]]:
    """The position-only floor of every subset of these cells, kept in `OUT/floor.json` with the subset that it was made of as soon as it is known."""
    path = Path(config.out) / "floor.json"
    kept = read_json(path) if path.is_file() else []
    floors = []
    subsets: dict[tuple[Labels, int], None] = {(cell.labels, cell.draw): None for cell in cells}
    for count, draw in subsets:
        names = labelled_cases(store, split, count, draw)
        content = _digest((_digest_of(store, names), tested))
        cases = {"cases": list(names), "tests": [case.id for case in tests], "content": content}
        known = next((floor for floor in [*kept, *floors] if all(floor.get(key) == value for key, value in cases.items())), None)
        dice = known["dice"] if known else position_floor(store, cases["cases"], cases["tests"])["dice"]
        floors.append({"labels": count, "draw": draw, "dice": dice, **cases})
        if not known:
            done = {(floor["labels"], floor["draw"]) for floor in floors}
            write_json(path, [*floors, *(floor for floor in kept if (floor["labels"], floor["draw"]) not in done)])
    return [{key: floor[key] for key in ("labels", "draw", "dice")} for floor in floors]


def _impossible(store: Store, split: str, cells: Sequence[Cell]) -> dict[str, str]:
    """Why a cell cannot be, by its name: the split has no such draw, or the draw has fewer labelled cases than it asks for."""
    reasons = {}
    draws = read_json(Path(split))["draws"]
    for cell in cells:
        if cell.labels == "all":
            continue
        if cell.draw >= len(draws):
            reasons[cell.name] = f"draw {cell.draw}, and {split} has draws 0 to {len(draws) - 1}"
        elif cell.labels > (there := len(select_cases(store.labelled, f"{split}:draws.{cell.draw}"))):
            reasons[cell.name] = f"N = {cell.labels}, and draw {cell.draw} of {split} has {there} labelled cases"
    for reason in sorted(set(reasons.values())):
        print(f"few_label: not possible: {reason}", file=sys.stderr)
    return reasons


def _refuse_strange(plan: Plan, store: Store, cells: Sequence[Cell]) -> None:
    """ConfigError if a cell that is done, asked for now or not, was measured on other test cases, or trained on other scans or by other settings than
    it would be now: all that are done stand in one table, before and after those that are asked for."""
    folder = Path(plan.config.out) / "cells"
    for cell in cells:
        found = read_cell(folder, cell)
        if found["status"] != DONE:
            continue
        now = {"cases": _digest_of(store, labelled_cases(store, plan.split, cell.labels, cell.draw)), "tests": plan.tested}
        changed = [name for name, digest in now.items() if found["settings"].get(name) != digest]
        if changed:
            what = {"cases": "labelled cases, or another store of them", "tests": "test cases or labels of them"}
            raise ConfigError(
                f"{folder / cell.name}: measured with other {' and other '.join(what[name] for name in changed)}; scores of the two cannot stand in "
                "one table: set the split, --store and --scans back, or choose another --out"
            )
        if task := _task(plan, store, cell):
            read_cell(folder, cell, task.identity)


def _identity(settings: FinetuneConfig, names: Sequence[str], plan: Plan, store: Store) -> dict[str, Any]:
    """All that a cell's scores depend on, as JSON: folders may move, so they stand as hashes of what is in them."""
    kept = {key: value for key, value in stored(settings).items() if key not in ("store", "out", "init")}
    if settings.semi.method:
        kept["semi"] = {**kept["semi"], "pool": _digest_of(store, select_cases(store.names, settings.semi.pool))}
    if settings.also:
        others = open_others(settings.also, settings.also_split, labelled=True)
        kept["also_cases"] = _digest(f"{name} {content}" for name, content in cases_content(others))
    if settings.monitor:
        kept["monitored"] = _digest_of(store, select_cases(store.labelled, settings.monitor))
    cases, pretraining = _digest_of(store, names), hash_of_pretraining(settings.init)
    return {**kept, "overlap": plan.config.overlap, "cases": cases, "tests": plan.tested, "pretraining": pretraining}


def _digest_of(store: Store, names: Sequence[str]) -> str:
    """Of cases in this order: their names, the bytes of their scans and labels, and the recipe that they were prepared by."""
    return _digest(f"{name} {store.entry(name).inputs}" for name in names)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
