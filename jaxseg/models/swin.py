"""The 3D Swin transformer: four stages of attention inside shifted windows, each halving the resolution. The encoder of `swin_unetr`."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.attention import attention
from jaxseg.models.layers import EPSILON, MLP, BlockConfig, Keep, layer_norm, linear, recomputed, survival
from jaxseg.models.positions import Triple, check_numbers
from jaxseg.models.unetr import ResidualBlock
from jaxseg.models.vit import patchify
from jaxseg.models.windows import MERGING_ORDERS, Merging, cut, fit_windows, join, merge_neighbours, regions, relative_index

_APART = -100.0  # added to the score of two tokens that were no neighbours before the roll, as in MONAI: not quite minus infinity
Stages = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Everything that shapes a Swin encoder; JSON by `dataclasses.asdict`. Defaults and meanings are those of MONAI's `SwinTransformer`.

    `feature` is the number of channels after the patch embedding, doubled by each stage. `patch` is in voxels, `window` in tokens. `use_v2` puts
    a residual convolution before each stage. `normalize` standardises the feature maps that are given out. `downsample` is the order in which a
    stage's end lays 2x2x2 neighbours side by side: "merging" (MONAI 1.5 and later), "mergingv2", or "merging_repeated", which is what
    MONAI 0.9 to 1.4 called "merging". `drop_path` is the rate of the last block.
    """

    in_channels: int = 1
    feature: int = 48
    patch: Triple = (2, 2, 2)
    depths: Stages = (2, 2, 2, 2)
    heads: Stages = (3, 6, 12, 24)
    window: Triple = (7, 7, 7)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = False
    normalize: bool = True
    use_v2: bool = False
    downsample: Merging = "merging"
    drop_path: float = 0.0
    remat: bool = False
    remat_keep: Keep | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for field, length in {"patch": 3, "window": 3, "depths": 4, "heads": 4}.items():
            sizes = getattr(self, field)
            if not isinstance(sizes, tuple) or len(sizes) != length or any(not isinstance(n, int) or n < 1 for n in sizes):
                raise ConfigError(f"{field} is {sizes!r}; expected {length} numbers of at least 1")
        check_numbers(self, least={"in_channels": 1, "feature": 1}, positive=("mlp_ratio",))
        for i, (width, heads) in enumerate(zip(self.widths, self.heads)):
            if width % heads:
                raise ConfigError(f"stage {i + 1} has {width} channels, which do not split into its {heads} heads")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path is {self.drop_path}; expected a rate of at least 0 and below 1")
        for field, known in {"downsample": tuple(MERGING_ORDERS), "dtype": ("float32", "bfloat16")}.items():
            if getattr(self, field) not in known:
                raise ConfigError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(known)}")

    @property
    def widths(self) -> Stages:
        """Channels inside each of the four stages; the last stage gives out twice its own."""
        a, b, c, d = (self.feature * 2**i for i in range(4))
        return a, b, c, d

    def block(self, stage: int) -> BlockConfig:
        """What a transformer block of `stage` (0 to 3) needs to know."""
        return BlockConfig(self.widths[stage], self.heads[stage], "gelu", self.mlp_ratio, None, self.qkv_bias, self.dtype)


