"""What a store's cases are like, told from its manifest alone: nnU-Net would call it the fingerprint of a dataset. Called by `store_plan`."""

from dataclasses import dataclass

import numpy as np

from jaxseg.data.catalog import Store

_UNLABELLED = (0, 255)


@dataclass(frozen=True)
class StoreFacts:
    """Facts that a plan is made from.

    Attributes:
        cases, labelled: how many.
        channels, intensity: of the recipe.
        spacing: mm along x, y, z.
        shape: the median over cases, in voxels, on that spacing; `largest` likewise.
        anisotropy: coarsest spacing over finest.
        label_ml: label value (as prepared) → the median volume in millilitres over the cases that hold it.
        missing: channel → share of the cases that lack it.
    """

    cases: int
    labelled: int
    channels: tuple[str, ...]
    intensity: tuple[str, ...]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    largest: tuple[int, int, int]
    anisotropy: float
    classes: int
    label_ml: dict[int, float]
    missing: dict[str, float]


def facts_of(store: Store) -> StoreFacts:
    """The facts of an open store. No array is read."""
    entries = [store.entry(name) for name in store.names]
    recipe = store.recipe
    shapes = np.array([entry.shape for entry in entries])
    volumes: dict[int, list[float]] = {}
    for entry in entries:
        for value, count in (entry.label_counts or {}).items():
            if value not in _UNLABELLED and count:
                volumes.setdefault(value, []).append(count * float(np.prod(entry.spacing)) / 1000)
    x, y, z = (int(n) for n in np.median(shapes, 0).round())
    largest = tuple(int(n) for n in shapes.max(0))
    present = np.array([entry.present for entry in entries], float).mean(0)
    return StoreFacts(
        cases=len(entries),
        labelled=len(store.labelled),
        channels=recipe.channels,
        intensity=recipe.intensity,
        spacing=recipe.spacing,
        shape=(x, y, z),
        largest=(largest[0], largest[1], largest[2]),
        anisotropy=max(recipe.spacing) / min(recipe.spacing),
        classes=len(recipe.classes) if recipe.regions else len(recipe.values) + 1,
        label_ml={value: round(float(np.median(found)), 3) for value, found in sorted(volumes.items())},
        missing={name: round(1 - float(share), 3) for name, share in zip(recipe.channels, present) if share < 1},
    )
