"""Eva's blocks and position table in our names, and the exact exchange of two axes for tokens that were flattened in another order.

Called by `nnssl_primus` for encoder and decoder.
"""

from typing import Literal

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.models.positions import Triple
from jaxseg.zoo.convert.source import Source, linear, norm

Order = Literal["whd", "hwd"]
_LINEAR = {
    "attention.value": "attn.v_proj",
    "attention.out": "attn.proj",
    "mlp.gate": "mlp.fc1_g",
    "mlp.value": "mlp.fc1_x",
    "mlp.out": "mlp.fc2",
}
_NORMS = {"norm1": "norm1", "norm2": "norm2", "attention.norm": "attn.norm", "mlp.norm": "mlp.norm"}


def block_arrays(source: Source, theirs: str, ours: str, *, heads: int, rotary: bool, order: Order) -> dict[str, np.ndarray]:
    """One block, `eva.blocks.3` as `blocks.3`. `attention_norm` and LayerScale are taken where the file has them."""
    arrays: dict[str, np.ndarray] = {}
    for part, other in _NORMS.items():
        if f"{theirs}.{other}.weight" in source or part != "attention.norm":
            arrays |= norm(source, f"{theirs}.{other}", f"{ours}.{part}")
    for part, other in _LINEAR.items():
        arrays |= linear(source, f"{theirs}.{other}", f"{ours}.{part}")
    for part, other in {"query": "q_proj", "key": "k_proj"}.items():
        found = linear(source, f"{theirs}.attn.{other}", f"{ours}.attention.{part}")
        if rotary:
            columns = rotary_columns(found[f"{ours}.attention.{part}.kernel"].shape[-1], heads, order)
            found = {name: array[..., columns] for name, array in found.items()}
        arrays |= found
    for i in (1, 2):
        if f"{theirs}.gamma_{i}" in source:
            arrays[f"{ours}.scale{i}.gamma"] = source[f"{theirs}.gamma_{i}"]
    return arrays


def rotary_columns(width: int, heads: int, order: Order) -> np.ndarray:
    """Which of the peer's outputs of q_proj or k_proj each of ours is; attention does not change when both are sorted alike.

    The peer turns neighbours (2i, 2i + 1), a third of the head by each axis; ours are (i, i + d/2). In "hwd" the first two thirds have
    been turned by each other's axis.
    """
    head_dim = width // heads
    places = np.arange(head_dim)
    if order == "hwd":
        first, second, third = np.split(places, 3)
        places = np.concatenate([second, first, third])
    places = np.concatenate([places[0::2], places[1::2]])
    return (head_dim * np.arange(heads)[:, None] + places).reshape(-1)


def grid_table(table: np.ndarray, grid: Triple, order: Order) -> np.ndarray:
    """Position table (n, width) of tokens flattened in `order` on the grid (gx, gy, gz, width)."""
    x, y, z = grid
    if order == "hwd":
        return table.reshape(y, x, z, -1).transpose(1, 0, 2, 3)
    return table.reshape(x, y, z, -1)


def check_exchangeable(grid: Triple, rotary: bool, order: Order) -> None:
    """CheckpointError if tokens in `order` on `grid` cannot be put in ours: their angles were then not those of any place in space."""
    if order == "hwd" and rotary and grid[0] != grid[1]:
        raise CheckpointError(
            f"tokens in the order hwd on a grid of {grid}: with different first and second sides this peer pairs tokens with the rotary angles "
            "of other places, which no exchange of axes repairs; if the file is in the order whd, say --set token_order=whd"
        )


def hidden_ratio(width: int, hidden: int) -> float:
    """An `mlp_ratio` for which `int(width * mlp_ratio)` is `hidden`; the published 8/3 where that is one."""
    for ratio in (8 / 3, hidden / width):
        if int(width * ratio) == hidden:
            return ratio
    return (hidden + 0.5) / width
