"""MONAI's `UNet`, `AttentionUnet` and `VNet` (1.6.1) in our names. Proven equal in `tests/models/test_resunet.py` and those beside it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.models.attention_unet import AttentionUNetConfig
from jaxseg.models.resunet import ResUNetConfig
from jaxseg.models.vnet import VNetConfig
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, kernel, transposed_kernel

Arrays = dict[str, np.ndarray]
_FROZEN = "batch norm is evaluated by its stored statistics, which stay as they are when the network is fine-tuned"
_INSIDE = ".1.submodule"  # a level of MONAI's UNet holds the next one
_V_DOWN = ("down_tr32", "down_tr64", "down_tr128", "down_tr256")
_V_UP = ("up_tr256", "up_tr128", "up_tr64", "up_tr32")


def _is_unet(state: Mapping[str, tuple[int, ...]]) -> bool:
    first = state.get("model.0.conv.unit0.conv.weight", state.get("model.0.conv.weight", ()))
    return len(first) == 5 and any(key in state for key in ("model.2.conv.weight", "model.2.0.conv.weight"))


def _is_attention_unet(state: Mapping[str, tuple[int, ...]]) -> bool:
    return len(state.get("model.0.conv.0.conv.weight", ())) == 5 and "model.1.attention.W_g.0.conv.weight" in state


def _is_vnet(state: Mapping[str, tuple[int, ...]]) -> bool:
    return len(state.get("in_tr.conv_block.conv.weight", ())) == 5 and "down_tr32.down_conv.weight" in state


def convert_unet(source: Source, settings: Settings) -> Converted:
    """MONAI's `UNet`. Settings: strides, dropout, adn_ordering, act where it has no parameters, and norm where it stores no statistics.

    Raises CheckpointError for another layout, ConfigError for a norm that jaxseg does not have.
    """
    levels = 1
    while _has_level(source, levels - 1):
        levels += 1
    config = _unet_config(source, settings, levels)
    arrays: Arrays = {}
    for level in range(levels):
        theirs = f"model{_INSIDE * level}" + (".0" if level < levels - 1 else "")
        arrays |= _unet_level(source, theirs, f"encoder.levels.{level}", config.num_res_units)
    for level in range(levels - 1):
        theirs, ours = f"model{_INSIDE * level}.2", f"decoder.{levels - 2 - level}"
        if config.num_res_units:
            arrays |= _unit(source, f"{theirs}.0", f"{ours}.up", transposed=True)
            arrays |= _unit(source, f"{theirs}.1.conv.unit0", f"{ours}.block.units.0")
        else:
            arrays |= _unit(source, theirs, f"{ours}.up", transposed=True)
    return _finished(source, config, arrays, frozen=config.norm == "frozen_batch")


def _has_level(source: Source, level: int) -> bool:
    # Every level but the coarsest has a way up.
    return any(f"model{_INSIDE * level}.2{part}.conv.weight" in source for part in ("", ".0"))


def _unet_config(source: Source, settings: Settings, levels: int) -> ResUNetConfig:
    tops = [f"model{_INSIDE * level}" + (".0" if level < levels - 1 else "") for level in range(levels)]
    units = 0
    while f"{tops[0]}.conv.unit{units}.conv.weight" in source:
        units += 1
    first = "conv.unit0" if units else None
    name = [f"{top}.{first}" if first else top for top in tops]
    shapes = [source.shape(f"{each}.conv.weight") for each in name]
    up = source.shape("model.2.0.conv.weight" if units else "model.2.conv.weight")
    order = settings.take("adn_ordering", "NDA", "MONAI's default")
    return ResUNetConfig(
        in_channels=shapes[0][1],
        num_classes=up[1],
        channels=tuple(shape[0] for shape in shapes),
        strides=_strides(settings, [_halved(source, top) if units else True for top in tops[:-1]]),
        kernel_size=_size(shapes[0]),
        up_kernel_size=_size(up),
        num_res_units=units,
        act="prelu" if f"{name[0]}.adn.A.weight" in source else settings.take("act", "relu", "no PReLU in the file"),
        norm=_unet_norm(source, settings, f"{name[0]}.adn.N", order),
        dropout=settings.take("dropout", 0.0, "MONAI's default"),
        bias=f"{name[0]}.conv.bias" in source,
        adn_ordering=order,
    )


def _halved(source: Source, top: str) -> bool:
    """Whether a residual unit has a stride: its shortcut then has the kernel of its convolutions, else one of 1x1x1 or none."""
    name = f"{top}.residual.weight"
    return name in source and _size(source.shape(name)) == _size(source.shape(f"{top}.conv.unit0.conv.weight"))


def _strides(settings: Settings, strided: list[bool]) -> Any:
    default = tuple(2 if each else 1 for each in strided)
    return _tuples(settings.take("strides", default, "the usual halving at each level"))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list | tuple) else value


def _unet_norm(source: Source, settings: Settings, name: str, order: Any) -> Any:
    if f"{name}.running_mean" in source:
        return "frozen_batch"
    affine = f"{name}.weight" in source
    kind = "instance_affine" if affine else "instance"
    if "N" not in str(order):
        return kind
    why = "arrays of a group norm would look the same" if affine else "MONAI's default; a network without norms would look the same"
    given = settings.take("norm", kind, why)
    if given != kind:
        raise ConfigError(
            f"norm is {given!r}, but a network with {'scales' if affine else 'no arrays'} of norms and without stored statistics is loaded as "
            f"{kind} alone: jaxseg has no other norm for it. For one without norms, give --set adn_ordering=DA"
        )
    return kind


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = shape[2:]
    return x, y, z


def _unet_level(source: Source, theirs: str, ours: str, units: int) -> Arrays:
    if not units:
        return _unit(source, theirs, ours)
    arrays: Arrays = {}
    for i in range(units):
        arrays |= _unit(source, f"{theirs}.conv.unit{i}", f"{ours}.units.{i}")
    if f"{theirs}.residual.weight" in source:
        arrays |= _conv(source, f"{theirs}.residual", f"{ours}.shortcut")
    return arrays


def convert_attention_unet(source: Source, settings: Settings) -> Converted:
    """MONAI's `AttentionUnet`. Settings: strides, dropout. CheckpointError for another layout."""
    deeper = "model.1"
    tops = [deeper]
    while f"{deeper}.submodule.1.attention.W_g.0.conv.weight" in source:
        deeper = f"{deeper}.submodule.1"
        tops.append(deeper)
    pairs = ["model.0.conv", *(f"{top}.submodule.0.conv" for top in tops[:-1]), f"{tops[-1]}.submodule.conv"]
    shapes = [source.shape(f"{pair}.0.conv.weight") for pair in pairs]
    config = AttentionUNetConfig(
        in_channels=shapes[0][1],
        num_classes=source.shape("model.2.conv.weight")[0],
        channels=tuple(shape[0] for shape in shapes),
        strides=_strides(settings, [True] * len(tops)),
        kernel_size=_size(shapes[0]),
        up_kernel_size=_size(source.shape("model.1.upconv.up.conv.weight")),
        dropout=settings.take("dropout", 0.0, "MONAI's default"),
        norm="frozen_batch",
    )
    arrays = _conv(source, "model.2.conv", "head")
    for level, pair in enumerate(pairs):
        arrays |= _unit(source, f"{pair}.0", f"encoder.levels.{level}.first")
        arrays |= _unit(source, f"{pair}.1", f"encoder.levels.{level}.second")
    for level, top in enumerate(reversed(tops)):
        arrays |= _unit(source, f"{top}.upconv.up", f"decoder.{level}.up", transposed=True)
        arrays |= _unit(source, f"{top}.merge", f"decoder.{level}.merge")
        for part, other in {"below": "W_g", "skip": "W_x", "weight": "psi"}.items():
            arrays |= _conv(source, f"{top}.attention.{other}.0.conv", f"decoder.{level}.gate.{part}")
            arrays |= _norm(source, f"{top}.attention.{other}.1", f"decoder.{level}.gate.{part}.norm")
    return _finished(source, config, arrays, frozen=True)


