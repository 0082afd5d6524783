"""The position-only floor of a main job, from its label files. Called by `pipeline`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.io import load_label
from jaxseg.data.recipe import Recipe
from jaxseg.data.volume import to_ras
from jaxseg.evaluate import structures_of
from jaxseg.metrics.position import Outlined, position_floor


def floor_of(training: Sequence[Case], test: Sequence[Case], recipe: Recipe) -> dict[str, Any] | None:
    """`{"dice", "per_case"}` of a predictor that only knows where the labels of `training` lie; None where no test case has a label.

    Cases are looked at on their own grids, in RAS.
    """
    scored = {case.id: case for case in test if case.label is not None}
    learnt = {f"training {case.id}": case for case in training}
    if not scored:
        return None
    wanted = structures_of(recipe)
    groups = [[values] if isinstance(values, int) else values for values in (wanted.get("regions") or wanted["labels"]).values()]

    def load(name: str) -> Outlined:
        case = {**learnt, **scored}[name]
        assert case.label is not None
        label = to_ras(load_label(case.label, rules=case.rules)).array[..., 0]
        return label, ~np.isin(label, wanted.get("ignore", []))

    return position_floor(load, groups, list(learnt), list(scored))
