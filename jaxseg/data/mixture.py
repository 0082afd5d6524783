"""Which store, case and label each sample of a loader comes from: pure functions of a seed and the sample's number. Called by `loader`."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxseg.data.catalog import Store
from jaxseg.errors import ConfigError, InputError

# Tells the random streams apart; the order of cases and the crops keep the numbers that runs before them were made with.
_ORDER, _MIX = 0, 2
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Source:
    """Cases of a store to draw from, and how often compared with other sources: a weight of 2 gives twice the samples of a weight of 1."""

    store: Store
    names: tuple[str, ...]
    weight: float = 1.0


class Mixture:
    """The order in which samples are drawn from several sources.

    Every source goes through its own epochs, each visiting every case once. In each block of samples the sources have the shares that
    their weights say, rounded so that the error never adds up; within the block they come in random order.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources, self.seed = tuple(sources), seed
        weights = np.array([source.weight for source in self.sources], float)
        self._ends = np.cumsum(weights / weights.sum())
        # Long enough for the lightest source to come several times, or rounding could give it a negative share.
        self._block = max(_BLOCK, math.ceil(4 * weights.sum() / weights.min()))
        self._order = functools.lru_cache(4 * len(self.sources))(self._permutation)
        self._layout = functools.lru_cache(4)(self._lay_out)

    def locate(self, id: int) -> tuple[int, int]:
        """(number of the source, how many samples of it came before) of the sample `id`."""
        if len(self.sources) == 1:
            return 0, id
        block, place = divmod(id, self._block)
        layout = self._layout(block)
        source = int(layout[place])
        return source, int(self._counts(block)[source]) + int(np.count_nonzero(layout[:place] == source))

    def case(self, id: int) -> tuple[int, str]:
        """(number of the source, case name) of the sample `id`."""
        source, number = self.locate(id)
        names = self.sources[source].names
        epoch, place = divmod(number, len(names))
        return source, names[self._order(source, epoch)[place]]

    def _counts(self, block: int) -> Int[np.ndarray, " s"]:
        """Samples of every source before a block."""
        return np.diff(np.floor(block * self._block * self._ends + 0.5).astype(np.int64), prepend=0)

    def _lay_out(self, block: int) -> Int[np.ndarray, " n"]:
        shares = self._counts(block + 1) - self._counts(block)
        return np.random.default_rng([_MIX, self.seed, block]).permutation(np.repeat(np.arange(len(shares)), shares))

    def _permutation(self, source: int, epoch: int) -> Int[np.ndarray, " n"]:
        # The first source's order is that of a loader with one store alone.
        stream = [_ORDER, self.seed, epoch] if source == 0 else [_ORDER, self.seed, epoch, source]
        return np.random.default_rng(stream).permutation(len(self.sources[source].names))


def owners_of_labels(source: Source) -> dict[int, tuple[str, ...]]:
    """Label value → the cases that hold it; neither 0 nor 255 (ignored)."""
    owners: dict[int, list[str]] = {}
    for name in source.names:
        for value, count in (source.store.entry(name).label_counts or {}).items():
            if count and value not in (0, 255):
                owners.setdefault(value, []).append(name)
    return {value: tuple(names) for value, names in sorted(owners.items())}


def check_sources(sources: Sequence[Source], labelled: bool) -> None:
    """InputError for no case, or a case without the label asked for; ConfigError for weights or stores that cannot be mixed."""
    if not sources:
        raise InputError("no store to draw crops from")
    first = sources[0].store.recipe
    for source in sources:
        store, recipe = source.store, source.store.recipe
        if not source.names:
            raise InputError(f"{store.path}: no case to draw crops from")
        missing = [name for name in source.names if not store.entry(name).labelled and labelled]
        if missing:
            raise InputError(
                f"{store.path}: {len(missing)} of {len(source.names)} cases have no label, among them {', '.join(missing[:5])}"
            )
        if not 0 < source.weight < math.inf:
            raise ConfigError(f"{store.path}: its weight is {source.weight}; expected a positive number")
        if recipe.channels != first.channels:
            raise ConfigError(
                f"{store.path} has the channels {', '.join(recipe.channels)}, {sources[0].store.path} has {', '.join(first.channels)}; stores that "
                "are mixed need the same ones in the same order: prepare one --like the other (absent ones are marked as missing)"
            )
        if labelled and (recipe.classes, recipe.regions) != (first.classes, first.regions):
            raise ConfigError(f"{store.path} and {sources[0].store.path} have different labels; train on their labels one by one")
