"""What a few-label study's labels, pretrainings and monitored cases share with its test cases. Called by `study` before anything is trained."""

import sys
from collections.abc import Sequence
from typing import Any

from finetune.few_label.arms import SEMI, Arm
from finetune.few_label.cells import Cell
from finetune.few_label.config import FewLabelConfig
from finetune.few_label.subsets import labelled_cases
from jaxseg.audit import card_of, refuse_overlap
from jaxseg.data.catalog import Store
from jaxseg.data.duplicates import Overlaps, find_overlaps, scans_of_card, scans_of_store
from jaxseg.data.mixed_stores import open_others
from jaxseg.data.split import refuse_shared_patients, select_cases
from jaxseg.errors import ConfigError


def audit_study(config: FewLabelConfig, store: Store, split: str, arms: Sequence[Arm], cells: Sequence[Cell]) -> dict[str, Any]:
    """Counts of scans in common with the test cases, by what shares them; None for a pretraining whose card does not say what it saw.

    Args:
        cells: those of the grid that can be trained.

    Raises:
        ConfigError: a test case, or another scan of its patient, is labelled, in the unlabelled pool of an arm that uses one, or monitored; or, unless
            `config.allow_overlap`, a scan of equal content or a near copy of one is, or was pretrained on, or is in a store of `finetune.also`.
    """
    tests = select_cases(store.names, f"{split}:test")
    drawn = {name for cell in cells for name in labelled_cases(store, split, cell.labels, cell.draw)}
    drawn |= set(select_cases(store.names, f"{split}:pretrain")) if any(arm.kind in SEMI for arm in arms) else set()
    held = scans_of_store(store, tests)
    audits: dict[str, Any] = {"labelled": _of_store(config, store, sorted(drawn), tests, split, "training").counts()}
    if config.finetune.monitor:
        watched = select_cases(store.labelled, config.finetune.monitor)
        audits["monitored"] = _of_store(config, store, watched, tests, f"finetune.monitor={config.finetune.monitor}", "monitored").counts()
    for other in open_others(config.finetune.also, config.finetune.also_split, labelled=True):
        seen = scans_of_store(other.store, other.names)
        if not config.allow_overlap:
            refuse_overlap(seen, held, "test cases", by=f"finetune.also={other.store.path}", patients=True)
        audits[f"also {other.store.path.name}"] = find_overlaps(seen, held).counts()
    for init in sorted({arm.init for arm in arms if arm.init}):
        names, card = ", ".join(arm.name for arm in arms if arm.init == init), card_of(init)
        seen = scans_of_card(card)
        if not seen:
            print(
                f"few_label: {init}: its card does not say which scans it was trained on, so nobody knows if test cases are among them",
                file=sys.stderr,
            )
            audits[names] = None
            continue
        if not config.allow_overlap:
            refuse_overlap(seen, held, "test cases")
        audits[names] = find_overlaps(seen, held).counts()
    return audits


def _of_store(config: FewLabelConfig, store: Store, used: Sequence[str], tests: Sequence[str], where: str, kind: str) -> Overlaps:
    """What cases of the study's own store share with the test cases."""
    both = sorted(set(used) & set(tests))
    if both:
        raise ConfigError(f"{where}: {kind} cases that are test cases: {', '.join(both[:6])}")
    refuse_shared_patients({name: store.entry(name).patient for name in store.names}, used, tests, f"{kind} cases and test cases")
    shared = find_overlaps(scans_of_store(store, used), scans_of_store(store, tests))
    if shared.contents and not config.allow_overlap:
        raise ConfigError(
            f"{where}: {kind} cases and test cases are alike ({'; '.join(shared.lines()[:4])}): change the split, or say with --allow-overlap "
            "that they are different scans"
        )
    return shared
