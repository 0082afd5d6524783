"""Masked autoencoder and latent prediction in one: one pass of the encoder, two terms. Used by `pretrain.train`.

BootMAE's form (Dong et al. 2022, arXiv 2207.07116); `PretrainConfig.weights` says how much each of the terms "mae" and "latent" counts.
"""

import dataclasses
from typing import Any

from flax import nnx

from jaxseg.data.augment import Augment, augment
from jaxseg.models import MAEConfig
from jaxseg.models.mae_latent import MAELatentConfig
from jaxseg.train.step import Loss
from pretrain.objectives.objective import Objective


def network(model: MAEConfig) -> MAELatentConfig:
    """The same encoder, decoder and masks, and a predictor of the decoder's size."""
    return MAELatentConfig(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def make_loss(graph: nnx.GraphDef, augmentation: Augment) -> Loss:
    """A loss of (params, batch, keys, extra) for the student whose structure is `graph`; `extra` holds the teacher's arrays.

    Teacher and student see the same augmented crop; the terms are "mae" and "latent".
    """

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        teacher = nnx.merge(nnx.graphdef(model.encoder), extra)
        batch = augment(batch, keys, augmentation)
        return model.losses(teacher, batch["image"], batch["mask"], batch["present"], batch["spacing"], keys)

    return loss


OBJECTIVE = Objective(network, make_loss, teacher=lambda params: params["encoder"])
