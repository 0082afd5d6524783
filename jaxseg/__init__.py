"""jaxseg: self-supervised pretraining and few-label segmentation of 3D medical scans, in JAX.

The public names below are resolved when they are first used (PEP 562), so that `import jaxseg` is quick and touches no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "list_models": "jaxseg.zoo",
    "create_model": "jaxseg.zoo",
    "load_model": "jaxseg.zoo",
    "load_pretrained": "jaxseg.zoo",
    "save_model": "jaxseg.zoo",
    "Model": "jaxseg.zoo",
    "load_volume": "jaxseg.data.io",
    "save_volume": "jaxseg.data.io",
    "Volume": "jaxseg.data.volume",
    "Grid": "jaxseg.data.volume",
    "segment": "jaxseg.infer",
}
_MODULES = ("data", "errors", "infer", "losses", "metrics", "models", "train", "zoo")

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"jaxseg.{name}")
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from jaxseg.data.io import load_volume, save_volume
    from jaxseg.data.volume import Grid, Volume
    from jaxseg.infer import segment
    from jaxseg.zoo import Model, create_model, list_models, load_model, load_pretrained, save_model
