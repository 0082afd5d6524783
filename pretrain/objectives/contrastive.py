"""The contrastive objective: where in a crop a random part of it lies, told from features alone. Used by `pretrain.train`.

VoCo's form (Wu et al. 2024, arXiv 2402.17300, equations 3 and 5; see `jaxseg.models.places` for what differs). It needs no negatives from other
samples, so a loss is a sum over samples; `simclr` is the objective that has them.
"""

from typing import Any

from flax import nnx

from jaxseg.data.augment import Augment, augment
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig
from jaxseg.models.places import PlacesConfig
from jaxseg.train.step import Loss
from pretrain.objectives.objective import Contrast, Objective


def network(model: MAEConfig, contrast: Contrast) -> PlacesConfig:
    """The same encoder; there is nothing to mask or decode. ConfigError if what is loaded of a scan has no two halves along every axis."""
    loaded = contrast.loaded(model.encoder)
    tokens = tuple(side // size for side, size in zip(loaded, model.encoder.token))
    if any(count % 2 for count in tokens):
        raise ConfigError(
            f"a sample of {loaded} voxels has {tokens} tokens, which do not split in two along every axis: change model.encoder.crop or token, or set "
            "contrast.region, which rounds up to an even number (1 loads one token more)"
        )
    return PlacesConfig(encoder=model.encoder, projection=contrast.projection)


def make_loss(graph: nnx.GraphDef, augmentation: Augment) -> Loss:
    """A loss of (params, batch, keys, extra) for the network whose structure is `graph`, with the terms "position" and "apart"."""

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        batch = augment(batch, keys, augmentation)
        return nnx.merge(graph, params).loss(batch["image"], batch["mask"], batch["spacing"], keys)

    return loss


OBJECTIVE = Objective(network, make_loss, contrasts=True)
