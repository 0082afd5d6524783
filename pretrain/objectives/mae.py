"""The masked-autoencoder objective (He et al. 2022, arXiv 2111.06377): a loss for `jaxseg.train.make_step`. Used by `pretrain.train`."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxseg.data.augment import Augment, augment
from pretrain.objectives.objective import Objective


def make_loss(graph: nnx.GraphDef, augmentation: Augment) -> Callable[..., dict[str, Any]]:
    """A loss of (params, batch, keys, extra) for the masked image model (`MAE`, `SimMIM`) whose structure is `graph`.

    The batch is that of `jaxseg.data.loader`; `keys` `(b,)` holds one key per sample, so that a sample's augmentation and mask are the same
    in whichever batch, device or process it lands.
    """

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        batch = augment(batch, keys, augmentation)
        terms, _ = model.loss(batch["image"], batch["mask"], batch["present"], batch["spacing"], keys)
        return terms

    return loss


OBJECTIVE = Objective(lambda model: model, make_loss)