def convert_vnet(source: Source, settings: Settings) -> Converted:
    """MONAI's `VNet`. Settings: dropout_prob_down, dropout_prob_up, dropout_dim, and act where it has no parameters."""
    first = source.shape("in_tr.conv_block.conv.weight")
    up = settings.take("dropout_prob_up", (0.5, 0.5), "MONAI's default")
    config = VNetConfig(
        in_channels=first[1],
        num_classes=source.shape("out_tr.conv2.weight")[0],
        feature=first[0],
        act="prelu" if "in_tr.act_function.weight" in source else settings.take("act", "elu", "MONAI's default"),
        dropout_prob_down=settings.take("dropout_prob_down", 0.5, "MONAI's default"),
        dropout_prob_up=(up[0], up[1]),
        dropout_dim=settings.take("dropout_dim", 3, "MONAI's default"),
        bias="in_tr.conv_block.conv.bias" in source,
        norm="frozen_batch",
    )
    arrays = _unit(source, "in_tr.conv_block", "encoder.stem.unit") | _act(source, "in_tr.act_function", "encoder.stem.act")
    arrays |= (
        _unit(source, "out_tr.conv_block", "last") | _act(source, "out_tr.act_function1", "act") | _conv(source, "out_tr.conv2", "head")
    )
    for level, theirs in enumerate(_V_DOWN):
        ours = f"encoder.levels.{level}"
        arrays |= _conv(source, f"{theirs}.down_conv", ours) | _vnet_stage(source, theirs, ours)
    for level, theirs in enumerate(_V_UP):
        ours = f"decoder.{level}"
        arrays |= _conv(source, f"{theirs}.up_conv", ours, transposed=True) | _vnet_stage(source, theirs, ours)
    return _finished(source, config, arrays, frozen=True)


