"""The position-only floor (`jaxseg.metrics.position`) of a store's cases, on the working grid. Used by the few-label study."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.classes import Classes
from finetune.objective import IGNORED
from jaxseg.data.catalog import Store
from jaxseg.metrics import position
from jaxseg.metrics.position import Outlined


def position_floor(store: Store, training: Sequence[str], test: Sequence[str]) -> dict[str, Any]:
    """Dice of the position-only predictor made of `training`, on `test`: `{"dice", "per_case"}`."""
    classes = Classes.of(store.recipe)
    groups = classes.regions or [(value,) for value in range(1, classes.outputs)]

    def load(name: str) -> Outlined:
        label = np.asarray(store.arrays(name).label)
        return label, label != IGNORED

    return position.position_floor(load, groups, training, test)
