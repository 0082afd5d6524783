"""In which order a trained Swin network merges its patches, told from its weights. Called by `monai_swin`.

MONAI 0.9 to 1.4 gave its merging layer two of eight neighbours twice and two never (issue 4757, mended in 1.5 under the same name), so a file's
shapes do not tell which of the two it was trained with. Its weights do: columns that always see the same number get the same gradient, so
training makes them alike, while columns of different neighbours do not become more alike than the others.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float

from jaxseg.models.windows import MERGING_ORDERS, Merging

_MARGIN = 0.05
"""How much more alike the repeated columns must be. Of random weights the cosine is within 0.02 of 0 for all published widths."""


def find_merging(reductions: Sequence[Float[np.ndarray, "o i"]]) -> tuple[Merging, str]:
    """The order and the reason for it, from the `downsample.reduction.weight` of the stages: "merging_repeated" or MONAI's default."""
    pairs = list(combinations(range(8), 2))
    order = MERGING_ORDERS["merging_repeated"]
    repeated = [order[a] == order[b] for a, b in pairs]
    alike = _cosines(reductions, pairs)
    least = min(value for value, same in zip(alike, repeated) if same)
    most = max(value for value, same in zip(alike, repeated) if not same)
    found = f"columns of the neighbours that MONAI 0.9 to 1.4 repeats have cosines of {least:.2f} or more, others of {most:.2f} at most"
    if least > most + _MARGIN:
        return "merging_repeated", f"{found}: trained with such a version"
    return "merging", f"MONAI 1.5's and later; {found}: no sign of training with the earlier order, merging_repeated"


def _cosines(reductions: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """For each pair of neighbours the cosine between their columns, stages weighted by their numbers of weights."""
    total, weights = np.zeros(len(pairs)), 0
    for weight in reductions:
        columns = np.asarray(weight, np.float32).reshape(len(weight), 8, -1).transpose(1, 0, 2).reshape(8, -1)
        columns = columns / np.linalg.norm(columns, axis=1, keepdims=True).clip(1e-12)
        total += columns.shape[1] * np.array([columns[a] @ columns[b] for a, b in pairs])
        weights += columns.shape[1]
    return list(total / max(weights, 1))
