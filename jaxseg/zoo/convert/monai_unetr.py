"""MONAI's `UNETR` (1.6.1: token 16, 12 blocks, instance norm without affine) in our names. Proven equal in `tests/models/test_unetr.py`."""

from collections.abc import Mapping

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.models.unetr import UNETRConfig
from jaxseg.models.vit import ViTConfig
from jaxseg.zoo.convert.source import Source, kernel, linear, norm, transposed_kernel

_TOKEN = 16
_EMBEDDING = "vit.patch_embedding."
_UNUSED = ("norm_cross_attn", "cross_attn")
"""Parts of MONAI's transformer block that its forward pass never reaches without a second input."""
_RESIDUAL = {"conv1": "conv1", "conv2": "conv2", "shortcut": "conv3"}


def convert_unetr(
    state: Mapping[str, np.ndarray], *, heads: int, crop: tuple[int, int, int] | None = None
) -> tuple[UNETRConfig, dict[str, np.ndarray]]:
    """The config and the arrays (by the names of `zoo.names`) of a MONAI `state_dict` given as numpy arrays.

    Args:
        heads: attention heads, which the arrays do not tell.
        crop: the `img_size` (voxels) that the position table was made for; a cube if not given.

    Raises CheckpointError if a key is missing, or is none of the published layout's.
    """
    source = Source(state, "MONAI UNETR of 12 blocks with instance norm")
    config = _config(source, heads, crop)
    arrays = _encoder(source, config.encoder)
    arrays |= _residual(source, "encoder1.layer", "stem")
    for level in range(3):
        arrays |= _skip(source, f"encoder{4 - level}", f"skips.{level}", further=level)
    for level in range(4):
        arrays[f"decoder.{level}.up.kernel"] = transposed_kernel(source[f"decoder{5 - level}.transp_conv.conv.weight"])
        arrays |= _residual(source, f"decoder{5 - level}.conv_block", f"decoder.{level}.block")
    arrays |= {"head.kernel": kernel(source["out.conv.conv.weight"]), "head.bias": source["out.conv.conv.bias"]}
    source.ignore(lambda key: any(part in key.split(".") for part in _UNUSED), "never reached by MONAI's forward pass")
    source.check_all_used()
    return config, arrays


def _config(source: Source, heads: int, crop: tuple[int, int, int] | None) -> UNETRConfig:
    tokens, width = source[_EMBEDDING + "position_embeddings"].shape[1:]
    side = round(tokens ** (1 / 3)) * _TOKEN
    crop = crop or (side, side, side)
    if np.prod(crop) != tokens * _TOKEN**3:
        raise CheckpointError(
            f"the position table has {tokens} places, which is not what a crop of {crop} voxels has: give the img_size it was made for"
        )
    feature, in_channels = source["encoder1.layer.conv1.conv.weight"].shape[:2]
    encoder = ViTConfig.classic(
        in_channels=in_channels,
        crop=crop,
        token=(_TOKEN,) * 3,
        width=width,
        depth=12,
        heads=heads,
        mlp_ratio=source["vit.blocks.0.mlp.linear1.weight"].shape[0] / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in source,
    )
    return UNETRConfig(encoder, num_classes=source["out.conv.conv.bias"].shape[0], feature=feature)


def _encoder(source: Source, config: ViTConfig) -> dict[str, np.ndarray]:
    arrays = {"positions.table": source[_EMBEDDING + "position_embeddings"].reshape(*config.grid, config.width)}
    arrays |= _embedding(source) | norm(source, "vit.norm", "norm")
    for i in range(config.depth):
        theirs, ours = f"vit.blocks.{i}", f"blocks.{i}"
        arrays |= norm(source, f"{theirs}.norm1", f"{ours}.norm1") | norm(source, f"{theirs}.norm2", f"{ours}.norm2")
        for part, other in {
            "attention.qkv": "attn.qkv",
            "attention.out": "attn.out_proj",
            "mlp.linear1": "mlp.linear1",
            "mlp.linear2": "mlp.linear2",
        }.items():
            arrays |= linear(source, f"{theirs}.{other}", f"{ours}.{part}")
    return {f"encoder.{name}": array for name, array in arrays.items()}


def _embedding(source: Source) -> dict[str, np.ndarray]:
    if _EMBEDDING + "patch_embeddings.1.weight" in source:
        return linear(source, _EMBEDDING + "patch_embeddings.1", "patch")
    weight = source[_EMBEDDING + "patch_embeddings.weight"]
    kernel = weight.transpose(2, 3, 4, 1, 0).reshape(-1, weight.shape[0])
    return {"patch.kernel": kernel, "patch.bias": source[_EMBEDDING + "patch_embeddings.bias"]}


def _residual(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    keys = {f"{ours}.{part}.kernel": f"{theirs}.{other}.conv.weight" for part, other in _RESIDUAL.items()}
    return {name: kernel(source[key]) for name, key in keys.items() if "shortcut" not in name or key in source}


def _skip(source: Source, theirs: str, ours: str, further: int) -> dict[str, np.ndarray]:
    arrays = {f"{ours}.first.kernel": transposed_kernel(source[f"{theirs}.transp_conv_init.conv.weight"])}
    for i in range(further):
        arrays[f"{ours}.further.{i}.kernel"] = transposed_kernel(source[f"{theirs}.blocks.{i}.0.conv.weight"])
        arrays |= _residual(source, f"{theirs}.blocks.{i}.1", f"{ours}.residual.{i}")
    return arrays
