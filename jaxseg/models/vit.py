"""The 3D Vision Transformer: patches to tokens to features. The encoder of `mae` and `unetr`; built by name in `jaxseg.zoo`."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, overload

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.layers import BlockConfig, Keep, layer_norm, linear, run_blocks, stack_blocks, survival
from jaxseg.models.positions import Kind, Positions, Triple, check_numbers, gather_tokens


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything that shapes a ViT; JSON by `dataclasses.asdict`.

    `crop` (voxels) sets the size of position tables, other inputs are fine. `token` is in voxels and may be anisotropic. `rope_scale` (mm) is the
    unit of "rope_mm". `mlp_ratio` counts hidden units of a GELU MLP; SwiGLU takes 2/3 of them, which costs the same. `drop_path` is the rate of
    the last block. `remat` computes a block again in the backward pass instead of keeping what is inside it, but what `remat_keep` names
    (`layers.Keep`), which without `remat` has no effect. `class_token` puts one learned token without a position before the others. With `depth` 0
    there is no transformer: tokens are embedded patches behind the final norm. MONAI's ViT is `ViTConfig.classic(...)`.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"tiny": "tiny", "small": "small", "base": "base", "large": "large"}

    in_channels: int = 1
    crop: Triple = (96, 96, 96)
    token: Triple = (16, 16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    positions: Kind = "rope_mm"
    rope_scale: float = 8.0
    rope_base: float = 100.0
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    drop_path: float = 0.0
    registers: int = 0
    qkv_bias: bool = True
    remat: bool = False
    remat_keep: Keep | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    class_token: bool = False

    @classmethod
    def classic(cls, **changes) -> "ViTConfig":
        """The form of MONAI's ViT: learned positions, exact GELU, no LayerScale, no bias on qkv. `changes` are fields."""
        return cls(**{"positions": "learned", "mlp": "gelu", "layer_scale": None, "qkv_bias": False, **changes})

    @classmethod
    def tiny(cls, **changes) -> "ViTConfig":
        """2.8 M parameters at one channel, for crops of 64 voxels; `changes` are fields, here and below."""
        return cls(**{"width": 192, "depth": 6, "heads": 3, "crop": (64, 64, 64), "token": (8, 8, 8), **changes})

    @classmethod
    def small(cls, **changes) -> "ViTConfig":
        """14.4 M parameters at one channel."""
        return cls(**{"width": 384, "depth": 8, "heads": 6, "token": (8, 8, 8), **changes})

    @classmethod
    def base(cls, **changes) -> "ViTConfig":
        """85.5 M parameters at one channel."""
        return cls(**{"width": 768, "depth": 12, "heads": 12, "token": (8, 8, 8), **changes})

    @classmethod
    def large(cls, **changes) -> "ViTConfig":
        """303.3 M parameters at one channel."""
        return cls(**{"width": 1024, "depth": 24, "heads": 16, "token": (8, 8, 8), **changes})

    @property
    def grid(self) -> Triple:
        """Tokens along each axis of a crop."""
        x, y, z = (c // t for c, t in zip(self.crop, self.token))
        return x, y, z

    @property
    def patch_size(self) -> int:
        """Numbers in one patch: voxels of a token times channels."""
        x, y, z = self.token
        return x * y * z * self.in_channels

    @property
    def block(self) -> BlockConfig:
        """What one transformer block needs to know."""
        return BlockConfig(self.width, self.heads, self.mlp, self.mlp_ratio, self.layer_scale, self.qkv_bias, self.dtype)

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"in_channels": 1, "width": 1, "heads": 1, "depth": 0, "registers": 0},
            triples=("crop", "token"),
            positive=("rope_scale", "rope_base", "mlp_ratio"),
        )
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(f"width {self.width} does not split into {self.heads} heads of an even number of channels")
        if any(c < t or c % t for c, t in zip(self.crop, self.token)):
            raise ConfigError(f"crop {self.crop} is not a multiple of token {self.token} along every axis")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; expected a rate of at least 0 and below 1")
        for field, known in {
            "positions": ("rope_mm", "rope_index", "learned", "sincos", "none"),
            "mlp": ("swiglu", "gelu"),
            "dtype": ("float32", "bfloat16"),
        }.items():
            if getattr(self, field) not in known:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}")


