"""Networks: a frozen config and a Flax NNX module each, pure functions of arrays. Built by name in `jaxseg.zoo`.

Axis order, said once: arrays are `(batch, x, y, z, channel)` with x, y, z in RAS+ voxel order, spacing is in mm along x, y, z, and tokens are
numbered with z fastest. A model is called `model(x, *, spacing=None, key=None)`: `spacing` `(b, 3)` in mm, `key` `(b,)` typed random keys, one per
sample, or None for evaluation. Parameters are float32; `dtype` in a config is what is computed in.
"""

from jaxseg.models.features import FeatureMaps
from jaxseg.models.mae import MAE, MAEConfig
from jaxseg.models.simmim import SimMIM, SimMIMConfig
from jaxseg.models.switches import fast_paths
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.unetr_plus import UNETRPlus, UNETRPlusConfig
from jaxseg.models.vit import ViT, ViTConfig

__all__ = [
    "MAE",
    "UNETR",
    "FeatureMaps",
    "MAEConfig",
    "SimMIM",
    "SimMIMConfig",
    "UNETRConfig",
    "UNETRPlus",
    "UNETRPlusConfig",
    "ViT",
    "ViTConfig",
    "fast_paths",
]
