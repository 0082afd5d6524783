"""Which cases a study tests on and which ones each draw labels: a function of a seed and the names alone, kept in a file that others can reuse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.few_label.config import Labels
from jaxseg.data.catalog import Store
from jaxseg.data.split import select_cases
from jaxseg.errors import ConfigError
from jaxseg.files import read_json, write_json

DRAWS = 5


def make_split(patients: Mapping[str, str], *, test: int, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """A split: `{"about", "pretrain", "test", "draws"}`, the pool and the test cases sorted, each draw an order of the whole pool.

    The first N names of a draw are labelled, so that the subsets of a draw are nested. Whole patients are tested on, in the order of
    `default_rng(seed).permutation` of their sorted keys, until there are `test` cases; draw d is `default_rng([seed, d]).permutation` of the
    sorted pool.

    Args:
        patients: case name → patient key.
        test: least number of test cases.

    Raises ConfigError if that leaves no case to test on or none to label.
    """
    owners = sorted(set(patients.values()))
    cases = {owner: sorted(name for name in patients if patients[name] == owner) for owner in owners}
    chosen: list[str] = []
    for place in np.random.default_rng(seed).permutation(len(owners)):
        if len(chosen) >= test:
            break
        chosen += cases[owners[place]]
    pool = sorted(set(patients) - set(chosen))
    if not chosen or not pool:
        raise ConfigError(f"test_cases is {test}, of {len(patients)} labelled cases: it must leave cases to test on and cases to label")
    return {
        "about": f"{len(pool)} cases of which draw d labels the first N of draws[d]; {len(chosen)} cases to test on, which nothing else may touch. "
        f"Made by numpy.random.default_rng({seed}).permutation of the sorted patients (the first ones test), and "
        f"default_rng([{seed}, d]).permutation of the sorted pool.",
        "pretrain": pool,
        "test": sorted(chosen),
        "draws": [[pool[place] for place in np.random.default_rng([seed, draw]).permutation(len(pool))] for draw in range(draws)],
    }


def keep_split(path: Path, patients: Mapping[str, str], *, test: int, seed: int, draws: int) -> Path:
    """Write the split of a study that was given none; ConfigError if another one is there already."""
    made = make_split(patients, test=test, seed=seed, draws=draws)
    if path.is_file() and (found := read_json(path)) != made:
        raise ConfigError(
            f"{path}: made of other cases or settings ({len(found.get('test', ()))} test cases there, {len(made['test'])} now): "
            f"give it as --split {path} to go on with it, or choose another --out"
        )
    return write_json(path, made)


def labelled_cases(store: Store, split: str, labels: Labels, draw: int) -> tuple[str, ...]:
    """The cases that a cell trains on: the first `labels` of the draw, or for "all" those of the pool that have a label, whatever the draw.

    Raises ConfigError if there are fewer, or the store lacks one or its label.
    """
    if labels == "all":
        return tuple(name for name in select_cases(store.names, f"{split}:pretrain") if store.entry(name).labelled)
    return select_cases(store.labelled, f"{split}:draws.{draw}", labels)
