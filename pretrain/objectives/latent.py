"""The latent objective: a student predicts the states that its slow average, the teacher, has of hidden tokens. Used by `pretrain.train`.

I-JEPA's form (Assran et al. 2023, arXiv 2301.08243) with the masks of the masked autoencoder; only tokens of the body count.
"""

import dataclasses
from typing import Any

from flax import nnx

from jaxseg.data.augment import Augment, augment
from jaxseg.models import MAEConfig
from jaxseg.models.latent import LatentConfig
from jaxseg.train.step import Loss
from pretrain.objectives.objective import Objective


def network(model: MAEConfig) -> LatentConfig:
    """The same encoder, decoder and masks."""
    return LatentConfig(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def make_loss(graph: nnx.GraphDef, augmentation: Augment) -> Loss:
    """A loss of (params, batch, keys, extra) for the student whose structure is `graph`; `extra` holds the teacher's arrays.

    Teacher and student see the same augmented crop; the term is called "latent".
    """

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        teacher = nnx.merge(nnx.graphdef(model.encoder), extra)
        batch = augment(batch, keys, augmentation)
        return {"latent": model.loss(teacher, batch["image"], batch["mask"], batch["spacing"], keys)}

    return loss


OBJECTIVE = Objective(network, make_loss, teacher=lambda params: params["encoder"])
