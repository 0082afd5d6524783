"""The SimMIM objective (Xie et al. 2022, arXiv 2111.09886): hidden voxels from all tokens by one linear layer. Used by `pretrain.train`."""

from jaxseg.models import MAEConfig
from jaxseg.models.simmim import SimMIMConfig
from pretrain.objectives.mae import make_loss
from pretrain.objectives.objective import Objective


def network(model: MAEConfig) -> SimMIMConfig:
    """Encoder, masks and target of `model`; its decoder has no counterpart here, nor has `predict`."""
    return SimMIMConfig(
        encoder=model.encoder,
        mask_ratio=model.mask_ratio,
        mask_unit=model.mask_unit,
        mask_blocks=model.mask_blocks,
        mask_slabs=model.mask_slabs,
        body_first=model.body_first,
        distance=model.distance,
        norm_target=model.norm_target,
    )


OBJECTIVE = Objective(network, make_loss)
