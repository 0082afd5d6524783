"""Which layer of an encoder an array belongs to, and which arrays a prefix names: by name alone. Used by `optim`, and by users who write their own.

An encoder's arrays are named `encoder.…` (and, where a transformer follows it, `transformer.…`); its layers are the entries of `blocks`, `stages`
or `levels`, one after the other in a list or stacked on a leading axis. Networks without such a part are an encoder as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.train.state import array_names

_LAYERS = re.compile(r"(?:blocks|stages|levels)\.(?:(\d+)\.)?")
# The norm after the last layer belongs to the head's side of the network.
_FINAL_NORM = re.compile(r"norm\d*\.")


def layer_depths(params: Any) -> dict[str, np.ndarray]:
    """The depth of each array by name: 0 for the embedding or stem, 1 to n for the encoder's layers, n + 1 for everything behind them.

    An array of stacked blocks has a vector over its leading axis, any other a number. `params` may be abstract. An encoder without layers that
    can be told by name has n = 0.
    """
    leaves = dict(zip(array_names(params), jax.tree.leaves(params)))
    parts = [part for part in ("encoder.", "transformer.") if any(name.startswith(part) for name in leaves)]
    depths: dict[str, np.ndarray] = {}
    first = 0
    for part in parts or [""]:
        inside = {name: _inside(name.removeprefix(part), leaf) for name, leaf in leaves.items() if name.startswith(part)}
        count = max((int(depth.max()) for depth in inside.values()), default=0)
        depths |= {name: first + depth for name, depth in inside.items() if not _FINAL_NORM.match(name.removeprefix(part))}
        first += count
    return {name: depths.get(name, np.asarray(first + 1)) for name in leaves}


def within(name: str, prefix: str) -> bool:
    """Whether `prefix` is `name` or whole dotted parts of its beginning."""
    return name == prefix or name.startswith(prefix.removesuffix(".") + ".")


def frozen(params: Any, prefixes: Sequence[str]) -> Any:
    """True for every array whose name begins with one of `prefixes`: a mask for `optax.transforms.freeze`, of the structure of `params`.

    Raises ConfigError for a prefix that no array begins with.
    """
    names = array_names(params)
    lost = [prefix for prefix in prefixes if not any(within(name, prefix) for name in names)]
    if lost:
        tops = sorted({".".join(name.split(".")[:2]) for name in names})
        raise ConfigError(f"freeze: no parameter begins with {', '.join(lost)}; there are {', '.join(tops)}")
    found = [any(within(name, prefix) for prefix in prefixes) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def in_encoder(params: Any) -> Any:
    """True for every array of the encoder, from its embedding to its last layer, of the structure of `params`.

    Raises ConfigError if no part of the network is called `encoder` or `transformer`.
    """
    depths = layer_depths(params)
    names = array_names(params)
    if not any(name.startswith(("encoder.", "transformer.")) for name in names):
        tops = sorted({name.split(".")[0] for name in names})
        raise ConfigError(f"decoder_first needs a network with an encoder; its parts are {', '.join(tops)}")
    behind = max(int(depth.max()) for depth in depths.values())
    return jax.tree.unflatten(jax.tree.structure(params), [bool((depths[name] < behind).all()) for name in names])


def decayed_rates(params: Any, decay: float) -> Mapping[str, np.ndarray]:
    """`decay ** (n + 1 - depth)` for each array by name (BEiT, arXiv 2106.08254), float32; shaped to multiply the array.

    Raises ConfigError if no layers can be told by name.
    """
    depths, leaves = layer_depths(params), dict(zip(array_names(params), jax.tree.leaves(params)))
    last = max(int(depth.max()) for depth in depths.values())
    if last < 2:
        tops = sorted({".".join(name.split(".")[:2]) for name in leaves})
        raise ConfigError(f"layer_decay={decay} needs parameters encoder.blocks.*, .stages.* or .levels.*; there are {', '.join(tops)}")
    rates = {name: np.float32(decay) ** (last - depth).astype(np.float32) for name, depth in depths.items()}
    return {name: rate.reshape(-1, *[1] * (leaves[name].ndim - 1)) if rate.ndim else rate for name, rate in rates.items()}


def _inside(name: str, leaf: Any) -> np.ndarray:
    found = _LAYERS.match(name)
    if not found:
        return np.asarray(0)
    return np.arange(1, leaf.shape[0] + 1) if found[1] is None else np.asarray(int(found[1]) + 1)
