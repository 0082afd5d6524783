"""Dice on the device, for periodic evaluation inside a jitted step. The numbers that are reported come from `overlap`, on whole scans."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def dice(
    pred: Int[Array, "b x y z *k"], truth: Int[Array, "b x y z *k"], *, num_classes: int | None = None, ignore: int = 255
) -> Float[Array, "b k"]:
    """Dice of each sample and class, float32.

    With `num_classes`: labels `(b, x, y, z)`, background left out, result `(b, num_classes - 1)`. Without: 0/1 regions `(b, x, y, z, k)`,
    result `(b, k)`. Voxels whose truth is `ignore` are left out. Both empty is 1, one empty 0, as in `overlap.dice`.
    """
    if num_classes is None:
        valid = truth != ignore
        predicted, present = (pred == 1) & valid, (truth == 1) & valid
    else:
        classes = jnp.arange(1, num_classes)
        valid = (truth != ignore)[..., None]
        predicted, present = (pred[..., None] == classes) & valid, (truth[..., None] == classes) & valid
    both = jnp.sum(predicted & present, axis=(1, 2, 3), dtype=jnp.int32).astype(jnp.float32)
    total = (jnp.sum(predicted, axis=(1, 2, 3), dtype=jnp.int32) + jnp.sum(present, axis=(1, 2, 3), dtype=jnp.int32)).astype(jnp.float32)
    return jnp.where(total > 0, 2 * both / jnp.maximum(total, 1), 1.0)
