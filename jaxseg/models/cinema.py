"""CineMA's encoder for one view of cardiac cine MR: a convolutional stem, a ViT over its map, and the stem's maps fused into the tokens.

Built by name in `jaxseg.zoo`; `zoo.convert.cinema` fills it from the published file.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ConfigError, ShapeError
from jaxseg.models.conv import conv3d, kernel_init
from jaxseg.models.layers import MLP, BlockConfig, Keep, layer_norm, linear
from jaxseg.models.positions import Triple
from jaxseg.models.vit import ViT, ViTConfig

_STEM_EPSILON = 1e-6  # of the LayerNorms between convolutions; those of the transformer have 1e-5


@dataclasses.dataclass(frozen=True)
class CineMAConfig:
    """Everything that shapes the encoder of one view; sizes in voxels. The defaults are the published ones of the short-axis stack.

    The stem's first level has one place for `patch` voxels, each further one for `scale` places of the level before, and a token is `scale` places
    of the last. `stem_widths` are the levels' channels, `stem_depth` the blocks of each, `kernel` that of their depthwise convolutions. `crop` sets
    the size of the position table. `drop_path` is the rate of the last transformer block.
    """

    VARIANTS: ClassVar[dict[str, str]] = {"base": "base"}

    in_channels: int = 1
    crop: Triple = (192, 192, 16)
    patch: Triple = (4, 4, 1)
    scale: Triple = (2, 2, 1)
    stem_widths: tuple[int, ...] = (64, 128)
    stem_depth: int = 2
    kernel: Triple = (5, 5, 5)
    width: int = 768
    depth: int = 12
    heads: int = 12
    positions: Literal["sincos", "learned"] = "sincos"
    drop_path: float = 0.0
    remat: bool = False
    remat_keep: Keep | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def base(cls, **changes) -> "CineMAConfig":
        """The published ViT-B, 87.7 M parameters at one channel; `changes` are fields."""
        return cls(**changes)

    @property
    def reductions(self) -> list[Triple]:
        """Voxels in one place of each level of the stem, then in one token."""
        found = [self.patch]
        for _ in self.stem_widths:
            (x, y, z), (fx, fy, fz) = found[-1], self.scale
            found.append((x * fx, y * fy, z * fz))
        return found

    @property
    def token(self) -> Triple:
        """Voxels of a token along each axis."""
        return self.reductions[-1]

    @property
    def transformer(self) -> ViTConfig:
        """The ViT, whose image is the stem's last map."""
        x, y, z = (side // voxels for side, voxels in zip(self.crop, self.reductions[-2]))
        return ViTConfig.classic(
            in_channels=self.stem_widths[-1],
            crop=(x, y, z),
            token=self.scale,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            positions=self.positions,
            qkv_bias=True,
            class_token=True,
            drop_path=self.drop_path,
            remat=self.remat,
            remat_keep=self.remat_keep,
            dtype=self.dtype,
        )

    def __post_init__(self) -> None:
        if not self.stem_widths or min(*self.stem_widths, self.stem_depth, *self.patch, *self.scale) < 1:
            raise ConfigError(
                f"stem_widths {self.stem_widths}, stem_depth {self.stem_depth}, patch {self.patch} and scale {self.scale}: expected at least one "
                "level, and numbers from 1 on"
            )
        if not all(size % 2 for size in self.kernel):
            raise ConfigError(f"kernel is {self.kernel}; expected odd numbers of places")
        if any(side < voxels or side % voxels for side, voxels in zip(self.crop, self.token)):
            raise ConfigError(f"crop {self.crop} is not a multiple of the token {self.token} along every axis")
        if self.positions not in ("sincos", "learned"):
            raise ConfigError(f"positions is {self.positions!r}; expected one of sincos, learned")
        _ = self.transformer  # raises for what a ViT refuses


class Reduce(nnx.Module):
    """A convolution with kernel = stride = `factors`, with bias."""

    def __init__(self, inputs: int, outputs: int, factors: Triple, *, rngs: nnx.Rngs):
        self.factors = factors
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*factors, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        return conv3d(x, self.kernel[...], self.bias[...], stride=self.factors, padding="VALID")


class Depthwise(nnx.Module):
    """A convolution of each channel by itself, with zeros around the image, with bias."""

    def __init__(self, width: int, size: Triple, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*size, 1, width)))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        return conv3d(x, self.kernel[...], self.bias[...], groups=x.shape[-1])


