"""MONAI's `UNETR` (token 16, 12 blocks, instance norm without affine) in our names. Proven equal in `tests/models/test_unetr.py`.

Files of MONAI before 0.9 hold shortcuts and a class token that no forward pass reaches; versions differ in the cross-attention they leave behind.
"""

from collections.abc import Mapping

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.models.unetr import UNETRConfig
from jaxseg.models.vit import ViTConfig
from jaxseg.zoo.convert.monai_vit import crop_of, heads_of, vit_arrays
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, kernel, transposed_kernel

_TOKEN = (16, 16, 16)
_TABLE = "vit.patch_embedding.position_embeddings"
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
    given = {"heads": heads} | ({} if crop is None else {"crop": crop})
    converted = _convert(Source(state, "MONAI UNETR of 12 blocks with instance norm"), Settings(given))
    return converted.config, converted.arrays


def _is_unetr(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(key in shapes for key in (_TABLE, "encoder1.layer.conv1.conv.weight", "decoder2.transp_conv.conv.weight"))


def _convert(source: Source, settings: Settings) -> Converted:
    config = _config(source, settings)
    encoder = vit_arrays(source, config.encoder, final_norm="norm", prefix="vit.")
    arrays = {f"encoder.{name}": array for name, array in encoder.items()}
    arrays |= _residual(source, "encoder1.layer", "stem")
    for level in range(3):
        arrays |= _skip(source, f"encoder{4 - level}", f"skips.{level}", further=level)
    for level in range(4):
        arrays[f"decoder.{level}.up.kernel"] = transposed_kernel(source[f"decoder{5 - level}.transp_conv.conv.weight"])
        arrays |= _residual(source, f"decoder{5 - level}.conv_block", f"decoder.{level}.block")
    arrays |= {"head.kernel": kernel(source["out.conv.conv.weight"]), "head.bias": source["out.conv.conv.bias"]}
    source.ignore(lambda key: key.endswith(".conv3.conv.weight"), "a shortcut for a change of channels, of which there is none here")
    source.check_all_used()
    return Converted(config, arrays)


def _config(source: Source, settings: Settings) -> UNETRConfig:
    tokens, width = source.shape(_TABLE)[1:]
    feature, in_channels = source.shape("encoder1.layer.conv1.conv.weight")[:2]
    if source.shape("encoder1.layer.conv1.conv.weight")[2:] != (3, 3, 3):
        raise CheckpointError("this is a UNETR for images of two axes; jaxseg has networks for three")
    encoder = ViTConfig.classic(
        in_channels=in_channels,
        crop=crop_of(settings, tokens, _TOKEN),
        token=_TOKEN,
        width=width,
        depth=12,
        heads=heads_of(settings, "heads", width),
        mlp_ratio=source.shape("vit.blocks.0.mlp.linear1.weight")[0] / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in source,
    )
    return UNETRConfig(encoder, num_classes=source.shape("out.conv.conv.bias")[0], feature=feature)


def _residual(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    out, inputs = source.shape(f"{theirs}.conv1.conv.weight")[:2]
    keys = {f"{ours}.{part}.kernel": f"{theirs}.{other}.conv.weight" for part, other in _RESIDUAL.items()}
    return {name: kernel(source[key]) for name, key in keys.items() if "shortcut" not in name or out != inputs}


def _skip(source: Source, theirs: str, ours: str, further: int) -> dict[str, np.ndarray]:
    arrays = {f"{ours}.first.kernel": transposed_kernel(source[f"{theirs}.transp_conv_init.conv.weight"])}
    for i in range(further):
        arrays[f"{ours}.further.{i}.kernel"] = transposed_kernel(source[f"{theirs}.blocks.{i}.0.conv.weight"])
        arrays |= _residual(source, f"{theirs}.blocks.{i}.1", f"{ours}.residual.{i}")
    return arrays


LAYOUTS = (Layout("MONAI UNETR", _is_unetr, _convert),)
