"""Which cases a study tests on and which ones each draw labels: a function of a seed and the names alone, kept in a file that others can reuse."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.few_label.config import Labels
from jaxseg.data.catalog import Store
from jaxseg.data.split import select_cases
from jaxseg.errors import ConfigError
from jaxseg.files import read_json, write_json

DRAWS = 5


def make_split(
    patients: Mapping[str, str], *, test: int, seed: int, draws: int = DRAWS, labelled: Iterable[str] | None = None
) -> dict[str, Any]:
    """A split: `{"about", "pretrain", "test", "draws"}`, the pool and the test cases sorted, each draw an order of the pool's labelled cases.

    The first N names of a draw are labelled, so that the subsets of a draw are nested. Whole patients are tested on, in the order of
    `default_rng(seed).permutation` of their sorted keys (of those with a labelled case), until there are `test` labelled cases; draw d is
    `default_rng([seed, d]).permutation` of the sorted labelled cases of the pool. Unlabelled cases of other patients are in the pool, in no draw.

    Args:
        patients: case name → patient key.
        test: least number of test cases.
        labelled: the cases that have a label; None for all.

    Raises ConfigError if that leaves no case to test on or none to label.
    """
    known = set(patients if labelled is None else labelled)
    owners = sorted({patients[name] for name in known})
    cases = {owner: sorted(name for name in known if patients[name] == owner) for owner in owners}
    chosen: list[str] = []
    for place in np.random.default_rng(seed).permutation(len(owners)):
        if len(chosen) >= test:
            break
        chosen += cases[owners[place]]
    pool = sorted(known - set(chosen))
    if not chosen or not pool:
        raise ConfigError(f"test_cases is {test}, of {len(known)} labelled cases: it must leave cases to test on and cases to label")
    tested = {patients[name] for name in chosen}
    beside = sorted(name for name in set(patients) - known if patients[name] not in tested)
    return {
        "about": f"{len(pool)} cases of which draw d labels the first N of draws[d]; {len(chosen)} cases to test on, which nothing else may touch. "
        + (f"{len(beside)} cases without a label beside them in the pool. " if beside else "")
        + f"Made by numpy.random.default_rng({seed}).permutation of the sorted patients (the first ones test), and "
        f"default_rng([{seed}, d]).permutation of the sorted pool.",
        "pretrain": sorted([*pool, *beside]),
        "test": sorted(chosen),
        "draws": [[pool[place] for place in np.random.default_rng([seed, draw]).permutation(len(pool))] for draw in range(draws)],
    }


def check_split(file: str) -> None:
    """ConfigError unless a study's split file holds what every study needs of it: "test" and at least one draw."""
    content = read_json(Path(file))
    lists = content if isinstance(content, dict) else {}
    if not all(isinstance(lists.get(key), list) for key in ("test", "draws")) or not lists["draws"]:
        found = (
            f"an object with {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else f"a {type(content).__name__}"
        )
        raise ConfigError(
            f'{file}: a study\'s split file looks like {{"pretrain": ["a", "b", "c"], "test": ["d"], "draws": [["b", "a"], ["c", "b"]]}}: case names of the '
            f"pool, of the test cases, and for each draw those that may be labelled, of which the first N are; this one holds {found}. "
            "Without --split a study makes one by itself (--test-cases)"
        )


def keep_split(path: Path, patients: Mapping[str, str], *, labelled: Iterable[str], test: int, seed: int, draws: int) -> Path:
    """Write the split of a study that was given none; ConfigError if one of other cases or settings is there already.

    A draw follows from the seed and its number alone, so the file gets those that are new, and keeps those that are no longer asked for.
    """
    made = make_split(patients, test=test, seed=seed, draws=draws, labelled=labelled)
    if not path.is_file():
        return write_json(path, made)
    found = read_json(path)
    kept = found.get("draws", [])
    both = min(len(kept), draws)
    if {**found, "draws": kept[:both]} != {**made, "draws": made["draws"][:both]}:
        raise ConfigError(
            f"{path}: made of other cases or settings ({len(found.get('test', ()))} test cases there, {len(made['test'])} now): "
            f"give it as --split {path} to go on with it, or choose another --out"
        )
    return write_json(path, made if draws > len(kept) else found)


def labelled_cases(store: Store, split: str, labels: Labels, draw: int) -> tuple[str, ...]:
    """The cases that a cell trains on: the first `labels` of the draw, or for "all" those of the pool that have a label, whatever the draw.

    Raises ConfigError if there are fewer, or the store lacks one or its label.
    """
    if labels == "all":
        return tuple(name for name in select_cases(store.names, f"{split}:pretrain") if store.entry(name).labelled)
    chosen = select_cases(store.names, f"{split}:draws.{draw}", labels)
    if bare := [name for name in chosen if not store.entry(name).labelled]:
        raise ConfigError(
            f"{split}: {len(bare)} of the first {labels} cases of draw {draw} have no label in the store: {', '.join(bare[:6])}"
        )
    return chosen
