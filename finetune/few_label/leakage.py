"""What a few-label study's labels, pretrainings and monitored cases share with its test cases. Called by `study` before anything is trained."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.few_label.arms import SEMI, Arm
from finetune.few_label.cells import Cell
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.subsets import labelled_cases
from jaxseg.audit import card_of, refuse_overlap
from jaxseg.data.bids import patient_of_bids
from jaxseg.data.catalog import Store
from jaxseg.data.duplicates import Overlaps, Scan, cases_of_card, find_overlaps, probed_of_card, scans_of_card, scans_of_store
from jaxseg.data.mixed_stores import open_others
from jaxseg.data.split import refuse_shared_patients, select_cases
from jaxseg.errors import ConfigError
from jaxseg.files import read_json

KINDS = ("same content", "near copy", "same patient")


def audit_study(config: FewLabelConfig, store: Store, split: str, arms: Sequence[Arm], cells: Sequence[Cell]) -> dict[str, Any]:
    """What has seen test cases: for each part of the study the cases it uses (`pretrain`), the test cases, and how many of these it shares, by kind.

    A card knows no patient: those of a pretraining's cases are known where the study's own store has these; `patients unknown` counts the others.
    None for a pretraining whose card does not say what it saw.

    Args:
        cells: those of the grid that can be trained.

    Raises:
        ConfigError: a test case, or another scan of its patient, is in the split's "pretrain", labelled, or monitored; or, unless
            `config.allow_overlap`, a scan of equal content, a near copy or (where known) another scan of the patient of one was pretrained on or is in a
            store of `finetune.also`, one was looked at by a pretraining's probe, or content is shared with what is labelled or monitored.
    """
    tests = select_cases(store.names, f"{split}:test")
    _refuse_pool(store, split, tests)
    drawn = {name for cell in cells for name in labelled_cases(store, split, cell.labels, cell.draw)}
    drawn |= set(select_cases(store.names, f"{split}:pretrain")) if any(arm.kind in SEMI for arm in arms) else set()
    held = scans_of_store(store, tests)
    audits: dict[str, Any] = {"labelled": _counts(_of_store(config, store, sorted(drawn), tests, split, "training"))}
    if config.finetune.monitor:
        watched = select_cases(store.labelled, config.finetune.monitor)
        audits["monitored"] = _counts(_of_store(config, store, watched, tests, f"finetune.monitor={config.finetune.monitor}", "monitored"))
    for other in open_others(config.finetune.also, config.finetune.also_split, labelled=True):
        seen = scans_of_store(other.store, other.names)
        if not config.allow_overlap:
            refuse_overlap(seen, held, "test cases", by=f"finetune.also={other.store.path}", patients=True)
        audits[f"also {other.store.path.name}"] = _counts(find_overlaps(seen, held))
    for init in sorted({arm.init for arm in arms if arm.init}):
        audits[", ".join(arm.name for arm in arms if arm.init == init)] = _of_pretraining(config, store, init, tests)
    return audits


def _of_pretraining(config: FewLabelConfig, store: Store, init: str, tests: Sequence[str]) -> dict[str, int] | None:
    """What a pretraining shares with the test cases, as far as its card and the study's own store say."""
    card, held = card_of(init), scans_of_store(store, tests)
    if not config.allow_overlap:
        refuse_overlap(probed_of_card(card), held, "test cases", by=f"the probe of {init}")
    seen = scans_of_card(card)
    if not seen:
        print(
            f"few_label: {init}: its card does not say which scans it was trained on, so nobody knows if test cases are among them",
            file=sys.stderr,
        )
        return None
    stored, hashes = scans_of_store(store), frozenset[str]().union(*(scan.hashes for scan in seen))
    here = [scan.name for scan in stored if scan.hashes & hashes]
    if not config.allow_overlap:
        refuse_overlap(seen, held, "test cases")
        refuse_shared_patients(_patients(store), here, tests, f"{init}: what it was trained on and the test cases")
    cases, known = cases_of_card(card), max(len(here), sum(bool(scan.patients) for scan in seen))
    counts = _counts(find_overlaps(_with_patients(seen, stored), held))
    return {**counts, "pretrain": cases, "patients unknown": max(0, cases - known)}


def _with_patients(seen: Sequence[Scan], stored: Sequence[Scan]) -> list[Scan]:
    """Scans of a card, with the patients that the same scans have in a store."""
    owners: dict[str, frozenset[str]] = {}
    for scan in stored:
        owners |= {value: owners.get(value, frozenset()) | scan.patients for value in scan.hashes}
    return [
        dataclasses.replace(scan, patients=scan.patients.union(*(owners.get(value, frozenset()) for value in scan.hashes))) for scan in seen
    ]


def _refuse_pool(store: Store, split: str, tests: Sequence[str]) -> None:
    """ConfigError if what the split hands out to be pretrained on holds a test case or another scan of its patient, whether or not an arm uses it."""
    pool = read_json(Path(split)).get("pretrain", [])
    both = sorted(set(pool) & set(tests))
    if both:
        raise ConfigError(f'{split}: its "pretrain" holds test cases: {", ".join(both[:6])}')
    # Other cases than those of this store may be pretrained on, too.
    patients = {name: patient_of_bids(name) for name in pool} | _patients(store)
    refuse_shared_patients(patients, pool, tests, f'{split}: "pretrain" and "test"')


def _of_store(config: FewLabelConfig, store: Store, used: Sequence[str], tests: Sequence[str], where: str, kind: str) -> Overlaps:
    """What cases of the study's own store share with the test cases."""
    both = sorted(set(used) & set(tests))
    if both:
        raise ConfigError(f"{where}: {kind} cases that are test cases: {', '.join(both[:6])}")
    refuse_shared_patients(_patients(store), used, tests, f"{kind} cases and test cases")
    shared = find_overlaps(scans_of_store(store, used), scans_of_store(store, tests))
    if shared.contents and not config.allow_overlap:
        raise ConfigError(
            f"{where}: {kind} cases and test cases are alike ({'; '.join(shared.lines()[:4])}): change the split, or say with --allow-overlap "
            "that they are different scans"
        )
    return shared


def _patients(store: Store) -> dict[str, str]:
    return {name: store.entry(name).patient for name in store.names}


def _counts(shared: Overlaps) -> dict[str, int]:
    """How many test cases are shared, by kind: a case that was seen twice counts once."""
    cases, tests = shared.sizes
    found = {kind: len({overlap.second for overlap in shared.found if overlap.kind == kind}) for kind in KINDS}
    return {"pretrain": cases, "test": tests, **found}
