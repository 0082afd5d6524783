"""The further stores that a training run draws crops from beside its own, as its config names them. Called by pretrain and finetune."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.data.catalog import open_store
from jaxseg.data.mixture import Source
from jaxseg.data.split import select_cases
from jaxseg.errors import ConfigError


def open_others(also: Mapping[str, float], splits: Mapping[str, str], *, labelled: bool) -> tuple[Source, ...]:
    """The stores in `also` with their weights; the run's own store has the weight 1.

    Args:
        also: weight by folder of a store.
        splits: "FILE.json:KEY" by folder, for those of which not every case is taken.
        labelled: whether only labelled cases can be used.

    Raises:
        ConfigError: a split for a folder that `also` does not name, or one that does not fit its store.
        InputError: a folder holds no store.
    """
    strange = sorted(set(splits) - set(also))
    if strange:
        raise ConfigError(
            f"also_split names {', '.join(strange)}, which also does not: give that store a weight with --also {strange[0]} 1.0"
        )
    sources = []
    for folder, weight in also.items():
        store = open_store(folder)
        names = select_cases(store.labelled if labelled else store.names, splits.get(folder, ""))
        sources.append(Source(store, names, weight))
    return tuple(sources)


def names_drawn(others: Sequence[Source]) -> dict[str, dict[str, list[str]]]:
    """What a run's config keeps of them, so that a resumed run draws from the same cases; nothing where there are none."""
    return {"also_names": {str(number): list(source.names) for number, source in enumerate(others)}} if others else {}


def cases_content(sources: Sequence[Source]) -> list[list[str]]:
    """What a run's config keeps of the cases themselves: (name, beginning of the hash of its files and recipe) of each, in order.

    So a run is not gone on with when its scans or labels have changed under the same names.
    """
    return [[name, source.store.entry(name).inputs[:16]] for source in sources for name in source.names]


def content_drawn(sources: Sequence[Source]) -> dict[str, Any]:
    """For a model's card: the hashes and fingerprints of every case that was trained on (`Store.hashes`, `Store.contents`)."""
    data: dict[str, str] = {}
    scans: dict[tuple[str, ...], dict[str, Any]] = {}
    for source in sources:
        data |= source.store.hashes(source.names)
        # A case that is in two stores counts once.
        scans |= {tuple(content["sha256"]): content for content in source.store.contents(source.names)}
    return {"data": data, "scans": [scans[key] for key in sorted(scans)]}
