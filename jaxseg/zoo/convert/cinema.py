"""CineMA's published safetensors (mathpluscode/CineMA, MIT) in our names: the encoder of one view. Asked by `zoo.convert.recognise`.

Layout only: names, shapes and blocks are those of its published sources; the peer's package was never run, nor a published file seen. A restatement
of its blocks in torch is compared in `tests/zoo/test_convert_cinema.py`.
"""

from collections.abc import Mapping

import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.models.cinema import CineMAConfig
from jaxseg.models.positions import Triple, sincos_table
from jaxseg.zoo.convert.monai_vit import crop_of
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, kernel, linear, norm, whole_number

_DOWN, _FUSION = "enc_down_dict", "enc_fusion_dict"
_CROPS: dict[int, Triple] = {3: (192, 192, 16), 2: (256, 256, 1)}
"""Published image sizes by the axes of a view: the short-axis stack, the long-axis planes."""
_HEADS = {768: 12, 1024: 16, 1280: 16}
_NOTES = (
    "layout only: blocks and names after CineMA's published sources; its package was never run against this network",
    "made for intensities scaled to 0…1 and voxels of 1 mm in the plane (10 mm between short-axis slices), zeros behind the last voxel",
)


def _is_cinema(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    views = _views(shapes)
    return bool(views) and "encoder.cls_token" in shapes and all(f"{_FUSION}.{view}.norm.weight" in shapes for view in views)


def convert_cinema(source: Source, settings: Settings) -> Converted:
    """The encoder of one view. Settings: view ("sax"), crop (the image size of its position table) and heads.

    Raises ConfigError if the file does not hold that view; CheckpointError if a key is missing, is none of the published layout's, or if crop does
    not fit the arrays.
    """
    views = _views(source.state)
    view = settings.take("view", "sax" if "sax" in views else views[0], f"the file holds {', '.join(views)}")
    if view not in views:
        raise ConfigError(f"view is {view!r}; this file holds {', '.join(views)}")
    down, fusion = f"{_DOWN}.{view}", f"{_FUSION}.{view}"
    config = _config(source, settings, down, fusion)
    arrays = _stem_arrays(source, down, config) | _transformer_arrays(source, config)
    arrays |= linear(source, f"{down}.patch_embed.proj", "transformer.patch") | linear(source, f"{down}.linear", "transformer.project")
    table = source[f"{down}.pos_embed"]
    if config.positions == "learned":
        arrays["transformer.positions.table"] = table.reshape(*config.transformer.grid, config.width)
    for level in range(len(config.stem_widths)):
        arrays |= _convolution(source, f"{fusion}.down_convs.{level}", f"fusion.down.{level}")
    arrays |= norm(source, f"{fusion}.norm", "fusion.norm")
    _ignore_the_rest(source, view, views)
    source.check_all_used()
    return Converted(config, arrays, notes=[f"the encoder of the view {view}, whose tokens see no other view", *_NOTES])


def _views(names: Mapping[str, object]) -> list[str]:
    return sorted({key.split(".")[1] for key in names if key.startswith(f"{_DOWN}.") and key.endswith(".patch_embed.proj.weight")})


def _config(source: Source, settings: Settings, down: str, fusion: str) -> CineMAConfig:
    first = source.shape(f"{down}.conv_blocks.0.patch_embed.conv.weight")
    levels = _count(source, f"{down}.conv_blocks", "patch_embed.conv.weight")
    stem_depth = _count(source, f"{down}.conv_blocks.0.conv", "conv1.weight")
    widths = tuple(source.shape(f"{down}.conv_blocks.{i}.patch_embed.conv.weight")[0] for i in range(levels))
    patch, scale = _triple(first[2:]), _triple(source.shape(f"{fusion}.down_convs.{levels - 1}.weight")[2:])
    token = (patch[0] * scale[0] ** levels, patch[1] * scale[1] ** levels, patch[2] * scale[2] ** levels)
    table = source[f"{down}.pos_embed"]
    crop = crop_of(settings, table.shape[1], token, _CROPS.get(len(first) - 2))
    width = table.shape[2]
    grid = (crop[0] // token[0], crop[1] // token[1], crop[2] // token[2])
    fixed = np.abs(table[0] - sincos_table(grid, width).reshape(-1, width)).max() < 1e-4
    return CineMAConfig(
        in_channels=first[1],
        crop=crop,
        patch=patch,
        scale=scale,
        stem_widths=widths,
        stem_depth=stem_depth,
        kernel=_triple(source.shape(f"{down}.conv_blocks.0.conv.0.dw_conv.weight")[2:]),
        width=width,
        depth=_count(source, "encoder.blocks", "norm1.weight"),
        heads=_heads(settings, width),
        positions="sincos" if fixed else "learned",
    )


def _stem_arrays(source: Source, down: str, config: CineMAConfig) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for level in range(len(config.stem_widths)):
        theirs, ours = f"{down}.conv_blocks.{level}", f"encoder.levels.{level}"
        arrays |= _convolution(source, f"{theirs}.patch_embed.conv", f"{ours}.reduce")
        arrays |= norm(source, f"{theirs}.patch_embed.norm", f"{ours}.norm")
        for i in range(config.stem_depth):
            block, own = f"{theirs}.conv.{i}", f"{ours}.blocks.{i}"
            arrays |= norm(source, f"{block}.norm1", f"{own}.norm1") | norm(source, f"{block}.norm2", f"{own}.norm2")
            arrays |= _convolution(source, f"{block}.dw_conv", f"{own}.depthwise")
            for part, other in {"before": "conv1", "after": "conv2", "mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}.items():
                arrays |= _pointwise(source, f"{block}.{other}", f"{own}.{part}")
    return arrays


def _transformer_arrays(source: Source, config: CineMAConfig) -> dict[str, np.ndarray]:
    arrays = norm(source, "encoder.norm", "transformer.norm") | {"transformer.class_token": source["encoder.cls_token"].reshape(-1)}
    for i in range(config.depth):
        theirs, ours = f"encoder.blocks.{i}", f"transformer.blocks.{i}"
        arrays |= norm(source, f"{theirs}.norm1", f"{ours}.norm1") | norm(source, f"{theirs}.norm2", f"{ours}.norm2")
        weights = [source[f"{theirs}.attn.{part}.weight"] for part in ("q", "kv")]
        arrays[f"{ours}.attention.qkv.kernel"] = np.concatenate(weights).T
        arrays[f"{ours}.attention.qkv.bias"] = np.concatenate([source[f"{theirs}.attn.{part}.bias"] for part in ("q", "kv")])
        for part, other in {"attention.out": "attn.proj", "mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}.items():
            arrays |= linear(source, f"{theirs}.{other}", f"{ours}.{part}")
    return arrays


def _ignore_the_rest(source: Source, view: str, views: list[str]) -> None:
    for other in views:
        if other != view:
            parts = (f"{_DOWN}.{other}.", f"{_FUSION}.{other}.")
            source.ignore(lambda key, parts=parts: key.startswith(parts), f"of the view {other}; --set view={other} takes it instead")
    pretrained = any(key.startswith("decoder.") for key in source.state)
    source.ignore(lambda key: key.startswith(("decoder.", "dec_linear.", "dec_embed_dict.")), "of the decoder, which draws hidden patches")
    why = "of the decoder, which draws hidden patches" if pretrained else "classifies whole scans, for which we have no head"
    source.ignore(lambda key: key.startswith("pred_head_dict."), why)


def _convolution(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    """A convolution of a stack or, with one place along z, of a plane."""
    weight = source[f"{theirs}.weight"]
    weight = weight[..., None] if weight.ndim == 4 else weight
    return {f"{ours}.kernel": kernel(weight), f"{ours}.bias": source[f"{theirs}.bias"]}


def _pointwise(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    """A convolution of single voxels as a matrix."""
    weight = source[f"{theirs}.weight"]
    return {f"{ours}.kernel": weight.reshape(weight.shape[:2]).T, f"{ours}.bias": source[f"{theirs}.bias"]}


def _count(source: Source, theirs: str, part: str) -> int:
    count = 0
    while f"{theirs}.{count}.{part}" in source:
        count += 1
    return count


def _heads(settings: Settings, width: int) -> int:
    if width not in _HEADS:
        return whole_number("heads", settings.need("heads", f"a width of {width} is none of the published {', '.join(map(str, _HEADS))}"))
    return whole_number("heads", settings.take("heads", _HEADS[width], "as published for this width"))


def _triple(sizes: tuple[int, ...]) -> Triple:
    x, y, z = (*sizes, 1)[:3]
    return x, y, z


LAYOUTS = (Layout("CineMA", _is_cinema, convert_cinema),)
