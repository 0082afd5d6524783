"""What a pretraining costs in floating-point operations, told without running it. Called by `pretrain.train` for the model's card."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.models.positions import Triple
from jaxseg.train.step import Loss
from jaxseg.zoo.cost import PASSES, program_flops


def operations_of(loss: Loss, params: Any, extra: Any, crop: Triple, channels: int) -> int:
    """Of learning from one crop of so many voxels and channels: `PASSES` times those of the loss of one, augmentation apart (make it with `Augment.none()`).

    A teacher's pass counts as the student's do. Two crops are looked at, of which each has half, since some losses compare them.
    """
    two, keys = jax.eval_shape(lambda: (_crops(2, crop, channels), jax.random.split(jax.random.key(0), 2)))
    return PASSES * program_flops(loss, params, two, keys, extra) // 2


def _crops(batch: int, crop: Triple, channels: int) -> dict[str, jax.Array]:
    """What `CropLoader` gives."""
    shape = (batch, *crop)
    return {
        "image": jnp.zeros((*shape, channels), jnp.float16),
        "mask": jnp.ones(shape, jnp.uint8),
        "present": jnp.ones((batch, channels), jnp.float32),
        "spacing": jnp.ones((batch, 3), jnp.float32),
        "air": jnp.zeros((batch, channels), jnp.float32),
        "id": jnp.arange(batch, dtype=jnp.int32),
        "place": jnp.ones((batch, 2, 3), jnp.float32),
    }
