"""A ViT whose tokens are compared as one vector of length 1, and the parts of crops that are compared. The base of `places` and `simclr`."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.models.layers import linear
from jaxseg.models.vit import ViT, ViTConfig


class ProjectedViT(nnx.Module):
    """Parameters: `encoder` (a ViT, transfers by name), `hidden` and `project` (the projector of averaged tokens)."""

    def __init__(self, encoder: ViTConfig, projection: int, *, rngs: nnx.Rngs):
        self.encoder = ViT(encoder, rngs=rngs)
        self.hidden = linear(encoder.width, encoder.width, encoder.dtype, rngs)
        self.project = linear(encoder.width, projection, encoder.dtype, rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """The encoder's tokens of a whole crop: features for a probe."""
        return self.encoder(x, spacing=spacing, key=key)

    def projected(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None, keys: Key[Array, " b"] | None
    ) -> Float[Array, "b w"]:
        """The projected mean of the tokens of each crop, of length 1, float32; `keys` for drop path."""
        pooled = self.encoder(x, spacing=spacing, key=keys).mean(1)
        return unit_length(self.project(jax.nn.gelu(self.hidden(pooled))).astype(jnp.float32))


def unit_length(features: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
    """Features divided by their length."""
    return features * jax.lax.rsqrt(jnp.sum(jnp.square(features), -1, keepdims=True) + 1e-12)


def cut_parts(x: Float[Array, "b x y z *c"], origin: Int[Array, "b 3"], side: tuple[int, ...]) -> Float[Array, "b _ _ _ *c"]:
    """The part of `side` voxels at `origin` of each sample."""

    def one(sample: Array, corner: Array) -> Array:
        rest = sample.shape[3:]
        return jax.lax.dynamic_slice(sample, (*corner, *[0] * len(rest)), (*side, *rest))

    return jax.vmap(one)(x, origin)
