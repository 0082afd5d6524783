"""Dice on a few watched cases while training, for the curves and for keeping the best checkpoint. Used by `finetune.train`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from finetune.classes import Classes
from finetune.objective import IGNORED
from jaxseg.data.catalog import Store
from jaxseg.infer import sliding_window
from jaxseg.metrics import dice
from jaxseg.train import TrainState


def watch(
    graph: nnx.GraphDef,
    store: Store,
    names: Sequence[str],
    classes: Classes,
    crop: tuple[int, int, int],
    *,
    overlap: float = 0.25,
) -> Callable[[TrainState], dict[str, float]]:
    """A function of the train state: the mean Dice of the watched cases, on the working grid (the final scores are on the scans' own grids).

    The averaged weights are used where the state has them.
    """

    @jax.jit
    def apply(params: Any, windows: jax.Array, spacing: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(windows, spacing=spacing)

    def evaluate(state: TrainState) -> dict[str, float]:
        params = state.params if state.ema is None else state.ema
        return {"dice": float(np.mean([_case_dice(apply, params, store, name, classes, crop, overlap) for name in names]))}

    return evaluate


def _case_dice(apply: Any, params: Any, store: Store, name: str, classes: Classes, crop: tuple[int, int, int], overlap: float) -> float:
    arrays = store.arrays(name)
    entry = store.entry(name)
    spacing = np.asarray([entry.spacing], np.float32)
    logits = sliding_window(
        lambda windows: apply(params, windows, spacing),
        np.asarray(arrays.image, np.float32),
        window=crop,
        num_classes=classes.outputs,
        overlap=overlap,
        mask=np.asarray(arrays.mask, bool),
        fill=[air if there else 0.0 for air, there in zip(entry.air, entry.present)],
        outside=-20.0 if classes.regions is not None else [20.0] + [-20.0] * len(classes.names),
    )
    truth = np.asarray(arrays.label)
    known = truth != IGNORED
    if classes.regions is not None:
        pairs = [((logits[..., k] > 0) & known, np.isin(truth, values)) for k, values in enumerate(classes.regions)]
    else:
        best = logits.argmax(-1)
        pairs = [((best == value) & known, truth == value) for value in range(1, classes.outputs)]
    return float(np.mean([dice(predicted, true) for predicted, true in pairs]))