class WindowAttention(nnx.Module):
    """Multi-head self-attention inside each window, with a learned bias for every offset between two tokens.

    Where the window has shrunk to a small grid of n tokens, the biases are those of the full window's first n tokens: a peculiarity of MONAI's.
    """

    def __init__(self, config: BlockConfig, window: Triple, *, rngs: nnx.Rngs):
        self.heads, self.window = config.heads, window
        self.qkv = linear(config.width, 3 * config.width, config.dtype, rngs, bias=config.qkv_bias)
        self.out = linear(config.width, config.width, config.dtype, rngs)
        rows = math.prod(2 * side - 1 for side in window)
        self.bias_table = nnx.Param(0.02 * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (rows, config.heads), jnp.float32))

    def __call__(self, x: Float[Array, "b w n c"], region: Int[Array, "w n"] | None) -> Float[Array, "b w n c"]:
        b, w, n, width = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(b * w, n, 3, self.heads, width // self.heads), 2, 0)
        bias = self._bias(n)[None]
        if region is not None:
            bias += jnp.where(region[:, :, None] == region[:, None, :], 0.0, _APART)[:, None]
        return self.out(attention(q, k, v, bias).reshape(b, w, n, width))

    def _bias(self, n: int) -> Float[Array, "h n n"]:
        index = relative_index(self.window)[:n, :n]
        return self.bias_table[...].T[:, index.ravel()].reshape(self.heads, n, n)


class SwinBlock(nnx.Module):
    """x + window attention(norm(x)), then x + mlp(norm(x)). Padding comes after the norm and is attended to, as in MONAI."""

    def __init__(self, config: BlockConfig, window: Triple, shifted: bool, *, rngs: nnx.Rngs):
        self.window, self.shifted = window, shifted
        self.norm1 = layer_norm(config.width, config.dtype, rngs)
        self.attention = WindowAttention(config, window, rngs=rngs)
        self.norm2 = layer_norm(config.width, config.dtype, rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z c"], survive: Float[Array, "b 2"] | None = None) -> Float[Array, "b x y z c"]:
        """`survive` multiplies the two branches (drop path)."""
        grid = (x.shape[1], x.shape[2], x.shape[3])
        windows = fit_windows(grid, self.window, shifted=self.shifted)
        region = jnp.asarray(regions(windows)) if windows.shifted else None
        mixed = join(self.attention(cut(self.norm1(x), windows), region), windows, grid)
        x = x + _scaled(mixed, survive, 0)
        return x + _scaled(self.mlp(self.norm2(x)), survive, 1)


class PatchMerging(nnx.Module):
    """2x2x2 neighbours to one token of twice the channels: side by side, LayerNorm, a matrix product without bias."""

    def __init__(self, width: int, order: Merging, dtype: str, *, rngs: nnx.Rngs):
        self.order: Merging = order
        self.norm = layer_norm(8 * width, dtype, rngs)
        self.reduction = linear(8 * width, 2 * width, dtype, rngs, bias=False)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x2 y2 z2 d"]:
        return self.reduction(self.norm(merge_neighbours(x, self.order)))


class SwinStage(nnx.Module):
    """Blocks, plain and shifted in turn, then patch merging; in v2 a residual convolution comes first."""

    def __init__(self, config: SwinConfig, stage: int, *, rngs: nnx.Rngs):
        self.remat = config.remat
        self.keep: Keep | None = config.remat_keep
        width, block = config.widths[stage], config.block(stage)
        self.residual = ResidualBlock(width, width, rngs=rngs) if config.use_v2 else None
        self.blocks = nnx.List([SwinBlock(block, config.window, bool(i % 2), rngs=rngs) for i in range(config.depths[stage])])
        self.merge = PatchMerging(width, config.downsample, config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z c"], survive: Float[Array, "depth b 2"] | None = None) -> Float[Array, "b x2 y2 z2 d"]:
        if self.residual is not None:
            x = self.residual(x)
        for i, block in enumerate(self.blocks):
            run = recomputed(_run_block, self.keep) if self.remat else _run_block
            x = run(block, x, None if survive is None else survive[i])
        return self.merge(x)


class Swin(nnx.Module):
    """A 3D Swin transformer (Liu et al., arXiv 2103.14030), equal to MONAI 1.6.1's `SwinTransformer`. Takes any input size.

    Parameters: `patch` (patch voxels times channels, in the order x, y, z, c → feature), `patch_norm` (if asked for) and four `stages`, each
    with `residual` (v2), `blocks` and `merge`.
    """

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        self.config = config
        px, py, pz = config.patch
        self.patch = linear(px * py * pz * config.in_channels, config.feature, config.dtype, rngs)
        self.patch_norm = layer_norm(config.feature, config.dtype, rngs) if config.patch_norm else None
        self.stages = nnx.List([SwinStage(config, stage, rngs=rngs) for stage in range(4)])

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """Five feature maps, fine to coarse: after the patch embedding (`feature` channels) and after each stage (twice as many each time).

        A size that is no multiple of the patch, or an odd one before a merging, gets zeros at its far end. `spacing` is not used; `key` is for
        drop path. Raises ShapeError if the channels do not fit.
        """
        config = self.config
        if x.ndim != 5 or x.shape[-1] != config.in_channels or 0 in x.shape:
            raise ShapeError(f"the input has the shape {tuple(x.shape)}; expected (b, x, y, z, {config.in_channels})")
        survive = survival(key, sum(config.depths), config.drop_path) if key is not None and config.drop_path else None
        x = self._embed(x)
        maps, first = [self._given_out(x)], 0
        for stage, depth in zip(self.stages, config.depths):
            x = stage(x, None if survive is None else survive[first : first + depth])
            maps.append(self._given_out(x))
            first += depth
        return maps

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """The five feature maps, fine to coarse: what a call gives."""
        return self(x, spacing=spacing, key=key)

    def _embed(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x2 y2 z2 f"]:
        patch = self.config.patch
        x = jnp.pad(x, [(0, 0), *((0, -n % p) for n, p in zip(x.shape[1:4], patch)), (0, 0)])
        grid = tuple(n // p for n, p in zip(x.shape[1:4], patch))
        tokens = self.patch(patchify(x, patch)).reshape(x.shape[0], *grid, -1)
        return tokens if self.patch_norm is None else self.patch_norm(tokens)

    def _given_out(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        return _standardise(x) if self.config.normalize else x


def _run_block(block: SwinBlock, x: Array, survive: Array | None) -> Array:
    return block(x, survive)


def _scaled(branch: Array, survive: Array | None, which: int) -> Array:
    return branch if survive is None else branch * survive[:, which, None, None, None, None].astype(branch.dtype)


def _standardise(x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
    """LayerNorm over channels without scale and bias; float32 inside."""
    full = x.astype(jnp.float32)
    centred = full - full.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)).astype(x.dtype)
