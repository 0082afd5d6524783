"""MONAI's `ViT`, `ViTAutoEnc` and `MaskedAutoEncoderViT` (1.6.1 and before) in our names. Proven equal in `tests/zoo/test_convert_monai_vit.py`.

`monai_unetr` takes the arrays of its encoder from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError, ConfigError
from jaxseg.models.mae import MAEConfig
from jaxseg.models.positions import Kind, Triple, sincos_table
from jaxseg.models.vit import ViTConfig
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, linear, norm, whole_number

_TABLE = "patch_embedding.position_embeddings"
_CONV = "patch_embedding.patch_embeddings.weight"
_PERCEPTRON = "patch_embedding.patch_embeddings.1.weight"
_PARTS = {"attention.qkv": "attn.qkv", "attention.out": "attn.out_proj", "mlp.linear1": "mlp.linear1", "mlp.linear2": "mlp.linear2"}
_CLASSIFIER = "classifies whole scans, for which we have no head"
_RECONSTRUCTION = "draws the reconstruction, which no other network takes over"


def _is_mae(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return _TABLE in shapes and "decoder_pos_embedding" in shapes and "decoder_pred.weight" in shapes


def _is_autoencoder(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return _TABLE in shapes and "conv3d_transpose.weight" in shapes


def _is_vit(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    bare = not any(key.startswith(("decoder", "conv3d_transpose")) for key in shapes)
    return bare and _TABLE in shapes and "blocks.0.mlp.linear1.weight" in shapes and "norm.weight" in shapes


def convert_vit(source: Source, settings: Settings) -> Converted:
    """A ViT or the encoder of a ViTAutoEnc. Settings: heads, crop (the `img_size`) and, for the embedding "perceptron", token.

    Raises CheckpointError if a key is missing, is none of the published layout's, or if crop or token do not fit the arrays.
    """
    config = vit_config(source, settings)
    arrays = vit_arrays(source, config, final_norm="norm")
    source.ignore(lambda key: key.startswith("classification_head."), _CLASSIFIER)
    source.ignore(lambda key: key.startswith("conv3d_transpose"), _RECONSTRUCTION)
    source.check_all_used()
    return Converted(config, arrays)


def convert_mae(source: Source, settings: Settings) -> Converted:
    """A MaskedAutoEncoderViT. Settings as of `convert_vit`, and decoder_heads. Its masks were of single tokens (our `mask_unit` of 1).

    Raises CheckpointError as `convert_vit` does.
    """
    encoder = vit_config(source, settings)
    width = source.shape("decoder_embed.weight")[0]
    table = source["decoder_pos_embedding"]
    config = MAEConfig(
        encoder,
        decoder_width=width,
        decoder_depth=_depth(source, "decoder_blocks"),
        decoder_heads=heads_of(settings, "decoder_heads", width),
        decoder_mlp_ratio=source.shape("decoder_blocks.0.mlp.linear1.weight")[0] / width,
        decoder_positions=_kind(table, encoder.grid),
        mask_unit=(1, 1, 1),
    )
    arrays = {f"encoder.{name}": array for name, array in vit_arrays(source, encoder, final_norm=f"blocks.{encoder.depth}").items()}
    arrays |= block_arrays(source, "decoder_blocks", "decoder.blocks", config.decoder_depth)
    arrays |= norm(source, f"decoder_blocks.{config.decoder_depth}", "decoder.norm")
    arrays |= linear(source, "decoder_embed", "decoder.project") | linear(source, "decoder_pred", "decoder.head")
    arrays["decoder.mask_token"] = source["mask_tokens"].reshape(-1)
    if config.decoder_positions == "learned":
        arrays["decoder.positions.table"] = table.reshape(*encoder.grid, width)
    source.check_all_used()
    return Converted(
        config, arrays, notes=["predicted patches have the peer's order of voxels; its tutorials train (x y z c), which is ours"]
    )


def vit_config(source: Source, settings: Settings) -> ViTConfig:
    """The config of a ViT at the top of `source`. Settings: heads, crop, token (as `convert_vit` says)."""
    tokens, width = source.shape(_TABLE)[1:]
    token, in_channels = _token(source, settings)
    crop = crop_of(settings, tokens, token)
    grid = tuple(c // t for c, t in zip(crop, token))
    return ViTConfig.classic(
        in_channels=in_channels,
        crop=crop,
        token=token,
        width=width,
        depth=_depth(source, "blocks"),
        heads=heads_of(settings, "heads", width),
        positions=_kind(source[_TABLE], grid),
        mlp_ratio=source.shape("blocks.0.mlp.linear1.weight")[0] / width,
        qkv_bias="blocks.0.attn.qkv.bias" in source,
        class_token="cls_token" in source,
    )


def vit_arrays(source: Source, config: ViTConfig, *, final_norm: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of our ViT from one at `prefix`, whose last norm is called `final_norm`; parts that MONAI never uses are ignored aloud."""
    table = source[prefix + _TABLE]
    arrays = block_arrays(source, f"{prefix}blocks", "blocks", config.depth) | norm(source, prefix + final_norm, "norm")
    if prefix + _PERCEPTRON in source:
        arrays |= linear(source, (prefix + _PERCEPTRON).removesuffix(".weight"), "patch")
    else:
        weight = source[prefix + _CONV]
        arrays["patch.kernel"] = weight.transpose(2, 3, 4, 1, 0).reshape(-1, weight.shape[0])
        arrays["patch.bias"] = source[(prefix + _CONV).removesuffix("weight") + "bias"]
    if config.positions == "learned":
        arrays["positions.table"] = table.reshape(*config.grid, config.width)
    if config.class_token:
        arrays["class_token"] = source[f"{prefix}cls_token"].reshape(-1)
    source.ignore(lambda key: ".norm_cross_attn." in key or ".cross_attn." in key, "needs a second input, which this network never has")
    source.ignore(lambda key: key == f"{prefix}patch_embedding.cls_token", "made by MONAI before 0.9, and never used")
    return arrays


