"""The encoder of a pretraining, taken by name into a network for segmentation. Called by `finetune.train`.

Arrays whose names and shapes agree are copied. Two may be adapted: the patch embedding, to other channels, and a learned position table, to
another token grid. Anything else that differs is refused with a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.models import ViTConfig
from jaxseg.train import array_names

PREFIX = "encoder."


@dataclass(frozen=True)
class Transfer:
    """The outcome: the network's parameters with the encoder in place, and what happened to each of its arrays."""

    params: Any
    taken: tuple[str, ...]
    adapted: dict[str, str]

    def describe(self) -> str:
        """One line for the log."""
        changed = "".join(f"; {name}: {how}" for name, how in self.adapted.items())
        return f"{len(self.taken) + len(self.adapted)} encoder arrays taken from the pretraining{changed}"


def take_encoder(
    params: Any,
    config: ViTConfig,
    source: Any,
    source_config: ViTConfig,
    *,
    channels: Sequence[str],
    source_channels: Sequence[str],
) -> Transfer:
    """Put the encoder arrays of `source` into `params`.

    Args:
        params: parameters of the network to fine-tune (names `encoder.…` and others, which stay as they are).
        config: of its encoder.
        source: parameters of the pretrained network, with `encoder.…` names.
        source_config: of the pretrained encoder.
        channels, source_channels: names of the input channels; they decide which rows of the patch embedding go where.

    Raises:
        CheckpointError: an array is missing, left over, or of a shape that cannot be adapted; the message is a table of all of them.
    """
    offered = {name: leaf for name, leaf in _named(source).items() if name.startswith(PREFIX)}
    wanted = {name: leaf for name, leaf in _named(params).items() if name.startswith(PREFIX)}
    if not offered:
        raise CheckpointError("the pretraining has no arrays named encoder.*: it is not a pretrained encoder of jaxseg")
    adapted: dict[str, str] = {}
    if "encoder.patch.kernel" in offered and config.token == source_config.token and tuple(channels) != tuple(source_channels):
        offered["encoder.patch.kernel"] = adapt_channels(offered["encoder.patch.kernel"], source_channels, channels)
        adapted["encoder.patch.kernel"] = f"channels {', '.join(source_channels)} → {', '.join(channels)}"
    table = "encoder.positions.table"
    if table in offered and table in wanted and config.grid != source_config.grid:
        offered[table] = resize_table(offered[table], config.grid)
        adapted[table] = f"token grid {source_config.grid} → {config.grid}"
    _refuse_differences(offered, wanted)
    leaves, structure = jax.tree.flatten(params)
    new = [jnp.asarray(offered[name], leaf.dtype) if name in offered else leaf for name, leaf in zip(array_names(params), leaves)]
    taken = tuple(name for name in offered if name not in adapted)
    return Transfer(jax.tree.unflatten(structure, new), taken, adapted)


def adapt_channels(kernel: Any, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """A patch embedding `(voxels * c_source, width)` for other channels: `(voxels * c_target, width)`.

    A channel whose name the pretraining knew takes its own rows. One that it did not know takes the mean over the source's channels; where none
    is known (1 → N above all) that mean is divided so that N equal channels give the same token as before, as nnU-Net repeats a stem and divides.
    """
    kernel = np.asarray(kernel, np.float32)
    rows = kernel.reshape(-1, len(source), kernel.shape[-1])
    known = {name.lower(): index for index, name in enumerate(source)}
    shared = [name for name in target if name.lower() in known]
    stranger = rows.mean(1) if shared else rows.sum(1) / len(target)
    columns = [rows[:, known[name.lower()]] if name.lower() in known else stranger for name in target]
    return np.stack(columns, axis=1).reshape(-1, kernel.shape[-1])


def resize_table(table: Any, target: Sequence[int]) -> jax.Array:
    """A learned position table `(x, y, z, width)` interpolated trilinearly to another token grid."""
    array = jnp.asarray(table, jnp.float32)
    return jax.image.resize(array, (*target, array.shape[-1]), "trilinear", antialias=False)


def _named(tree: Any) -> dict[str, Any]:
    return dict(zip(array_names(tree), jax.tree.leaves(tree)))


def _refuse_differences(offered: dict[str, Any], wanted: dict[str, Any]) -> None:
    rows = []
    for name in sorted(offered.keys() | wanted.keys()):
        have, need = (str(tuple(each[name].shape)) if name in each else "none" for each in (offered, wanted))
        if have != need:
            rows.append(f"  {name:44s} {have:>22s} {need:>22s}")
    if rows:
        head = f"  {'array':44s} {'in the pretraining':>22s} {'in this network':>22s}"
        raise CheckpointError(
            "the pretrained encoder does not fit this network (give it the same width, depth, token and positions):\n"
            + "\n".join([head, *rows])
        )
