"""Primus of nnU-Net and EvaMAE of nnssl in our names, for both orders in which their tokens were flattened. Proven equal in the tests.

EvaMAE, and Primus of dynamic-network-architectures before June 2025, flatten tokens as (h w d); Primus since then as (w h d), the order of our
axes. In the first kind the position table and the rotary angles of w and h are exchanged, and no array's shape tells.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.models.conv_stem import ConvStemConfig
from jaxseg.models.eva import EvaConfig
from jaxseg.models.eva_mae import EvaMAEConfig
from jaxseg.models.positions import Triple
from jaxseg.models.primus import PrimusConfig
from jaxseg.zoo.convert.eva_blocks import Order, block_arrays, check_exchangeable, grid_table, hidden_ratio
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, kernel, norm, transposed_kernel, whole_number
from jaxseg.zoo.convert.token_order import better_order, read_sample

_HEADS = {396: 6, 792: 12, 864: 12, 1056: 16}
_DOWN, _UP = "down_projection", "up_projection.decode"
_BLOCK = "blocks.0.attn.q_proj.weight"
_AXES = "trained on arrays in SimpleITK's axis order: give this network (b, z, y, x, c)"
_CARD = {"axes": "z, y, x, channel", "orientation": "as in the file"}
_CONV = {"conv1": "conv1", "conv2": "conv2"}


def convert_primus(source: Source, settings: Settings) -> Converted:
    """A Primus of any generation. Settings: heads, crop, token_order ("whd" or "hwd"), rotary, rope_base and, with a stem, activation.

    Raises CheckpointError if a key is missing or is none of the published layout's, ConfigError if a setting does not fit the arrays.
    """
    encoder = _encoder_config(source, settings)
    order = _order(settings, "whd", "dynamic-network-architectures since June 2025; nnU-Net's files from before then need hwd")
    arrays = _encoder(source, encoder, order)
    whole = f"{_UP}.{_last(source)}.weight" in source
    if whole:
        arrays |= _decode(source, "decoder")
    source.ignore(lambda key: key == "mask_token", "stands for dropped patches, in training alone")
    _finish(source)
    classes = source.shape(f"{_UP}.{_last(source)}.bias")[0] if whole else 2
    missing = {} if whole else {"decoder": "the file holds the encoder alone"}
    return Converted(PrimusConfig(encoder, num_classes=classes), arrays, missing, [_said(order), _AXES], dict(_CARD))


def convert_mae(source: Source, settings: Settings) -> Converted:
    """nnssl's EvaMAE. Settings: those of Primus, decoder_heads, and `sample`, an .npy file of one training crop as the network saw it.

    With a sample and no token_order, the order is the one that reconstructs the sample's hidden patches better; else EvaMAE's own.
    """
    encoder = _encoder_config(source, settings)
    heads = whole_number("decoder_heads", settings.take("decoder_heads", encoder.heads, "as many as the encoder has"))
    config = EvaMAEConfig(encoder, decoder_depth=_depth(source, "decoder"), decoder_heads=heads)
    if "sample" in settings.given and "token_order" not in settings.given:
        image = read_sample(settings.need("sample", "evidence for the token order"), config)
        made: dict[Order, dict[str, np.ndarray]] = {"whd": _mae(source, config, "whd"), "hwd": _mae(source, config, "hwd")}
        order, note = better_order(config, made, image)
        arrays = made[order]
    else:
        chosen = _order(
            settings, "hwd", "nnssl's EvaMAE; --set sample=FILE.npy, a normalised training crop, decides by reconstruction instead"
        )
        arrays, note = _mae(source, config, chosen), _said(chosen)
    _finish(source)
    return Converted(config, arrays, notes=[note, _AXES], card=dict(_CARD))


def _encoder_config(source: Source, settings: Settings) -> EvaConfig:
    width, depth = source.shape("eva.norm.weight")[0], _depth(source, "eva")
    why = "as published" if width in _HEADS else "72 numbers a head"
    heads = whole_number("heads", settings.take("heads", _HEADS.get(width, max(1, width // 72)), why))
    rotary = bool(settings.take("rotary", True, "as published"))
    stem = _stem_config(source, settings)
    token = _token(source, stem)
    registers = source.shape("register_tokens")[1] if "register_tokens" in source else 0
    crop = _crop(source, settings, token, registers)
    key = f"{_DOWN}.proj.weight" if stem is None else f"{_DOWN}.stem.blocks.0.conv1.conv.weight"
    return EvaConfig(
        in_channels=source.shape(key)[1],
        crop=crop,
        token=token,
        width=width,
        depth=depth,
        heads=heads,
        stem=stem,
        table="eva.pos_embed" in source,
        rotary=rotary,
        rope_base=float(settings.take("rope_base", 10000.0, "as published")) if rotary else 10000.0,
        mlp_ratio=hidden_ratio(width, source.shape("eva.blocks.0.mlp.fc1_g.weight")[0]),
        layer_scale=0.1 if "eva.blocks.0.gamma_1" in source else None,
        attention_norm="eva.blocks.0.attn.norm.weight" in source,
        registers=registers,
        drop_path=0.2 if stem is not None and stem.skips else 0.0,
    )


def _stem_config(source: Source, settings: Settings) -> ConvStemConfig | None:
    if f"{_DOWN}.proj.weight" in source:
        return None
    count = _count(source, f"{_DOWN}.stages.{{}}.blocks.0.conv1.conv.weight")
    depths = tuple(_count(source, f"{_DOWN}.stages.{i}.blocks.{{}}.conv1.conv.weight") for i in range(count))
    first = source.shape(f"{_DOWN}.stem.blocks.0.conv1.conv.weight")[0]
    widths = (first, *(source.shape(f"{_DOWN}.stages.{i}.blocks.0.conv1.conv.weight")[0] for i in range(count)))
    skips = f"{_DOWN}.proj_to_tokens.0.weight" in source
    second = not skips and widths == (32, 32, 64, 128)
    activation = settings.take("activation", "relu" if second else "leaky_relu", f"the stem of Primus {'V2' if second else 'V3'}")
    return ConvStemConfig(widths, depths, activation, skips)


def _token(source: Source, stem: ConvStemConfig | None) -> Triple:
    x, y, z = source.shape(f"{_DOWN}.proj.weight")[2:] if stem is None else (stem.reduction,) * 3
    return x, y, z


def _crop(source: Source, settings: Settings, token: Triple, registers: int) -> Triple:
    """The crop that the position table is for. A cube of tokens is the default; without a table it matters to no array."""
    if "eva.pos_embed" not in source:
        return _triple(settings.take("crop", tuple(20 * t for t in token), "20 tokens along each axis, as published"))
    places = source.shape("eva.pos_embed")[1] - registers
    side = round(places ** (1 / 3))
    if side**3 == places:
        crop = _triple(settings.take("crop", tuple(side * t for t in token), f"the position table has {side}³ places"))
    else:
        crop = _triple(settings.need("crop", f"the position table has {places} places, which is no cube"))
    if any(c % t for c, t in zip(crop, token)) or math.prod(c // t for c, t in zip(crop, token)) != places:
        raise ConfigError(f"the position table has {places} places, which is not what a crop of {crop} voxels in tokens of {token} has")
    return crop


def _triple(value: Any) -> Triple:
    sides = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"crop is {value!r}; expected three whole numbers of voxels")
    x, y, z = sides
    return x, y, z


def _order(settings: Settings, default: Order, why: str) -> Order:
    order = settings.take("token_order", default, why)
    if order not in ("whd", "hwd"):
        raise ConfigError(f"token_order is {order!r}; expected 'whd' or 'hwd'")
    return order


def _said(order: Order) -> str:
    return (
        "tokens were flattened as (w h d), our order" if order == "whd" else "tokens were flattened as (h w d): table and angles exchanged"
    )


def _encoder(source: Source, config: EvaConfig, order: Order) -> dict[str, np.ndarray]:
    arrays = _eva(source, "eva", config, order)
    if config.registers:
        # The peer adds the table's first rows to its registers: two parameters that are one.
        arrays["registers"] = source["register_tokens"][0] + (source["eva.pos_embed"][0, : config.registers] if config.table else 0)
    if config.stem is None:
        weight = source[f"{_DOWN}.proj.weight"]
        arrays |= {"patch.kernel": kernel(weight).reshape(-1, config.width), "patch.bias": source[f"{_DOWN}.proj.bias"]}
    else:
        arrays |= _stem(source, config.stem)
    return {f"encoder.{name}": array for name, array in arrays.items()}


def _eva(source: Source, theirs: str, config: EvaConfig, order: Order) -> dict[str, np.ndarray]:
    check_exchangeable(config.grid, config.rotary, order)
    arrays = norm(source, f"{theirs}.norm", "norm")
    if config.table:
        arrays["positions.table"] = grid_table(source[f"{theirs}.pos_embed"][0, config.registers :], config.grid, order)
    for i in range(config.depth):
        arrays |= block_arrays(source, f"{theirs}.blocks.{i}", f"blocks.{i}", heads=config.heads, rotary=config.rotary, order=order)
    return arrays


def _stem(source: Source, config: ConvStemConfig) -> dict[str, np.ndarray]:
    arrays = _stem_block(source, f"{_DOWN}.stem.blocks.0", "stem.first")
    for i, depth in enumerate(config.depths):
        for j in range(depth):
            arrays |= _stem_block(source, f"{_DOWN}.stages.{i}.blocks.{j}", f"stem.levels.{i}.{j}")
    arrays |= _convolution(source, f"{_DOWN}.final_proj", "stem.project")
    for i in range(len(config.depths) if config.skips else 0):
        arrays |= _convolution(source, f"{_DOWN}.proj_to_tokens.{i}", f"stem.skips.{i}")
        arrays[f"stem.skips.{i}.gamma"] = source[f"{_DOWN}.scale_proj_to_tokens.{i}"]
    return arrays


def _stem_block(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    # The peer's shortcut is a list: average pooling, if it strides, and then the convolution, if channels change.
    parts = _CONV | {"shortcut": next((f"skip.{i}" for i in (0, 1) if f"{theirs}.skip.{i}.conv.weight" in source), "")}
    arrays: dict[str, np.ndarray] = {}
    for part, other in parts.items():
        if other:
            arrays |= _convolution(source, f"{theirs}.{other}.conv", f"{ours}.{part}.conv") | norm(
                source, f"{theirs}.{other}.norm", f"{ours}.{part}.norm"
            )
    return arrays


def _decode(source: Source, ours: str) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    last = _last(source)
    for i in range(last + 1):
        theirs = f"{_UP}.{i}" if i == last else f"{_UP}.{i}.0"
        arrays |= {f"{ours}.steps.{i}.up.kernel": transposed_kernel(source[f"{theirs}.weight"])}
        arrays |= {f"{ours}.steps.{i}.up.bias": source[f"{theirs}.bias"]}
        if i < last:
            arrays |= norm(source, f"{_UP}.{i}.1", f"{ours}.steps.{i}.norm")
    return arrays


def _mae(source: Source, config: EvaMAEConfig, order: Order) -> dict[str, np.ndarray]:
    decoder = _eva(source, "decoder", config.decoder, order) | {"mask_token": source["mask_token"].reshape(-1)} | _decode(source, "up")
    return _encoder(source, config.encoder, order) | {f"decoder.{name}": array for name, array in decoder.items()}


def _convolution(source: Source, theirs: str, ours: str) -> dict[str, np.ndarray]:
    arrays = {f"{ours}.kernel": kernel(source[f"{theirs}.weight"])}
    return arrays | ({f"{ours}.bias": source[f"{theirs}.bias"]} if f"{theirs}.bias" in source else {})


def _finish(source: Source) -> None:
    source.ignore(lambda key: ".all_modules." in key, "the same arrays under a second name")
    source.ignore(lambda key: ".rope." in key, "rotary angles are computed")
    source.check_all_used()


def _depth(source: Source, theirs: str) -> int:
    return _count(source, f"{theirs}.blocks.{{}}.norm1.weight")


def _last(source: Source) -> int:
    """The number of PatchDecode's last layer, all before which are followed by a norm."""
    return _count(source, f"{_UP}.{{}}.0.weight")


def _count(source: Source, key: str) -> int:
    n = 0
    while key.format(n) in source:
        n += 1
    return n


def _is_primus(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return _has_encoder(shapes) and f"decoder.{_BLOCK}" not in shapes


def _is_mae(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return _has_encoder(shapes) and f"decoder.{_BLOCK}" in shapes


def _has_encoder(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    stems = ("proj.weight", "stem.blocks.0.conv1.conv.weight")
    return f"eva.{_BLOCK}" in shapes and any(f"{_DOWN}.{stem}" in shapes for stem in stems)


LAYOUTS = (Layout("nnU-Net Primus", _is_primus, convert_primus), Layout("nnssl EvaMAE", _is_mae, convert_mae))
