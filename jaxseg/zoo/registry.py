"""Networks by name and their architecture as JSON. Called by users, model folders, `pretrain` and `finetune`.

A family is one entry here; its variants are those that its config class publishes in `VARIANTS` {suffix of the name: classmethod}.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.features import FeatureMaps


class Family(NamedTuple):
    """Where a kind of network lives: module, network class and config class. `config.VARIANTS` has "" for a family that is a model itself."""

    module: str
    network: str
    config: str

    def config_class(self) -> Any:
        """The frozen dataclass that shapes the networks of this family."""
        return getattr(importlib.import_module(self.module), self.config)

    def network_class(self) -> Any:
        """The `nnx.Module`, made from a config."""
        return getattr(importlib.import_module(self.module), self.network)

    def names(self, family: str) -> dict[str, str]:
        """The public names of this family's models and the classmethods that make their configs."""
        return {f"{family}_{suffix}" if suffix else family: method for suffix, method in self.config_class().VARIANTS.items()}


FAMILIES = {
    "vit3d": Family("jaxseg.models.vit", "ViT", "ViTConfig"),
    "mae3d": Family("jaxseg.models.mae", "MAE", "MAEConfig"),
    "simmim3d": Family("jaxseg.models.simmim", "SimMIM", "SimMIMConfig"),
    "unetr": Family("jaxseg.models.unetr", "UNETR", "UNETRConfig"),
    "unetr_plus": Family("jaxseg.models.unetr_plus", "UNETRPlus", "UNETRPlusConfig"),
    "swin_unetr": Family("jaxseg.models.swin_unetr", "SwinUNETR", "SwinUNETRConfig"),
    "resunet": Family("jaxseg.models.resunet", "ResUNet", "ResUNetConfig"),
    "attention_unet": Family("jaxseg.models.attention_unet", "AttentionUNet", "AttentionUNetConfig"),
    "vnet": Family("jaxseg.models.vnet", "VNet", "VNetConfig"),
    "transunet": Family("jaxseg.models.transunet", "TransUNet", "TransUNetConfig"),
    "unet": Family("jaxseg.models.unet", "UNet", "UNetConfig"),
    "primus": Family("jaxseg.models.primus", "Primus", "PrimusConfig"),
    "evamae": Family("jaxseg.models.eva_mae", "EvaMAE", "EvaMAEConfig"),
    "cinema": Family("jaxseg.models.cinema", "CineMA", "CineMAConfig"),
}

# What only pretraining makes: model folders hold them, but nobody asks for one by a public name.
UNNAMED = {
    "latent3d": Family("jaxseg.models.latent", "Latent", "LatentConfig"),
    "places3d": Family("jaxseg.models.places", "Places", "PlacesConfig"),
    "mae_latent3d": Family("jaxseg.models.mae_latent", "MAELatent", "MAELatentConfig"),
    "simclr3d": Family("jaxseg.models.simclr", "SimCLR", "SimCLRConfig"),
}

_FREE = ("in_channels", "num_classes", "crop", "drop_path")
"""What networks of one public name may have as they like."""


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return [name for family, entry in FAMILIES.items() for name in entry.names(family)]


def create_model(
    name: str,
    *,
    in_channels: int | None = None,
    num_classes: int = 2,
    seed: int = 0,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **overrides: Any,
) -> Any:
    """A freshly initialised network, an `nnx.Module` with `.config`.

    `overrides` are fields of its config or of its encoder's, side by side: `create_model("unetr_tiny", crop=(48, 48, 48), stride=1)`. A size along
    three axes may be one number. `encoder=` takes a whole ViTConfig, and then `in_channels` is its own unless given; else 1. `num_classes`
    matters to segmentation networks alone. With `features_only` it gives the list of its feature maps (`models.features`), those of
    `out_indices`, and says their channels and reductions in `.feature_info`.
    Raises ConfigError for an unknown name, field or index.
    """
    entry, method = _find(name)
    kind = entry.config_class()
    given = dict(overrides)
    if in_channels is not None:
        given["in_channels"] = in_channels
    if "num_classes" in _flat_fields(kind):
        given["num_classes"] = num_classes
    config = _config(kind, getattr(kind, method)(), given, f"model {name!r}")
    network = entry.network_class()(config, rngs=nnx.Rngs(seed))
    return FeatureMaps(network, out_indices) if features_only else network


def describe_models() -> list[tuple[str, str]]:
    """(name, one line) of every model: parameters at one channel and two classes; crop and token in voxels where there are such."""
    rows = []
    for name in list_models():
        network = nnx.eval_shape(lambda name=name: create_model(name))
        config = getattr(network.config, "encoder", network.config)
        millions = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) / 1e6
        sizes = [f"{field} {getattr(config, field)}" for field in ("crop", "token") if hasattr(config, field)]
        rows.append((name, ", ".join([f"{millions:6.1f} M parameters", *sizes])))
    return rows