def token_grid(x: Float[Array, "b x y z c"], in_channels: int, token: Triple) -> Triple:
    """Tokens along each axis of `x`. ShapeError if it has other channels, or sides that are no multiples of `token`."""
    if x.ndim != 5 or x.shape[-1] != in_channels:
        raise ShapeError(f"the input has the shape {tuple(x.shape)}; expected (b, x, y, z, {in_channels})")
    if any(n == 0 or n % t for n, t in zip(x.shape[1:4], token)):
        raise ShapeError(f"an input of {x.shape[1:4]} voxels does not divide into tokens of {token}: pad or crop it")
    gx, gy, gz = (n // t for n, t in zip(x.shape[1:4], token))
    return gx, gy, gz


def patchify(x: Float[Array, "b x y z c"], token: Triple) -> Float[Array, "b n p"]:
    """Cut into tokens, z fastest; the voxels of a token are in the order (x y z c), as in MONAI's "perceptron" embedding."""
    p, q, r = token
    return rearrange(x, "b (x p) (y q) (z r) c -> b (x y z) (p q r c)", p=p, q=q, r=r)


def unpatchify(patches: Float[Array, "b n p"], grid: Triple, token: Triple) -> Float[Array, "b x y z c"]:
    """The inverse of `patchify`."""
    x, y, z = grid
    p, q, r = token
    return rearrange(patches, "b (x y z) (p q r c) -> b (x p) (y q) (z r) c", x=x, y=y, z=z, p=p, q=q, r=r)


Tokens = Float[Array, "b n w"]


class ViT(nnx.Module):
    """A pre-norm Vision Transformer over 3D tokens (https://arxiv.org/abs/2010.11929). Takes any multiple of the token, of any size.

    Equal to MONAI's `ViT` (1.6.1) where that one exists. Parameters: `patch` (p·c → width), `positions.table` (learned only), `class_token`
    and `registers` (if asked for), `blocks` (stacked on depth) and `norm`.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch = linear(config.patch_size, config.width, config.dtype, rngs)
        self.positions = Positions(
            config.positions,
            config.grid,
            config.width,
            config.width // config.heads,
            scale=config.rope_scale,
            base=config.rope_base,
            rngs=rngs,
        )
        if config.class_token:
            self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,), jnp.float32))
        if config.registers:
            self.registers = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.registers, config.width), jnp.float32))
        self.blocks = stack_blocks(config.block, config.depth, rngs) if config.depth else None
        self.norm = layer_norm(config.width, config.dtype, rngs)

    @overload
    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Tokens: ...

    @overload
    def __call__(
        self,
        x: Float[Array, "b x y z c"],
        *,
        spacing: Float[Array, "b 3"] | None = None,
        key: Key[Array, " b"] | None = None,
        taps: Sequence[int],
    ) -> tuple[Tokens, list[Tokens]]: ...

    def __call__(self, x, *, spacing=None, key=None, taps=None):
        """Tokens of the image after the last block and the final norm; with `taps` also the hidden states after that many blocks, before any norm.

        Raises ShapeError if channels or size do not fit, or if positions are in mm and there is no `spacing`.
        """
        grid = self.grid_of(x)
        tokens, states = self._encode(self.embed(self.patchify(x), grid), self.coordinates(grid, spacing), key, taps or ())
        tokens, *states = (each[:, int(self.config.class_token) :] for each in (tokens, *states))
        return tokens if taps is None else (tokens, states)

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b gx gy gz w"]]:
        """Four maps of the token grid, after each quarter of the blocks (fewer for fewer blocks); the last one behind the final norm."""
        depth, grid = self.config.depth, self.grid_of(x)
        taps = sorted({-(-depth * quarter // 4) for quarter in (1, 2, 3)} - {depth})
        last, states = self(x, spacing=spacing, key=key, taps=taps)
        return [tokens.reshape(x.shape[0], *grid, -1) for tokens in (*states, last)]

    def grid_of(self, x: Float[Array, "b x y z c"]) -> Triple:
        """Tokens along each axis of `x`; ShapeError if `x` does not fit this model."""
        return token_grid(x, self.config.in_channels, self.config.token)

    def patchify(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b n p"]:
        """The voxels of every token: `(b, n, px·py·pz·c)`."""
        return patchify(x, self.config.token)

    def embed(self, patches: Float[Array, "b k p"], grid: Triple, index: Int[Array, "b k"] | None = None) -> Float[Array, "b k w"]:
        """Patches to tokens with their positions; `index` says which tokens of `grid` the patches are (None: all, in order)."""
        return self.place(self.patch(patches), grid, index)

    def place(self, tokens: Tokens, grid: Triple, index: Int[Array, "b k"] | None = None) -> Tokens:
        """Tokens with what their positions add, for positions that are tables."""
        table = self.positions.added(grid)
        if table is None:
            return tokens
        return tokens + (table if index is None else gather_tokens(table, index)).astype(tokens.dtype)

    def coordinates(self, grid: Triple, spacing: Float[Array, "b 3"] | None) -> Float[Array, "b n 3"] | None:
        """Rotary coordinates of all tokens of `grid`, relative to its centre, or None for other kinds of positions."""
        return self.positions.coordinates(grid, self.config.token, spacing)

    def encode(self, tokens: Tokens, coordinates: Float[Array, "b n 3"] | None, key: Key[Array, " b"] | None = None) -> Tokens:
        """Blocks and final norm over any set of tokens at `coordinates`; with `class_token` the encoded class token comes first.

        Class token and registers stand at the centre of the crop; registers are not returned.
        """
        return self._encode(tokens, coordinates, key, ())[0]

    def _encode(
        self, tokens: Tokens, coordinates: Float[Array, "b n 3"] | None, key: Key[Array, " b"] | None, taps: Sequence[int]
    ) -> tuple[Tokens, list[Tokens]]:
        config = self.config
        if any(not 1 <= tap <= config.depth for tap in taps):
            raise ConfigError(f"taps {tuple(taps)} do not all lie between 1 and the encoder's depth of {config.depth}")
        tokens, coordinates = self._with_own_tokens(tokens, coordinates)
        if self.blocks is None:
            return self.norm(tokens[:, config.registers :]), []
        survive = survival(key, config.depth, config.drop_path) if key is not None and config.drop_path else None
        tokens, states = run_blocks(
            self.blocks,
            tokens,
            rotation=self.positions.rotation(coordinates),
            survive=survive,
            states=bool(taps),
            remat=config.remat,
            keep=config.remat_keep,
        )
        # Registers come first, so that what follows them is the class token, if there is one, and the image's tokens.
        tokens = self.norm(tokens[:, config.registers :])
        return tokens, [] if states is None else [states[tap - 1][:, config.registers :] for tap in taps]

    def _with_own_tokens(self, tokens: Array, coordinates: Array | None) -> tuple[Array, Array | None]:
        own = ([self.registers[...]] if self.config.registers else []) + ([self.class_token[...][None]] if self.config.class_token else [])
        if not own:
            return tokens, coordinates
        first = jnp.concatenate(own).astype(tokens.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(first, (tokens.shape[0], *first.shape)), tokens], axis=1)
        if coordinates is not None:
            coordinates = jnp.pad(coordinates, [(0, 0), (first.shape[0], 0), (0, 0)])
        return tokens, coordinates