class StemBlock(nnx.Module):
    """x + linear(depthwise(linear(norm(x)))), then x + mlp(norm(x)): ConvMAE's block (https://arxiv.org/abs/2205.03892) with nothing masked."""

    def __init__(self, width: int, kernel: Triple, dtype: str, *, rngs: nnx.Rngs):
        self.norm1 = _stem_norm(width, dtype, rngs)
        self.before = linear(width, width, dtype, rngs)
        self.depthwise = Depthwise(width, kernel, rngs=rngs)
        self.after = linear(width, width, dtype, rngs)
        self.norm2 = _stem_norm(width, dtype, rngs)
        self.mlp = MLP(BlockConfig(width, heads=1, mlp="gelu", dtype=dtype), rngs=rngs)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        x = x + self.after(self.depthwise(self.before(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class StemLevel(nnx.Module):
    """Fewer places by a strided convolution, norm and exact GELU, then `blocks`."""

    def __init__(self, config: CineMAConfig, inputs: int, outputs: int, factors: Triple, *, rngs: nnx.Rngs):
        self.reduce = Reduce(inputs, outputs, factors, rngs=rngs)
        self.norm = _stem_norm(outputs, config.dtype, rngs)
        self.blocks = nnx.List([StemBlock(outputs, config.kernel, config.dtype, rngs=rngs) for _ in range(config.stem_depth)])

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x2 y2 z2 o"]:
        x = jax.nn.gelu(self.norm(self.reduce(x)), approximate=False)
        for block in self.blocks:
            x = block(x)
        return x


class Stem(nnx.Module):
    """Voxels to the maps of all `levels`, fine to coarse."""

    def __init__(self, config: CineMAConfig, *, rngs: nnx.Rngs):
        inputs = (config.in_channels, *config.stem_widths)
        factors = (config.patch, *[config.scale] * (len(config.stem_widths) - 1))
        self.dtype = config.dtype
        self.levels = nnx.List([StemLevel(config, i, o, f, rngs=rngs) for i, o, f in zip(inputs, config.stem_widths, factors)])

    def __call__(self, x: Float[Array, "b x y z c"]) -> list[Float[Array, "b _ _ _ _"]]:
        x, maps = x.astype(jnp.dtype(self.dtype)), []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class MapViT(ViT):
    """A ViT that embeds its patches by two matrix products, one right after the other."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.project = linear(config.width, config.width, config.dtype, rngs)

    def embed(self, patches: Float[Array, "b k p"], grid: Triple, index: Int[Array, "b k"] | None = None) -> Float[Array, "b k w"]:
        """As of a ViT."""
        return self.place(self.project(self.patch(patches)), grid, index)


class Fusion(nnx.Module):
    """The transformer's map plus each of the stem's, brought to its grid by one convolution; then a norm."""

    def __init__(self, config: CineMAConfig, *, rngs: nnx.Rngs):
        factors = [tuple(t // r for t, r in zip(config.token, reduction)) for reduction in config.reductions[:-1]]
        self.down = nnx.List([Reduce(n, config.width, (x, y, z), rngs=rngs) for n, (x, y, z) in zip(config.stem_widths, factors)])
        self.norm = layer_norm(config.width, config.dtype, rngs)

    def __call__(self, maps: list[Float[Array, "b _ _ _ _"]], x: Float[Array, "b gx gy gz w"]) -> Float[Array, "b gx gy gz w"]:
        for reduce, each in zip(self.down, maps):
            x = x + reduce(each)
        return self.norm(x)


class CineMA(nnx.Module):
    """The encoder of one view of CineMA (https://arxiv.org/abs/2506.00679), a masked autoencoder of cardiac cine MR; blocks after its sources.

    Layout only: it was written from the published sources and compared with a restatement of them; the peer's package was never run. It takes any
    multiple of the token, (16, 16, 1) voxels as published; other sizes than `crop` stretch the position table linearly (so does the peer for the
    short-axis stack, while it is bicubic for a long-axis plane). A long-axis view is one plane, `(b, x, y, 1, c)`. The peer can also let the tokens
    of several views attend to each other; this is what it computes where one view is given. Parameters: `encoder` (the stem's `levels`),
    `transformer` (a ViT with `project` behind its `patch`) and `fusion`.
    """

    FEATURE_PARTS = ("encoder", "transformer", "fusion")

    def __init__(self, config: CineMAConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Stem(config, rngs=rngs)
        self.transformer = MapViT(config.transformer, rngs=rngs)
        self.fusion = Fusion(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z c"], *, spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n w"]:
        """The fused tokens of the view, z fastest, without the class token. Its positions are tables: `spacing` changes nothing.

        Raises ShapeError if channels or size do not fit.
        """
        last = self.features(x, spacing, key)[-1]
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def features(
        self, x: Float[Array, "b x y z c"], spacing: Float[Array, "b 3"] | None = None, key: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _ _"]]:
        """The stem's maps, fine to coarse, and the fused map of the tokens: 64, 128 and 768 channels as published."""
        self._check(x)
        maps = self.encoder(x)
        grid = self.transformer.grid_of(maps[-1])
        tokens = self.transformer(maps[-1], key=key)
        return [*maps, self.fusion(maps, tokens.reshape(x.shape[0], *grid, -1))]

    def _check(self, x: Array) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[-1] != config.in_channels:
            raise ShapeError(f"the input has the shape {tuple(x.shape)}; expected (b, x, y, z, {config.in_channels})")
        if any(side == 0 or side % voxels for side, voxels in zip(x.shape[1:4], config.token)):
            raise ShapeError(f"an input of {x.shape[1:4]} voxels does not divide into tokens of {config.token}: pad or crop it")


def _stem_norm(width: int, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=_STEM_EPSILON, dtype=jnp.dtype(dtype), use_fast_variance=False, rngs=rngs)
