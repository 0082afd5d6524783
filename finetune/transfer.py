"""The encoder of a pretraining, or its whole network, taken by name into one for segmentation. Called by `finetune.train`.

Arrays whose names and shapes agree are copied. Three may be adapted: the patch embedding, to other channels and, where that is asked for, to tokens of
other sides; a learned position table, to another token grid; and a head, to other outputs. Anything else that differs is refused with a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.errors import CheckpointError
from jaxseg.models import ViTConfig
from jaxseg.models.positions import Triple
from jaxseg.train import array_names
from jaxseg.zoo.channels import adapt_channels
from jaxseg.zoo.patches import resample_patches

PREFIX = "encoder."
PATCH = "encoder.patch.kernel"
HEAD = "head.kernel"


@dataclass(frozen=True)
class Transfer:
    """The outcome: the network's parameters with the encoder in place, and what happened to each of its arrays."""

    params: Any
    taken: tuple[str, ...]
    adapted: dict[str, str]

    def describe(self) -> str:
        """One line for the log."""
        changed = "".join(f"; {name}: {how}" for name, how in self.adapted.items())
        return f"{len(self.taken) + len(self.adapted)} arrays taken from the pretraining{changed}"


def take_encoder(
    params: Any,
    config: ViTConfig,
    source: Any,
    source_config: Any,
    *,
    channels: Sequence[str],
    source_channels: Sequence[str],
    resample: bool = False,
) -> Transfer:
    """Put the encoder arrays of `source` into `params`.

    A source without any `encoder.…` name is taken for an encoder itself, as the zoo's converters leave a peer's ViT.

    Args:
        params: parameters of the network to fine-tune (names `encoder.…` and others, which stay as they are).
        config: of its encoder.
        source: parameters of the pretrained network, with `encoder.…` names, or of a bare encoder.
        source_config: of the pretrained encoder; a network without tokens is refused by its arrays.
        channels, source_channels: names of the input channels; they decide which rows of the patch embedding go where.
        resample: where tokens have other sides, resample the patch embedding (`zoo.patches.resample_patches`) instead of refusing it.

    Raises:
        CheckpointError: an array is missing, left over, or of a shape that cannot be adapted, or equal arrays would mean something else there
            (`refuse_other_meaning`); the message is a table of all of them.
    """
    named = _named(source)
    if not any(name.startswith(PREFIX) for name in named):
        named = {PREFIX + name: leaf for name, leaf in named.items()}
    offered = {name: leaf for name, leaf in named.items() if name.startswith(PREFIX)}
    wanted = {name: leaf for name, leaf in _named(params).items() if name.startswith(PREFIX)}
    adapted: dict[str, str] = {}
    changes: list[str] = []
    token: Triple | None = getattr(source_config, "token", None)
    if resample and PATCH in offered and token is not None and token != config.token:
        offered[PATCH] = resample_patches(offered[PATCH], token, config.token)
        changes.append(f"tokens of {' x '.join(map(str, token))} voxels → {' x '.join(map(str, config.token))}")
    resampled = bool(changes)
    if PATCH in offered and (resampled or config.token == token) and tuple(channels) != tuple(source_channels):
        offered[PATCH] = adapt_channels(offered[PATCH], source_channels, channels)
        changes.append(f"channels {', '.join(source_channels)} → {', '.join(channels)}")
    if changes:
        adapted[PATCH] = ", ".join(changes)
    table = "encoder.positions.table"
    if table in offered and table in wanted and config.grid != source_config.grid:
        offered[table] = resize_table(offered[table], config.grid)
        adapted[table] = f"token grid {source_config.grid} → {config.grid}"
    _refuse_differences(offered, wanted, "encoder does not fit this network (give it the same width, depth, token and positions)")
    refuse_other_meaning(config, source_config, resampled=resampled)
    return _replaced(params, offered, adapted)


