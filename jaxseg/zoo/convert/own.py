"""Arrays that already have our names, without a card to say what network they are: for that the caller names the model. Used by `zoo.pretrained`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from jaxseg.errors import CheckpointError
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source
from jaxseg.zoo.names import differences, param_shapes
from jaxseg.zoo.registry import create_model

_STACKED = re.compile(r"(^|.*\.)blocks\.(?!\d)")

_OF_THE_FILE = ("branch", "wrapper")
"""Settings that say where in the file the arrays are, not what network they make."""


def own_layout(model: str) -> Layout:
    """The layout of a jaxseg model: names of `zoo.names`, or those of a training checkpoint, whose blocks are stacked.

    Settings: in_channels, num_classes and the overrides of `create_model`.
    """
    names = {re.sub(r"\d+", "0", name) for name in param_shapes(nnx.eval_shape(lambda: create_model(model)))}

    def recognise(shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return any(re.sub(r"\d+", "0", _unstacked_name(name, 0)) in names for name in shapes)

    def convert(source: Source, settings: Settings) -> Converted:
        return _convert(source, settings, model)

    return Layout(f"jaxseg {model}", recognise, convert)


def _convert(source: Source, settings: Settings, model: str) -> Converted:
    given: dict[str, Any] = {name: settings.take(name, None, "") for name in settings.given if name not in _OF_THE_FILE}
    network = nnx.eval_shape(lambda: create_model(model, **given))
    expected = param_shapes(network)
    found = {part: array for name in source.state for part, array in _unstack(source, name).items()}
    fitting = {name: array for name, array in found.items() if name in expected}
    shapes = {name: tuple(array.shape) for name, array in fitting.items()}
    if table := differences({name: expected[name] for name in fitting}, shapes):
        raise CheckpointError(
            f"the arrays have other shapes than {model} with {given or 'its own settings'}; --set name=value changes it\n{table}"
        )
    missing = {name: "not in the file" for name in expected if name not in fitting}
    used = {key for key in source.state if any(part in fitting for part in _parts(key, source.shape(key)))}
    for key in used:
        source[key]
    source.check_all_used()
    return Converted(network.config, fitting, missing)


def _unstack(source: Source, name: str) -> dict[str, np.ndarray]:
    array = source.state[name]
    parts = _parts(name, tuple(array.shape))
    return {name: array} if parts == [name] else {part: array[i] for i, part in enumerate(parts)}


def _parts(name: str, shape: tuple[int, ...]) -> list[str]:
    if not _STACKED.match(name) or not shape:
        return [name]
    return [_unstacked_name(name, i) for i in range(min(shape[0], 10_000))]


def _unstacked_name(name: str, i: int) -> str:
    return _STACKED.sub(lambda found: f"{found[1]}blocks.{i}.", name, count=1)