def architecture(model: nnx.Module) -> dict[str, Any]:
    """`{"name": family, "arguments": config}` as JSON data: all that `build` needs to make the same network again."""
    config = getattr(model, "config", None)
    for name, entry in (FAMILIES | UNNAMED).items():
        if type(model).__name__ == entry.network and type(config).__name__ == entry.config:
            return {"name": name, "arguments": _to_json(dataclasses.asdict(typing.cast(Any, config)))}
    raise ConfigError(
        f"a {type(model).__name__} cannot be described for a model folder; known: {', '.join(e.network for e in FAMILIES.values())}"
    )


def build(description: dict[str, Any], *, seed: int = 0) -> Any:
    """The network that `architecture` described, freshly initialised. Raises ConfigError for a name or field that this version does not know."""
    name = description.get("name")
    if name not in FAMILIES | UNNAMED:
        raise ConfigError(f"the architecture is called {name!r}; this version of jaxseg knows {', '.join(FAMILIES)}")
    entry = (FAMILIES | UNNAMED)[name]
    config = _config(entry.config_class(), None, description.get("arguments", {}), f"architecture {name!r}")
    return entry.network_class()(config, rngs=nnx.Rngs(seed))


def family_of(name: str) -> str:
    """The family (an architecture's name) of a model's name. Raises ConfigError for an unknown one."""
    found, _ = _find(name)
    return next(family for family, entry in FAMILIES.items() if entry is found)


def deviations(name: str, config: Any) -> list[str]:
    """In what a config of the same family is not the model `name`, such as "feature is 12 where swin_unetr_96 has 96"; empty if it is that model.

    Compared is what makes a variant: the fields in which it differs from the class's defaults or from its sisters, but for channels, classes,
    crop, and what shapes no array. Raises ConfigError for an unknown name.
    """
    entry, method = _find(name)
    kind = entry.config_class()
    wanted, found = _flat_values(getattr(kind, method)()), _flat_values(config)
    others = [_flat_values(kind()), *(_flat_values(getattr(kind, other)()) for other in kind.VARIANTS.values())]
    return [
        f"{field} is {found.get(field)} where {name} has {value}"
        for field, value in wanted.items()
        if field not in _FREE and any(value != other.get(field) for other in others) and found.get(field) != value
    ]


def network_of(config: Any, *, seed: int = 0) -> Any:
    """The network of a config, freshly initialised. Raises ConfigError for a config of no family."""
    for entry in (FAMILIES | UNNAMED).values():
        if type(config).__name__ == entry.config and type(config).__module__ == entry.module:
            return entry.network_class()(config, rngs=nnx.Rngs(seed))
    raise ConfigError(
        f"a {type(config).__name__} is the config of no family; known: {', '.join(entry.config for entry in FAMILIES.values())}"
    )


def _find(name: str) -> tuple[Family, str]:
    # Families that the name does not begin with are not imported.
    for family, entry in FAMILIES.items():
        if (name == family or name.startswith(f"{family}_")) and name in (names := entry.names(family)):
            return entry, names[name]
    known = list_models()
    raise ConfigError(f"there is no model {name!r}{_nearest(name, known)}; known: {', '.join(known)}")


def _config(kind: Any, base: Any, given: dict[str, Any], where: str) -> Any:
    """A `kind` from `base` (None: the class's defaults), changed by its own fields and, side by side with them, those of the configs inside it."""
    unknown = [key for key in given if key not in _flat_fields(kind)]
    if unknown:
        known = sorted(_flat_fields(kind))
        raise ConfigError(f"{where} has no setting {unknown[0]!r}{_nearest(unknown[0], known)}; known: {', '.join(known)}")
    own = _field_types(kind)
    values = {} if base is None else {name: getattr(base, name) for name in own}
    values |= {name: _coerce(given[name], own[name]) for name in own if name in given}
    for name, inner_kind in ((name, _nested(hint)) for name, hint in own.items()):
        changes = {key: value for key, value in given.items() if key not in own and inner_kind and key in _flat_fields(inner_kind)}
        found = values.get(name)
        if isinstance(found, dict):
            values[name] = _config(inner_kind, None, {**found, **changes}, where)
        elif changes:
            values[name] = _config(inner_kind, found, changes, where)
    try:
        return kind(**values)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ConfigError(f"{where}: a setting is of another type or size than it must be ({error}), among {listed:.300}") from error


def _field_types(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _nested(hint: Any) -> Any:
    """The config class in a field's type, `Config` or `Config | None`; None where there is none."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _flat_fields(kind: Any) -> set[str]:
    own = _field_types(kind)
    return set(own).union(*(_flat_fields(inner) for inner in map(_nested, own.values()) if inner))


def _flat_values(config: Any) -> dict[str, Any]:
    """The fields of a config and, side by side with them, those of the configs inside it."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inner = [values.pop(name) for name, value in list(values.items()) if dataclasses.is_dataclass(value)]
    return values | {name: value for each in inner for name, value in _flat_values(each).items()}


def _coerce(value: Any, hint: Any) -> Any:
    """JSON has no tuples, and a person writes 48 for (48, 48, 48)."""
    if hint == tuple[int, int, int] and isinstance(value, int):
        return (value, value, value)
    return _tuples(value) if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    return [_to_json(inner) for inner in value] if isinstance(value, tuple) else value


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (perhaps you meant {near[0]!r})" if near else ""