def take_network(
    params: Any, source: Any, *, channels: Sequence[str], source_channels: Sequence[str], outlines: Sequence[int | None] | None
) -> Transfer:
    """Put all arrays of `source` into `params`, which must be those of the same network for the same channels, but perhaps other outputs.

    Args:
        params: parameters of the network to fine-tune.
        source: parameters of the pretrained network.
        channels, source_channels: names of the input channels.
        outlines: where the source's outputs are outlines, which of them each output starts from (`Classes.outlines`), None for one that starts as
            a constant; the head's biases stay those of `params`, which know how rare each label is. None where they mean something else: the
            whole head then stays that of `params`.

    Raises:
        CheckpointError: other channels, or an array that is missing, left over or of another shape; the message is a table of all of them.
    """
    if tuple(channels) != tuple(source_channels):
        raise CheckpointError(
            f"a whole network is taken for the same channels alone: it has {', '.join(source_channels)}, the scans have "
            f"{', '.join(channels)}; take its encoder instead (--take encoder)"
        )
    offered, wanted = _named(source), _named(params)
    adapted = {}
    if outlines is not None and HEAD in offered and HEAD in wanted:
        voxels = wanted[HEAD].shape[-1] // len(outlines)
        offered[HEAD] = head_of_outlines(offered[HEAD], voxels, outlines)
        adapted[HEAD] = "outputs " + ", ".join("0" if each is None else f"outline {each + 1}" for each in outlines)
    own = [name for name in wanted if name.startswith("head.") and name not in adapted]
    offered |= {name: wanted[name] for name in own}
    _refuse_differences(offered, wanted, "network is not this one (give it the same settings, or take its encoder alone: --take encoder)")
    return _replaced(params, {name: leaf for name, leaf in offered.items() if name not in own}, adapted)


def refuse_other_meaning(config: Any, source_config: Any, *, resampled: bool = False) -> None:
    """CheckpointError where the same arrays would compute something else: other heads, tokens of other sides or other positions.

    Args:
        config, source_config: of the encoder to fine-tune and of the pretrained one; a field that one of them lacks is not compared.
        resampled: the patch embedding has been brought to tokens of other sides, which are not compared then.
    """
    fields = [*([] if resampled else ["token"]), "heads", "positions", "rotary", "rope_base", "rope_scale"]
    if not str(getattr(config, "positions", "rope")).startswith("rope"):
        fields = fields[:-2]
    rows = []
    for name in fields:
        have, need = getattr(source_config, name, None), getattr(config, name, None)
        if have is not None and need is not None and have != need:
            rows.append(f"  {name:44s} {have!s:>22s} {need!s:>22s}")
    if rows:
        head = f"  {'setting':44s} {'in the pretraining':>22s} {'in this network':>22s}"
        raise CheckpointError("the pretrained encoder does not fit this network (give it the same settings):\n" + "\n".join([head, *rows]))


def head_of_outlines(kernel: Any, voxels: int, outlines: Sequence[int | None]) -> jax.Array:
    """A head's kernel `(1, 1, 1, f, voxels * outputs)` of another's `(1, 1, 1, f, voxels * outlines)`, zeros where an output has no outline.

    Voxels that share a place (`depth_to_space`) come before outputs.
    """
    found = jnp.asarray(kernel).reshape(*kernel.shape[:-1], voxels, -1)
    columns = [jnp.zeros_like(found[..., 0]) if each is None else found[..., each] for each in outlines]
    return jnp.stack(columns, -1).reshape(*kernel.shape[:-1], -1)


def _replaced(params: Any, offered: dict[str, Any], adapted: dict[str, str]) -> Transfer:
    leaves, structure = jax.tree.flatten(params)
    new = [jnp.asarray(offered[name], leaf.dtype) if name in offered else leaf for name, leaf in zip(array_names(params), leaves)]
    taken = tuple(name for name in offered if name not in adapted)
    return Transfer(jax.tree.unflatten(structure, new), taken, adapted)


def resize_table(table: Any, target: Sequence[int]) -> jax.Array:
    """A learned position table `(x, y, z, width)` interpolated trilinearly to another token grid."""
    array = jnp.asarray(table, jnp.float32)
    return jax.image.resize(array, (*target, array.shape[-1]), "trilinear", antialias=False)


def _named(tree: Any) -> dict[str, Any]:
    return dict(zip(array_names(tree), jax.tree.leaves(tree)))


def _refuse_differences(offered: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    rows = []
    for name in sorted(offered.keys() | wanted.keys()):
        have, need = (str(tuple(each[name].shape)) if name in each else "none" for each in (offered, wanted))
        if have != need:
            rows.append(f"  {name:44s} {have:>22s} {need:>22s}")
    if rows:
        head = f"  {'array':44s} {'in the pretraining':>22s} {'in this network':>22s}"
        raise CheckpointError(f"the pretrained {what}:\n" + "\n".join([head, *rows]))
