"""Which number each draw of a pretraining model folds its samples' keys with, so that no two draws share a key. Used by the models.

Others fold the same keys: augmentation with 0 to 100 (`data.augment.batch`), objectives with 2001 and above (`pretrain.objectives`). A key that
`jax.random.split` parts counts as folded with 0, 1, …
"""

import jax
from jaxtyping import Array, Key

MASK, DROP_PATH, CORNERS, PARTS = 1001, 1002, 1003, 1100
"""PARTS: the first of as many as a sample has parts"""


def keys_for(keys: Key[Array, " b"], draw: int) -> Key[Array, " b"]:
    """Each sample's key of one draw."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, draw)
