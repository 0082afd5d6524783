"""Which array of MONAI's UNETR and SwinUNETR is which of ours, in one table that is read both ways: by `monai_swin` and by `zoo.export`."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from jaxseg.models.swin import SwinConfig
from jaxseg.models.swin_unetr import SwinUNETRConfig
from jaxseg.models.unetr import UNETRConfig
from jaxseg.models.vit import ViTConfig

Form = Literal["same", "linear", "kernel", "transposed", "patch", "table"]
_KERNEL, _TRANSPOSED = (2, 3, 4, 1, 0), (2, 3, 4, 0, 1)


class Row(NamedTuple):
    """One array: our name, MONAI's name, and how MONAI's axes lie; `sizes` are those that a "patch" or "table" was flattened from.

    "linear" (out, in), "kernel" (out, in, x, y, z), "transposed" (in, out, x, y, z), "patch" a kernel that we keep as a matrix, "table" the
    positions (1, x y z, width) that we keep as (x, y, z, width).
    """

    ours: str
    theirs: str
    form: Form = "same"
    sizes: tuple[int, ...] = ()

    def read(self, array: np.ndarray) -> np.ndarray:
        """MONAI's array in our axes."""
        match self.form:
            case "linear":
                return array.T
            case "kernel":
                return array.transpose(_KERNEL)
            case "transposed":
                return array.transpose(_TRANSPOSED)
            case "patch":
                return array.transpose(_KERNEL).reshape(-1, array.shape[0])
            case "table":
                return array.reshape(self.sizes)
        return array

    def write(self, array: np.ndarray) -> np.ndarray:
        """Our array in MONAI's axes: the inverse of `read`."""
        match self.form:
            case "linear":
                return array.T
            case "kernel":
                return array.transpose(4, 3, 0, 1, 2)
            case "transposed":
                return array.transpose(3, 4, 0, 1, 2)
            case "patch":
                return array.reshape(self.sizes).transpose(4, 3, 0, 1, 2)
            case "table":
                return array.reshape(1, -1, array.shape[-1])
        return array


def swin_rows(
    config: SwinConfig, *, ours: str = "encoder.", theirs: str = "swinViT.", mlp: tuple[str, str] = ("linear1", "linear2")
) -> Iterator[Row]:
    """The arrays of MONAI's `SwinTransformer`; `mlp` names its two matrices, which older versions called fc1 and fc2."""
    yield Row(f"{ours}patch.kernel", f"{theirs}patch_embed.proj.weight", "patch", (*config.patch, config.in_channels, config.feature))
    yield Row(f"{ours}patch.bias", f"{theirs}patch_embed.proj.bias")
    if config.patch_norm:
        yield from _norm(f"{ours}patch_norm", f"{theirs}patch_embed.norm")
    for stage, depth in enumerate(config.depths):
        here, there = f"{ours}stages.{stage}", f"{theirs}layers{stage + 1}.0"
        if config.use_v2:
            yield from _residual(f"{here}.residual", f"{theirs}layers{stage + 1}c.0.layer", shortcut=False)
        for i in range(depth):
            yield from _swin_block(f"{here}.blocks.{i}", f"{there}.blocks.{i}", config.qkv_bias, mlp)
        yield from _norm(f"{here}.merge.norm", f"{there}.downsample.norm")
        yield Row(f"{here}.merge.reduction.kernel", f"{there}.downsample.reduction.weight", "linear")


def swin_skip_rows(config: SwinUNETRConfig, *, theirs: str = "") -> Iterator[Row]:
    """SwinUNETR's residual blocks on the image and on the encoder's feature maps."""
    yield from _residual("stem", f"{theirs}encoder1.layer", shortcut=config.in_channels != config.encoder.feature)
    for i in range(3):
        yield from _residual(f"skips.{i}", f"{theirs}encoder{i + 2}.layer", shortcut=False)
    yield from _residual("bottleneck", f"{theirs}encoder10.layer", shortcut=False)


def decoder_rows(levels: int, *, theirs: str = "") -> Iterator[Row]:
    """The decoder, which both networks share; MONAI counts it down from 5 to the finest."""
    for level in range(levels):
        here, there = f"decoder.{level}", f"{theirs}decoder{5 - level}"
        yield Row(f"{here}.up.kernel", f"{there}.transp_conv.conv.weight", "transposed")
        yield from _residual(f"{here}.block", f"{there}.conv_block", shortcut=True)


