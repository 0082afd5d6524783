"""The SimCLR objective (Chen et al. 2020, arXiv 2002.05709): two views of a scan against all other scans of the batch. Used by `pretrain.train`.

The one objective whose samples see each other: each device answers for its own, compared with those of all devices, so that the numbers are
those of one device in every layout. More than one micro-batch a step is refused. With few crops a step there are few negatives.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxseg.data.augment import Augment, augment
from jaxseg.models import MAEConfig
from jaxseg.models.simclr import SimCLRConfig, nt_xent
from jaxseg.train.parallel import gather
from jaxseg.train.step import Loss
from pretrain.objectives.objective import Contrast, Objective

# Numbers that a sample's key is folded with for its two views; augmentation itself uses small ones.
_VIEWS = (1001, 1002)


def network(model: MAEConfig, contrast: Contrast) -> SimCLRConfig:
    """The same encoder; there is nothing to mask or decode."""
    return SimCLRConfig(encoder=model.encoder, part=contrast.part, projection=contrast.projection, temperature=contrast.temperature)


def make_loss(graph: nnx.GraphDef, augmentation: Augment) -> Loss:
    """A loss of (params, batch, keys, extra, axis) for the network whose structure is `graph`, with the term "simclr".

    Each view is augmented anew before it is cut out of the crop. A sample counts where both views hold body.
    """

    def loss(params: Any, batch: dict[str, Any], keys: Any, extra: Any, axis: str | None = None) -> dict[str, Any]:
        model = nnx.merge(graph, params)
        views = []
        for number in _VIEWS:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            seen = augment(batch, own, augmentation)
            views.append(model.features(seen["image"], seen["mask"], seen["spacing"], own))
        features = jnp.stack([feature for feature, _ in views], 1)
        valid = views[0][1] & views[1][1]
        known, everywhere = gather((features, valid), axis)
        first = 0 if axis is None else jax.lax.axis_index(axis) * len(features)
        own = 2 * (first + jnp.arange(len(features)))[:, None] + jnp.arange(2)
        flat = (-1, features.shape[-1])
        return {
            "simclr": nt_xent(
                features.reshape(flat),
                known.reshape(flat),
                own.reshape(-1),
                own[:, ::-1].reshape(-1),
                jnp.repeat(everywhere, 2),
                model.config.temperature,
            )
        }

    return loss


OBJECTIVE = Objective(network, make_loss, across=True, contrasts=True)
