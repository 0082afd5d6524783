"""The Eva encoder of Primus: rotary attention and SwiGLU with norms inside, over tokens of a patch or convolutional stem.

Called by `primus` and `eva_mae`; its parameters are those of dynamic-network-architectures' `Eva` (timm's `EvaBlock`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError
from jaxseg.models.attention import attention
from jaxseg.models.conv_stem import ConvStem, ConvStemConfig
from jaxseg.models.instance_norm import SLOPE
from jaxseg.models.layers import Block, Keep, LayerScale, layer_norm, run_blocks, survival
from jaxseg.models.matrix_product import product
from jaxseg.models.positions import Positions, Rotation, Triple, check_numbers, gather_tokens, rope_rotation, rotate
from jaxseg.models.vit import patchify, token_grid

_normal = nnx.initializers.normal(0.02)  # timm truncates it at 2, a hundred deviations away
_he = nnx.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class EvaConfig:
    """Everything that shapes an Eva encoder; JSON by `dataclasses.asdict`. The defaults are Primus-M's.

    `crop` (voxels) sets the size of the learned position table (`table`), other inputs are fine. `rotary` turns queries and keys by the token's
    index, at temperature `rope_base`. `hidden` units of the SwiGLU are `width * mlp_ratio`, rounded down. `attention_norm` is a LayerNorm between
    the heads and their projection. `drop_path` is the rate of the last block. `stem` None embeds patches of `token` voxels by one matrix.
    """

    in_channels: int = 1
    crop: Triple = (160, 160, 160)
    token: Triple = (8, 8, 8)
    width: int = 864
    depth: int = 16
    heads: int = 12
    stem: ConvStemConfig | None = None
    table: bool = True
    rotary: bool = True
    rope_base: float = 10000.0
    mlp_ratio: float = 8 / 3
    layer_scale: float | None = 0.1
    attention_norm: bool = True
    registers: int = 0
    drop_path: float = 0.0
    remat: bool = False
    remat_keep: Keep | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def small(cls, **changes) -> "EvaConfig":
        """Width 396, depth 12, 6 heads; `changes` are fields, here and below."""
        return cls(**{"width": 396, "depth": 12, "heads": 6, **changes})

    @classmethod
    def base(cls, **changes) -> "EvaConfig":
        """Width 792, depth 12, 12 heads."""
        return cls(**{"width": 792, "depth": 12, "heads": 12, **changes})

    @classmethod
    def medium(cls, **changes) -> "EvaConfig":
        """Width 864, depth 16, 12 heads: the defaults."""
        return cls(**changes)

    @classmethod
    def large(cls, **changes) -> "EvaConfig":
        """Width 1056, depth 24, 16 heads."""
        return cls(**{"width": 1056, "depth": 24, "heads": 16, **changes})

    @property
    def grid(self) -> Triple:
        """Tokens along each axis of a crop."""
        x, y, z = (c // t for c, t in zip(self.crop, self.token))
        return x, y, z

    @property
    def patch_size(self) -> int:
        """Numbers in one patch: voxels of a token times channels."""
        return math.prod(self.token) * self.in_channels

    @property
    def hidden(self) -> int:
        """Hidden units of the SwiGLU."""
        return int(self.width * self.mlp_ratio)

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"in_channels": 1, "width": 1, "heads": 1, "depth": 0, "registers": 0},
            triples=("crop", "token"),
            positive=("rope_base", "mlp_ratio"),
        )
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} does not split into {self.heads} heads")
        if self.rotary and (self.width // self.heads) % 6:
            raise ConfigError(
                f"rotary positions turn pairs along three axes, so a head needs a multiple of 6 numbers; width {self.width} / {self.heads} "
                f"heads is {self.width // self.heads}: change heads, or set rotary=False"
            )
        if any(c < t or c % t for c, t in zip(self.crop, self.token)):
            raise ConfigError(f"crop {self.crop} is not a multiple of token {self.token} along every axis")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; expected a rate of at least 0 and below 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; expected one of float32, bfloat16")
        if self.stem is not None and self.token != (self.stem.reduction,) * 3:
            raise ConfigError(
                f"a convolutional stem of {len(self.stem.depths)} levels makes tokens of {self.stem.reduction} voxels along each axis, "
                f"and token is {self.token}: set token={self.stem.reduction}"
            )


def _linear(inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=_normal, dtype=jnp.dtype(dtype), dot_general=product, rngs=rngs)


class EvaAttention(nnx.Module):
    """Multi-head self-attention with separate projections, `key` without a bias, and a LayerNorm before `out`.

    The pairs that rotary positions turn are (i, i + d/2) of a head; timm's are (2i, 2i + 1), so a peer's columns are sorted on their way in.
    """

    def __init__(self, config: EvaConfig, *, rngs: nnx.Rngs):
        self.heads = config.heads
        width, dtype = config.width, config.dtype
        self.query = _linear(width, width, dtype, rngs)
        self.key = _linear(width, width, dtype, rngs, bias=False)
        self.value = _linear(width, width, dtype, rngs)
        self.norm = layer_norm(width, dtype, rngs) if config.attention_norm else None
        self.out = _linear(width, width, dtype, rngs)

    def __call__(self, x: Float[Array, "b n w"], rotation: Rotation | None = None) -> Float[Array, "b n w"]:
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.query, self.key, self.value))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attention(q, k, v).reshape(x.shape)
        return self.out(mixed if self.norm is None else self.norm(mixed))


class EvaMLP(nnx.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202) with a LayerNorm over its hidden units."""

    def __init__(self, config: EvaConfig, *, rngs: nnx.Rngs):
        self.gate = _linear(config.width, config.hidden, config.dtype, rngs)
        self.value = _linear(config.width, config.hidden, config.dtype, rngs)
        self.norm = layer_norm(config.hidden, config.dtype, rngs)
        self.out = _linear(config.hidden, config.width, config.dtype, rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        return self.out(self.norm(jax.nn.silu(self.gate(x)) * self.value(x)))


class EvaBlock(Block):
    """A `Block` with Eva's attention and MLP: what is done with them is the same."""

    def __init__(self, config: EvaConfig, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, config.dtype, rngs)
        self.attention = EvaAttention(config, rngs=rngs)
        self.norm2 = layer_norm(config.width, config.dtype, rngs)
        self.mlp = EvaMLP(config, rngs=rngs)
        self.scale1 = None if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.scale2 = None if config.layer_scale is None else LayerScale(config.width, config.layer_scale)


def stack_eva_blocks(config: EvaConfig, rngs: nnx.Rngs) -> EvaBlock:
    """`depth` blocks as one EvaBlock with a leading depth axis; what leaves branch i starts smaller by √(2 (i + 1)), as in BEiT."""
    blocks = nnx.vmap(lambda stream: EvaBlock(config, rngs=stream))(rngs.split(config.depth))
    shrink = jnp.sqrt(2.0 * jnp.arange(1, config.depth + 1))[:, None, None]
    for out in (blocks.attention.out, blocks.mlp.out):
        out.kernel[...] = out.kernel[...] / shrink
    return blocks


def token_indices(grid: Triple) -> np.ndarray:
    """The place of every token on the grid, `(1, n, 3)`, counted from the corner (registers stay unturned, so the origin matters to them)."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), axis=-1).reshape(1, -1, 3).astype(np.float32)


class Eva(nnx.Module):
    """Image to tokens to features. Parameters: `patch` or `stem`, `positions.table`, `registers`, `blocks` (stacked on depth) and `norm`.

    The methods are those of `vit.ViT`, so that what works on one encoder's tokens works on the other's.
    """

    def __init__(self, config: EvaConfig, *, rngs: nnx.Rngs):
        self.config = config
        if config.stem is None:
            self.patch = nnx.Linear(
                config.patch_size, config.width, kernel_init=_he, dtype=jnp.dtype(config.dtype), dot_general=product, rngs=rngs
            )
        else:
            self.stem = ConvStem(config.stem, config.in_channels, config.width, config.dtype, rngs=rngs)
        head_dim = config.width // config.heads
        kind = "learned" if config.table else "none"
        self.positions = Positions(kind, config.grid, config.width, head_dim, scale=1.0, base=config.rope_base, rngs=rngs)
        if config.registers:
            self.registers = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (config.registers, config.width), jnp.float32))
        self.blocks = stack_eva_blocks(config, rngs)
        self.norm = layer_norm(config.width, config.dtype, rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """Tokens after the last block and the final norm; `spacing` has no effect. ShapeError if channels or size do not fit."""
        return self._run(x, key, ())[0]

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b gx gy gz w"]]:
        """Four maps of the token grid, after each quarter of the blocks (fewer for fewer blocks); the last one behind the final norm."""
        depth, grid = self.config.depth, self.grid_of(x)
        taps = sorted({-(-depth * quarter // 4) for quarter in (1, 2, 3)} - {depth})
        last, states = self._run(x, key, taps)
        return [tokens.reshape(x.shape[0], *grid, -1) for tokens in (*states, last)]

    def grid_of(self, x: Float[Array, "b x y z c"]) -> Triple:
        """Tokens along each axis of `x`; ShapeError if `x` does not fit this model."""
        return token_grid(x, self.config.in_channels, self.config.token)

    def patchify(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b n p"]:
        """The voxels of every token: `(b, n, px·py·pz·c)`."""
        return patchify(x, self.config.token)

    def embed(self, patches: Float[Array, "b k p"], grid: Triple, index: Int[Array, "b k"] | None = None) -> Float[Array, "b k w"]:
        """Patches to tokens with their positions (of a patch stem); `index` says which tokens of `grid` they are (None: all, in order)."""
        return self._placed(self.patch(patches), grid, index)

    def coordinates(self, grid: Triple, spacing: Float[Array, "b 3"] | None) -> Float[Array, "1 n 3"] | None:
        """Indices of all tokens of `grid`, or None without rotary positions; `spacing` plays no part."""
        return jnp.asarray(token_indices(grid)) if self.config.rotary else None

    def encode(
        self, tokens: Float[Array, "b k w"], coordinates: Float[Array, "b k 3"] | None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b k w"]:
        """Blocks and final norm over any set of tokens at `coordinates`. Registers go before them, unturned, and are not returned."""
        return self._encode(tokens, coordinates, key, ())[0]

    def _run(self, x: Array, key: Array | None, taps: Sequence[int]) -> tuple[Array, list[Array]]:
        grid = self.grid_of(x)
        if self.config.stem is None:
            tokens = self.embed(self.patchify(x), grid)
        else:
            tokens = self._placed(self.stem(x).reshape(x.shape[0], -1, self.config.width), grid, None)
        return self._encode(tokens, self.coordinates(grid, None), key, taps)

    def _encode(
        self, tokens: Array, coordinates: Array | None, key: Array | None, taps: Sequence[int]
    ) -> tuple[Float[Array, "b k w"], list[Float[Array, "b k w"]]]:
        config, own = self.config, self.config.registers
        if own:
            shape = (tokens.shape[0], own, config.width)
            tokens = jnp.concatenate([jnp.broadcast_to(self.registers[...].astype(tokens.dtype), shape), tokens], axis=1)
            coordinates = None if coordinates is None else jnp.pad(coordinates, [(0, 0), (own, 0), (0, 0)])
        survive = survival(key, config.depth, config.drop_path) if key is not None and config.drop_path else None
        rotation = None if coordinates is None else rope_rotation(coordinates, config.width // config.heads, config.rope_base)
        tokens, states = run_blocks(
            self.blocks,
            tokens,
            rotation=rotation,
            survive=survive,
            states=bool(taps),
            remat=config.remat,
            keep=config.remat_keep,
        )
        return self.norm(tokens[:, own:]), [] if states is None else [states[tap - 1][:, own:] for tap in taps]

    def _placed(self, tokens: Array, grid: Triple, index: Array | None) -> Array:
        table = self.positions.added(grid)
        if table is None:
            return tokens
        return tokens + (table if index is None else gather_tokens(table, index)).astype(tokens.dtype)