def _vnet_stage(source: Source, theirs: str, ours: str) -> Arrays:
    arrays = _norm(source, f"{theirs}.bn1", f"{ours}.norm")
    arrays |= _act(source, f"{theirs}.act_function1", f"{ours}.act") | _act(source, f"{theirs}.act_function2", f"{ours}.last_act")
    i = 0
    while f"{theirs}.ops.{i}.conv_block.conv.weight" in source:
        arrays |= _unit(source, f"{theirs}.ops.{i}.conv_block", f"{ours}.stage.units.{i}")
        arrays |= _act(source, f"{theirs}.ops.{i}.act_function", f"{ours}.stage.acts.{i}")
        i += 1
    return arrays


def _conv(source: Source, theirs: str, ours: str, *, transposed: bool = False) -> Arrays:
    move = transposed_kernel if transposed else kernel
    arrays = {f"{ours}.kernel": move(source[f"{theirs}.weight"])}
    return arrays | ({f"{ours}.bias": source[f"{theirs}.bias"]} if f"{theirs}.bias" in source else {})


def _unit(source: Source, theirs: str, ours: str, *, transposed: bool = False) -> Arrays:
    """MONAI's `Convolution`: `conv`, and `adn` where something follows it."""
    arrays = _conv(source, f"{theirs}.conv", ours, transposed=transposed)
    if f"{theirs}.adn.N.weight" in source:
        arrays |= _norm(source, f"{theirs}.adn.N", f"{ours}.norm")
    return arrays | _act(source, f"{theirs}.adn.A", f"{ours}.act")


def _norm(source: Source, theirs: str, ours: str) -> Arrays:
    parts = {"scale": "weight", "bias": "bias"}
    if f"{theirs}.running_mean" in source:
        parts |= {"mean": "running_mean", "var": "running_var"}
    return {f"{ours}.{part}": source[f"{theirs}.{other}"] for part, other in parts.items()}


def _act(source: Source, theirs: str, ours: str) -> Arrays:
    return {f"{ours}.scale": source[f"{theirs}.weight"]} if f"{theirs}.weight" in source else {}


def _finished(source: Source, config: Any, arrays: Arrays, *, frozen: bool) -> Converted:
    source.ignore(lambda key: key.endswith(".num_batches_tracked"), "a counter of training steps")
    source.check_all_used()
    return Converted(config, arrays, notes=[_FROZEN] if frozen else [])


LAYOUTS = (
    Layout("MONAI UNet", _is_unet, convert_unet),
    Layout("MONAI AttentionUnet", _is_attention_unet, convert_attention_unet),
    Layout("MONAI VNet", _is_vnet, convert_vnet),
)
