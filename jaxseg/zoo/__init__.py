"""Networks by name, and model folders: a card (`model.json`) with `weights.safetensors`. Knows `jaxseg.models` only.

Names are resolved when they are first used, so that listing names needs no network.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "adapt_stems": "channels",
    "count_flops": "cost",
    "count_params": "cost",
    "Model": "folder",
    "load_model": "folder",
    "save_model": "folder",
    "load_pretrained": "pretrained",
    "architecture": "registry",
    "build": "registry",
    "create_model": "registry",
    "describe_models": "registry",
    "list_models": "registry",
}

__all__ = [
    "Model",
    "adapt_stems",
    "architecture",
    "build",
    "count_flops",
    "count_params",
    "create_model",
    "describe_models",
    "list_models",
    "load_model",
    "load_pretrained",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"jaxseg.zoo.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxseg.zoo' has no attribute {name!r}")


if TYPE_CHECKING:
    from jaxseg.zoo.channels import adapt_stems
    from jaxseg.zoo.cost import count_flops, count_params
    from jaxseg.zoo.folder import Model, load_model, save_model
    from jaxseg.zoo.pretrained import load_pretrained
    from jaxseg.zoo.registry import architecture, build, create_model, describe_models, list_models