def block_arrays(source: Source, theirs: str, ours: str, depth: int) -> dict[str, np.ndarray]:
    """Transformer blocks `theirs.i` as `ours.i`."""
    arrays: dict[str, np.ndarray] = {}
    for i in range(depth):
        for part in ("norm1", "norm2"):
            arrays |= norm(source, f"{theirs}.{i}.{part}", f"{ours}.{i}.{part}")
        for part, other in _PARTS.items():
            arrays |= linear(source, f"{theirs}.{i}.{other}", f"{ours}.{i}.{part}")
    return arrays


def crop_of(settings: Settings, tokens: int, token: Triple, published: Triple | None = None) -> Triple:
    """The crop (voxels) that a table of `tokens` positions was made for: as set, else `published` if it fits, else as many tokens along each axis."""
    side = round(tokens ** (1 / 3))
    if published and np.prod([c // t for c, t in zip(published, token)]) == tokens:
        crop = _triple("crop", settings.take("crop", published, "the published size"))
    elif side**3 != tokens:
        crop = _triple("crop", settings.need("crop", f"a table of {tokens} positions is not that of a cube"))
    else:
        cube = tuple(side * t for t in token)
        crop = _triple("crop", settings.take("crop", cube, "as many tokens along each axis"))
    if any(c % t for c, t in zip(crop, token)) or int(np.prod([c // t for c, t in zip(crop, token)])) != tokens:
        raise CheckpointError(
            f"the position table has {tokens} places, which is not what a crop of {crop} voxels has: give the img_size it was made for, "
            "--set crop=X,Y,Z"
        )
    return crop


def _token(source: Source, settings: Settings) -> tuple[Triple, int]:
    if _CONV in source:
        shape = source.shape(_CONV)
        if len(shape) != 5:
            raise CheckpointError(f"this is a ViT for images of {len(shape) - 2} axes; jaxseg has networks for three")
        return (shape[2], shape[3], shape[4]), shape[1]
    columns = source.shape(_PERCEPTRON)[1]
    token = _triple("token", settings.take("token", (16, 16, 16), "the published size"))
    channels, rest = divmod(columns, int(np.prod(token)))
    if rest or not channels:
        raise CheckpointError(
            f"patches have {columns} numbers, which tokens of {token} voxels do not divide: give theirs, --set token=X,Y,Z"
        )
    return token, channels


def heads_of(settings: Settings, name: str, width: int) -> int:
    """Attention heads, which no array tells: as set, else MONAI's 12 where the width allows them. ConfigError for no number of heads."""
    if width % 24:
        return whole_number(name, settings.need(name, f"a width of {width} does not split into the published 12 heads"))
    return whole_number(name, settings.take(name, 12, "MONAI's default"))


def _depth(source: Source, blocks: str) -> int:
    depth = 0
    while f"{blocks}.{depth}.mlp.linear1.weight" in source:
        depth += 1
    return depth


def _kind(table: np.ndarray, grid: Sequence[int]) -> Kind:
    """MONAI keeps a table whatever the kind of positions: fixed waves and nothing at all are told by their values."""
    if not table.any():
        return "none"
    x, y, z = grid
    fixed = sincos_table((x, y, z), table.shape[-1]).reshape(table.shape)
    return "sincos" if np.abs(table - fixed).max() < 1e-4 else "learned"


def _triple(name: str, value: Any) -> Triple:
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(numbers) != 3 or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ConfigError(f"{name} is {value!r}; expected a number of voxels, or one for each of x, y and z")
    x, y, z = numbers
    return x, y, z


LAYOUTS = (
    Layout("MONAI MaskedAutoEncoderViT", _is_mae, convert_mae),
    Layout("MONAI ViTAutoEnc", _is_autoencoder, convert_vit),
    Layout("MONAI ViT", _is_vit, convert_vit),
)
