"""Networks by name: sizes of ViT, MAE and UNETR, and their architecture as JSON. Called by users, model folders, `pretrain` and `finetune`."""

import dataclasses
import difflib
import importlib
import typing
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxseg.errors import ConfigError

# Parameters of vit3d_* at one channel: tiny 2.8 M, small 14.4 M, base 85.5 M, large 303.3 M.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 6, "heads": 3, "crop": (64, 64, 64), "token": (8, 8, 8)},
    "small": {"width": 384, "depth": 8, "heads": 6, "crop": (96, 96, 96), "token": (8, 8, 8)},
    "base": {"width": 768, "depth": 12, "heads": 12, "crop": (96, 96, 96), "token": (8, 8, 8)},
    "large": {"width": 1024, "depth": 24, "heads": 16, "crop": (96, 96, 96), "token": (8, 8, 8)},
}


class Family(NamedTuple):
    """Where a kind of network lives, and what its sizes set besides the encoder."""

    module: str
    network: str
    config: str
    sizes: dict[str, dict[str, Any]]


_FAMILIES = {
    "vit3d": Family("jaxseg.models.vit", "ViT", "ViTConfig", {size: {} for size in _SIZES}),
    "mae3d": Family(
        "jaxseg.models.mae",
        "MAE",
        "MAEConfig",
        {
            "tiny": {"decoder_width": 96, "decoder_depth": 2, "decoder_heads": 2},
            "small": {"decoder_width": 192, "decoder_depth": 4, "decoder_heads": 6},
            "base": {"decoder_width": 384, "decoder_depth": 4, "decoder_heads": 6},
            "large": {"decoder_width": 512, "decoder_depth": 4, "decoder_heads": 8},
        },
    ),
    "unetr": Family(
        "jaxseg.models.unetr",
        "UNETR",
        "UNETRConfig",
        {
            "tiny": {"feature": 16, "stride": 2},
            "small": {"feature": 16, "stride": 2},
            "base": {"feature": 32, "stride": 2},
            "large": {"feature": 32, "stride": 2},
        },
    ),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return [f"{family}_{size}" for family, entry in _FAMILIES.items() for size in entry.sizes]


def create_model(name: str, *, in_channels: int | None = None, num_classes: int = 2, seed: int = 0, **overrides: Any) -> Any:
    """A freshly initialised network, an `nnx.Module` with `.config`.

    `overrides` are fields of its config or of its encoder's, side by side: `create_model("unetr_tiny", crop=(48, 48, 48), stride=1)`. A size along
    three axes may be one number. `encoder=` takes a whole ViTConfig, and then `in_channels` is its own unless given; else 1. `num_classes`
    matters to segmentation networks alone.
    Raises ConfigError for an unknown name or field.
    """
    family, _, size = name.rpartition("_")
    if name not in list_models():
        raise ConfigError(f"there is no model {name!r}{_nearest(name, list_models())}; known: {', '.join(list_models())}")
    entry = _FAMILIES[family]
    kind = getattr(importlib.import_module(entry.module), entry.config)
    given = {**({} if "encoder" in overrides else _SIZES[size]), **entry.sizes[size], **overrides}
    if in_channels is not None:
        given["in_channels"] = in_channels
    if "num_classes" in _flat_fields(kind):
        given["num_classes"] = num_classes
    return _network(family, _config(kind, given, f"model {name!r}"), seed)


def describe_models() -> list[tuple[str, str]]:
    """(name, one line) of every model: parameters at one channel and two classes, crop and token in voxels."""
    rows = []
    for name in list_models():
        network = nnx.eval_shape(lambda name=name: create_model(name))
        config = getattr(network.config, "encoder", network.config)
        millions = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network))) / 1e6
        rows.append((name, f"{millions:6.1f} M parameters, crop {config.crop}, token {config.token}"))
    return rows


def architecture(model: nnx.Module) -> dict[str, Any]:
    """`{"name": family, "arguments": config}` as JSON data: all that `build` needs to make the same network again."""
    config = getattr(model, "config", None)
    for name, entry in _FAMILIES.items():
        if type(model).__name__ == entry.network and type(config).__name__ == entry.config:
            return {"name": name, "arguments": _to_json(dataclasses.asdict(typing.cast(Any, config)))}
    raise ConfigError(
        f"a {type(model).__name__} cannot be described for a model folder; known: {', '.join(e.network for e in _FAMILIES.values())}"
    )


def build(description: dict[str, Any], *, seed: int = 0) -> Any:
    """The network that `architecture` described, freshly initialised. Raises ConfigError for a name or field that this version does not know."""
    name = description.get("name")
    if name not in _FAMILIES:
        raise ConfigError(f"the architecture is called {name!r}; this version of jaxseg knows {', '.join(_FAMILIES)}")
    kind = getattr(importlib.import_module(_FAMILIES[name].module), _FAMILIES[name].config)
    return _network(name, _config(kind, description.get("arguments", {}), f"architecture {name!r}"), seed)


def _network(family: str, config: Any, seed: int) -> Any:
    entry = _FAMILIES[family]
    return getattr(importlib.import_module(entry.module), entry.network)(config, rngs=nnx.Rngs(seed))


def _config(kind: Any, given: dict[str, Any], where: str) -> Any:
    """A `kind` from its own fields and, side by side with them, those of the configs inside it."""
    unknown = [key for key in given if key not in _flat_fields(kind)]
    if unknown:
        known = sorted(_flat_fields(kind))
        raise ConfigError(f"{where} has no setting {unknown[0]!r}{_nearest(unknown[0], known)}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name, hint in _field_types(kind).items():
        if dataclasses.is_dataclass(hint):
            inner = {key: value for key, value in given.items() if key in _flat_fields(hint) and key not in _field_types(kind)}
            base = given.get(name, {})
            base = _fields_of(base) if dataclasses.is_dataclass(base) else dict(base)
            values[name] = _config(hint, {**base, **inner}, where)
        elif name in given:
            values[name] = _coerce(given[name], hint)
    return kind(**values)


def _fields_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _field_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _flat_fields(kind: Any) -> set[str]:
    own = _field_types(kind)
    return set(own).union(*(_flat_fields(hint) for hint in own.values() if dataclasses.is_dataclass(hint)))


def _coerce(value: Any, hint: Any) -> Any:
    """JSON has no tuples, and a person writes 48 for (48, 48, 48)."""
    if hint == tuple[int, int, int] and isinstance(value, int):
        return (value, value, value)
    return tuple(value) if isinstance(value, list) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    return [_to_json(inner) for inner in value] if isinstance(value, tuple) else value


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (perhaps you meant {near[0]!r})" if near else ""
