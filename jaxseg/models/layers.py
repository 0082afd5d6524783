"""What transformer encoders are made of: self-attention, MLPs and pre-norm blocks, stacked on a depth axis and scanned. Called by `vit` and `mae`."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxseg.models import matrix_product
from jaxseg.models.attention import attention
from jaxseg.models.matrix_product import product
from jaxseg.models.positions import Rotation, rotate

Keep = Literal["products"]
"""What a recomputed block keeps all the same: the results of its linear maps, so that only norms, activations and attention are done again."""
EPSILON = 1e-5  # of every LayerNorm, as in torch
_glorot = nnx.initializers.xavier_uniform()


def layer_norm(width: int, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis; statistics in float32 and in two passes, output in `dtype`."""
    return nnx.LayerNorm(width, epsilon=EPSILON, dtype=jnp.dtype(dtype), use_fast_variance=False, rngs=rngs)


def linear(inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    """A matrix product with float32 parameters (Glorot uniform, as in MAE), computed in `dtype`."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=_glorot, dtype=jnp.dtype(dtype), dot_general=product, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One pre-norm transformer block: width and heads, `mlp` of `mlp_ratio` times the width, LayerScale's first value or None."""

    width: int
    heads: int
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    qkv_bias: bool = True
    dtype: str = "float32"

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP. SwiGLU has three matrices instead of two, and gets 2/3 of the units: the same parameters."""
        if self.mlp == "gelu":
            return int(self.width * self.mlp_ratio + 1e-6)  # a ratio of two whole numbers gives the first one back
        return -(-int(self.width * self.mlp_ratio * 2 / 3) // 8) * 8


class MLP(nnx.Module):
    """GELU (exact) or SwiGLU (https://arxiv.org/abs/2002.05202) between two matrix products; SwiGLU's gate and value share the first."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.kind = config.mlp
        columns = config.hidden * (2 if config.mlp == "swiglu" else 1)
        self.linear1 = linear(config.width, columns, config.dtype, rngs)
        self.linear2 = linear(config.hidden, config.width, config.dtype, rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        hidden = self.linear1(x)
        if self.kind == "gelu":
            return self.linear2(jax.nn.gelu(hidden, approximate=False))
        gate, value = jnp.split(hidden, 2, axis=-1)
        return self.linear2(jax.nn.silu(gate) * value)


class Attention(nnx.Module):
    """Multi-head self-attention; the columns of `qkv` are (q|k|v, head, d), the output projection has a bias."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.heads = config.heads
        self.qkv = linear(config.width, 3 * config.width, config.dtype, rngs, bias=config.qkv_bias)
        self.out = linear(config.width, config.width, config.dtype, rngs)

    def __call__(self, x: Float[Array, "b n w"], rotation: Rotation | None = None) -> Float[Array, "b n w"]:
        b, n, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads), 2, 0)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.out(attention(q, k, v).reshape(b, n, width))


class LayerScale(nnx.Module):
    """A learned factor per channel (https://arxiv.org/abs/2103.17239)."""

    def __init__(self, width: int, value: float):
        self.gamma = nnx.Param(jnp.full((width,), value, jnp.float32))

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """x + scale(attention(norm(x))), then x + scale(mlp(norm(x))). `survive` `(b, 2)` multiplies the two branches (drop path)."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, config.dtype, rngs)
        self.attention = Attention(config, rngs=rngs)
        self.norm2 = layer_norm(config.width, config.dtype, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.scale1 = None if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.scale2 = None if config.layer_scale is None else LayerScale(config.width, config.layer_scale)

    def __call__(
        self, x: Float[Array, "b n w"], rotation: Rotation | None = None, survive: Float[Array, "b 2"] | None = None
    ) -> Float[Array, "b n w"]:
        x = x + self._scaled(self.attention(self.norm1(x), rotation), self.scale1, survive, 0)
        return x + self._scaled(self.mlp(self.norm2(x)), self.scale2, survive, 1)

    @staticmethod
    def _scaled(branch: Array, scale: LayerScale | None, survive: Array | None, which: int) -> Array:
        branch = branch if scale is None else scale(branch)
        return branch if survive is None else branch * survive[:, which, None, None].astype(branch.dtype)


def stack_blocks(config: BlockConfig, depth: int, rngs: nnx.Rngs) -> Block:
    """`depth` blocks as one Block whose every parameter has a leading depth axis."""
    return nnx.vmap(lambda stream: Block(config, rngs=stream))(rngs.split(depth))


def survival(key: Key[Array, " b"], depth: int, rate: float) -> Float[Array, "depth b 2"]:
    """Factors of stochastic depth (https://arxiv.org/abs/1603.09382): 0 or 1 / (1 - rate), rates growing linearly to `rate` at the last block."""
    rates = jnp.asarray(np.linspace(0.0, rate, depth), jnp.float32)[:, None, None]
    drawn = jax.vmap(lambda k: jax.random.uniform(k, (depth, 2)), out_axes=1)(key)
    return jnp.where(drawn >= rates, 1 / (1 - rates), 0.0)


def recomputed(function: Callable[..., Any], keep: Keep | None, *, prevent_cse: bool = True) -> Callable[..., Any]:
    """`function` with its inside computed again in the backward pass (`jax.checkpoint`), but what `keep` names."""
    policy = jax.checkpoint_policies.save_only_these_names(matrix_product.NAME) if keep == "products" else None
    return jax.checkpoint(function, prevent_cse=prevent_cse, policy=policy)


def run_blocks(
    blocks: Callable[..., Array],
    x: Float[Array, "b n w"],
    *,
    rotation: Rotation | None = None,
    survive: Float[Array, "depth b 2"] | None = None,
    states: bool = False,
    remat: bool = False,
    keep: Keep | None = None,
) -> tuple[Float[Array, "b n w"], Float[Array, "depth b n w"] | None]:
    """Scan stacked `blocks` (a Block, or a module called alike); with `states` also the hidden states after each.

    `remat` recomputes a block's inside in the backward pass, but what `keep` names.
    """

    def body(x: Array, layer: tuple[Callable[..., Array], Array | None]) -> tuple[Array, Array | None]:
        block, factors = layer
        x = block(x, rotation, factors)
        return x, (x if states else None)

    if remat:
        body = recomputed(body, keep, prevent_cse=False)
    return jax.lax.scan(body, x, (blocks, survive))
