"""Model folders, the form in which networks are shared: the card `model.json` and `weights.safetensors`, written and read here alone.

`pretrain` and `finetune` save them, `segment` and users load them. What the card says besides the architecture is the caller's business.
"""

import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays

import jaxseg
from jaxseg.errors import CheckpointError, ConfigError, InputError
from jaxseg.files import read_json, sha256_of, write_whole
from jaxseg.zoo.names import flatten_params, unflatten_params
from jaxseg.zoo.registry import architecture, build
from jaxseg.zoo.safetensors_file import write_safetensors

CARD = "model.json"
WEIGHTS = "weights.safetensors"
_FORMAT = 1
_UNSTATED: dict[str, Any] = {
    "axes": "x, y, z, channel",
    "orientation": "RAS",
    "recipe": None,
    "labels": None,
    "regions": None,
    "crop": None,
    "training": None,
    "licence": "unspecified",
    "scores": [],
}
"""What a card says where the caller said nothing, so that every card has every field. Axes and orientation are those of every jaxseg array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network with its card; called like the network, compiled once for each shape."""

    network: nnx.Module
    card: dict[str, Any]

    @property
    def config(self) -> Any:
        """The frozen config that the network was built from."""
        return self.network.config  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Array:
        """The network's output: for one that segments, logits `(b, x, y, z, k)`. `spacing` in mm; ShapeError if `x` does not fit."""
        return self._compiled(x, spacing, key)

    @functools.cached_property
    def _compiled(self):
        graph, params = nnx.split(self.network)
        call = jax.jit(lambda params, x, spacing, key: nnx.merge(graph, params)(x, spacing=spacing, key=key))
        return functools.partial(call, params)


def save_model(folder: str | Path, network: nnx.Module, card: Mapping[str, Any]) -> Path:
    """Write a model folder and return it. A folder that holds a model already keeps it until the new one is complete.

    Args:
        network: one that `zoo.architecture` can describe; its arrays are written per block whatever the stacking in memory.
        card: JSON data. `channels` (names, as many as the network takes) is required; the other fields are axes, orientation, recipe
            (spacing and intensity rule), labels, regions, crop, training (with the data's hashes), licence, scores (each with its command),
            and any that the caller adds. Architecture, weights (with their sha256) and versions are filled in here.

    Raises ConfigError if the card does not describe this network or is not JSON, StorageError if the folder cannot be written.
    """
    folder = Path(folder)
    full = complete_card(card, network)
    _as_text(folder, full)
    arrays = flatten_params(network)

    def write_both(card_file: Path) -> None:
        # The card is complete on disk before the weights are replaced, and takes its name right after them.
        def write_weights(temporary: Path) -> None:
            write_safetensors(temporary, arrays)
            card_file.write_text(_as_text(folder, full | {"weights": _describe(temporary, arrays)}), encoding="utf-8")

        write_whole(folder / WEIGHTS, write_weights)

    write_whole(folder / CARD, write_both)
    return folder


def load_model(folder: str | Path) -> Model:
    """The network and card of a model folder.

    Raises InputError if the folder or one of its two files is missing; CheckpointError if the weights are not, to the byte, those that the card
    was written for, or are not those of the architecture it names (with a table of missing, unexpected and differently shaped arrays).
    """
    folder = Path(folder)
    card = read_card(folder)
    weights = _read_weights(folder / WEIGHTS, card["weights"]["sha256"])
    try:
        abstract = nnx.eval_shape(lambda: build(card["architecture"]))
        arrays = parse_arrays(weights)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CARD}: {error}. It may be from another version of jaxseg: {card.get('versions')}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: this is not a safetensors file ({error}); copy the model folder again") from None
    graph, params = nnx.split(abstract)
    return Model(nnx.merge(graph, unflatten_params(params, arrays, source=str(folder / WEIGHTS))), card)


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a model folder, without its weights. InputError if there is none, CheckpointError if it is not a card."""
    path = Path(folder) / CARD
    if not path.is_file():
        found = "no such folder" if not path.parent.is_dir() else f"not a model folder: it holds no {CARD}"
        if (path.parent / "model" / CARD).is_file():
            found = f"a run folder, whose model is {path.parent / 'model'}: give that"
        raise InputError(f"{folder}: {found}; expected a folder with {CARD} and {WEIGHTS}, as training and `save_model` write it")
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise CheckpointError(
            f"{path}: not a model card of format {_FORMAT} (found {found!r}); use a jaxseg as new as the one that wrote it"
        )
    sections = [card.get("architecture"), card.get("weights")]
    whole = all(isinstance(section, dict) for section in sections) and isinstance(card["weights"].get("sha256"), str)
    named = isinstance(card.get("channels"), list) and all(isinstance(name, str) for name in card["channels"])
    if not whole or not named:
        raise CheckpointError(
            f"{path}: the card is damaged: it needs architecture, channels and weights with their sha256; copy the folder again"
        )
    return card


def complete_card(card: Mapping[str, Any], network: nnx.Module) -> dict[str, Any]:
    """The card with every field that the caller did not say. ConfigError if it does not describe `network`."""
    described = architecture(network)
    if "architecture" in card and card["architecture"] != described:
        raise ConfigError(f"the card describes {card['architecture']}, but the network is {described}")
    config: Any = getattr(network, "config", None)
    expected = getattr(config, "encoder", config).in_channels
    channels = card.get("channels")
    if not isinstance(channels, list | tuple) or len(channels) != expected:
        raise ConfigError(
            f"the card names the channels {channels}, but the network takes {expected}: give one name a channel, in their order"
        )
    versions = {
        "jaxseg": jaxseg.__version__,
        **{name: version(name) for name in ("jax", "flax", "numpy")},
        "python": platform.python_version(),
    }
    return {"format": _FORMAT, "versions": versions, **_UNSTATED, **card, "architecture": described, "channels": list(channels)}


def _describe(weights: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    parameters = sum(array.size for array in arrays.values())
    return {"file": WEIGHTS, "sha256": sha256_of(weights), "bytes": weights.stat().st_size, "parameters": parameters}


def _as_text(folder: Path, card: Mapping[str, Any]) -> str:
    try:
        return json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder / CARD}: the card is not JSON data ({error})") from None


def _read_weights(path: Path, expected: str) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file, though {CARD} beside it names it; copy the whole model folder")
    weights = path.read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path}: these are not the weights that {CARD} was written for (sha256 {found[:12]}… of {len(weights)} bytes, expected "
            f"{expected[:12]}…): the file is damaged or from another model; copy the folder again, or train again"
        )
    return weights