def head_rows(*, theirs: str = "") -> Iterator[Row]:
    """The last convolution, which both networks share."""
    yield Row("head.kernel", f"{theirs}out.conv.conv.weight", "kernel")
    yield Row("head.bias", f"{theirs}out.conv.conv.bias")


def unetr_rows(config: UNETRConfig) -> Iterator[Row]:
    """All arrays of MONAI's `UNETR` with its default embedding (a convolution) that its forward pass uses."""
    yield from _vit_rows(config.encoder)
    yield from _residual("stem", "encoder1.layer", shortcut=config.in_channels != config.feature)
    for level in range(3):
        here, there = f"skips.{level}", f"encoder{4 - level}"
        yield Row(f"{here}.first.kernel", f"{there}.transp_conv_init.conv.weight", "transposed")
        for i in range(level):
            yield Row(f"{here}.further.{i}.kernel", f"{there}.blocks.{i}.0.conv.weight", "transposed")
            yield from _residual(f"{here}.residual.{i}", f"{there}.blocks.{i}.1", shortcut=False)
    yield from decoder_rows(4)
    yield from head_rows()


def _vit_rows(config: ViTConfig) -> Iterator[Row]:
    embedding = "vit.patch_embedding."
    sizes = (*config.token, config.in_channels, config.width)
    yield Row("encoder.positions.table", f"{embedding}position_embeddings", "table", (*config.grid, config.width))
    yield Row("encoder.patch.kernel", f"{embedding}patch_embeddings.weight", "patch", sizes)
    yield Row("encoder.patch.bias", f"{embedding}patch_embeddings.bias")
    for i in range(config.depth):
        here, there = f"encoder.blocks.{i}", f"vit.blocks.{i}"
        yield from _norm(f"{here}.norm1", f"{there}.norm1")
        yield from _norm(f"{here}.norm2", f"{there}.norm2")
        yield from _linear(f"{here}.attention.qkv", f"{there}.attn.qkv", bias=config.qkv_bias)
        yield from _linear(f"{here}.attention.out", f"{there}.attn.out_proj")
        yield from _linear(f"{here}.mlp.linear1", f"{there}.mlp.linear1")
        yield from _linear(f"{here}.mlp.linear2", f"{there}.mlp.linear2")
    yield from _norm("encoder.norm", "vit.norm")


def _swin_block(ours: str, theirs: str, qkv_bias: bool, mlp: tuple[str, str]) -> Iterator[Row]:
    yield from _norm(f"{ours}.norm1", f"{theirs}.norm1")
    yield from _norm(f"{ours}.norm2", f"{theirs}.norm2")
    yield Row(f"{ours}.attention.bias_table", f"{theirs}.attn.relative_position_bias_table")
    yield from _linear(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", bias=qkv_bias)
    yield from _linear(f"{ours}.attention.out", f"{theirs}.attn.proj")
    yield from _linear(f"{ours}.mlp.linear1", f"{theirs}.mlp.{mlp[0]}")
    yield from _linear(f"{ours}.mlp.linear2", f"{theirs}.mlp.{mlp[1]}")


def _linear(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Row]:
    yield Row(f"{ours}.kernel", f"{theirs}.weight", "linear")
    if bias:
        yield Row(f"{ours}.bias", f"{theirs}.bias")


def _norm(ours: str, theirs: str) -> Iterator[Row]:
    yield Row(f"{ours}.scale", f"{theirs}.weight")
    yield Row(f"{ours}.bias", f"{theirs}.bias")


def _residual(ours: str, theirs: str, *, shortcut: bool) -> Iterator[Row]:
    yield Row(f"{ours}.conv1.kernel", f"{theirs}.conv1.conv.weight", "kernel")
    yield Row(f"{ours}.conv2.kernel", f"{theirs}.conv2.conv.weight", "kernel")
    if shortcut:
        yield Row(f"{ours}.shortcut.kernel", f"{theirs}.conv3.conv.weight", "kernel")
