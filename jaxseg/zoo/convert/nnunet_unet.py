"""nnU-Net's and nnssl's plain and residual-encoder U-Nets (dynamic-network-architectures 0.4), whole or the encoder alone, in our names.

Proven equal in `tests/models/test_unet.py`. Files keep most arrays under several names: these must agree.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import CheckpointError
from jaxseg.models.unet import UNetConfig
from jaxseg.zoo.convert.source import Converted, Layout, Settings, Source, kernel, norm, transposed_kernel

_REFUSED = {
    ".conv3.": "bottleneck blocks",
    ".squeeze_excitation.": "squeeze and excitation",
    ".running_mean": "batch norm",
    ".all_modules.2.": "dropout or an activation between convolution and norm",
}
"""Parts of keys that tell of variants which no published plan uses and `UNet` does not have."""
_FIRST_CONV = {"plain": "encoder.stages.0.0.convs.0.conv.weight", "residual": "encoder.stages.0.blocks.0.conv1.conv.weight"}
_AXES = (
    "trained with the axes (z, y, x), as nnU-Net reads images: its first spatial axis is the first here. "
    "Give it arrays (b, z, y, x, c) and spacing in that order"
)
_UNSTATED = "norms and activations are taken as nnU-Net's own, instance norm and LeakyReLU with a slope of 0.01: the file does not say them"
_CARD = {"axes": "z, y, x, channel", "orientation": "as in the file"}


def convert_unet(source: Source, settings: Settings) -> Converted:
    """The config and arrays of a `network_weights` dictionary, both kinds of encoder.

    Settings: `strides` of the encoder's stages if the file holds no decoder (whose kernels tell), `decoder_convs` and `num_classes` where they
    are not in it, `crop` in voxels. Raises CheckpointError if an array is missing, has no place here, or differs from its copy.
    """
    for part, what in _REFUSED.items():
        if found := next((key for key in source.state if part in key and _belongs(key)), None):
            raise CheckpointError(f"{found}: this network has {what}, which jaxseg's U-Net does not have")
    state = _Once(source)
    config, missing = _config(state, settings)
    arrays = _encoder(state, config)
    if "decoder" not in missing:
        arrays |= _decoder(state, config)
    if "head" not in missing:
        arrays |= _heads(state, config)
    source.ignore(lambda key: not _belongs(key), "not a part of the U-Net")
    source.check_all_used()
    return Converted(config, arrays, missing=missing, notes=[_AXES, _UNSTATED], card=dict(_CARD))


class _Once(Source):
    """A file's arrays by one name each. What is used here counts as used in the file; copies are compared, and said to be such."""

    def __init__(self, source: Source):
        self.whole, self.first = source, {}
        copies: set[str] = set()
        for key in source.state:
            name = _one_name(key)
            if name not in self.first:
                self.first[name] = key
            else:
                _check_equal(source.state, self.first[name], key)
                copies.add(key)
        super().__init__({name: source.state[key] for name, key in self.first.items()}, source.layout)
        source.ignore(lambda key: key in copies, "a copy of another array, found equal")

    def __getitem__(self, key: str) -> np.ndarray:
        array = super().__getitem__(key)
        self.whole.used.add(self.first[key])
        return array

    def count(self, pattern: str) -> int:
        """How many numbers in a row, from 0 on, `{}` in the name of an array may be."""
        number = 0
        while pattern.format(number) in self:
            number += 1
        return number


def _one_name(key: str) -> str:
    """The decoder holds the encoder again, a convolution's module holds its parts again as a sequence, an encoder may stand alone."""
    key = key.removeprefix("decoder.") if key.startswith("decoder.encoder.") else key
    key = f"encoder.{key}" if key.startswith(("stem.", "stages.")) else key
    return re.sub(r"\.all_modules\.(0|1)\.", lambda match: (".conv.", ".norm.")[int(match[1])], key)


def _belongs(key: str) -> bool:
    return _one_name(key).startswith(("encoder.", "decoder."))


def _check_equal(state: Mapping[str, np.ndarray], first: str, second: str) -> None:
    one, two = np.asarray(state[first]), np.asarray(state[second])
    if one is not two and not np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
        raise CheckpointError(f"{first} and {second} are one array in the network, but differ in the file: it was put together wrongly")


def _config(state: _Once, settings: Settings) -> tuple[UNetConfig, dict[str, str]]:
    """What shapes tell, and what of the network the file does not hold."""
    kind = "residual" if _FIRST_CONV["residual"] in state else "plain"
    unit = "encoder.stages.{}.blocks.{}.conv1.conv.weight" if kind == "residual" else "encoder.stages.{}.0.convs.{}.conv.weight"
    firsts = [state.shape(unit.format(i, 0)) for i in range(state.count(unit.format("{}", 0)))]
    if len(firsts[0]) != 5:
        raise CheckpointError(f"a network for {len(firsts[0]) - 2}D images ({unit.format(0, 0)} is {firsts[0]}); jaxseg's U-Net is for 3D")
    stem = state.shape("encoder.stem.convs.0.conv.weight") if kind == "residual" else firsts[0]
    stages, kernels = len(firsts), tuple((x, y, z) for _, _, x, y, z in firsts)
    missing = {}
    if not {"decoder.transpconvs.0.weight", "decoder.stages.0.convs.0.conv.weight"} <= state.state.keys():
        missing["decoder"] = "the file holds no decoder of convolutions"
    if missing or f"decoder.seg_layers.{stages - 2}.weight" not in state:
        missing["head"] = "the file holds no such decoder with a layer that gives logits"
    strides, decoder_convs = _decoder_plan(state, settings, kind, kernels, missing)
    config = UNetConfig(
        in_channels=stem[1],
        num_classes=_classes(state, settings, stages, missing),
        kind=kind,
        features=tuple(first[0] for first in firsts),
        kernels=kernels,
        strides=strides,
        blocks=tuple(state.count(unit.format(i, "{}")) for i in range(stages)),
        decoder_convs=decoder_convs,
        stem=stem[0] if kind == "residual" and stem[0] != firsts[0][0] else None,
        conv_bias=_FIRST_CONV[kind].replace("weight", "bias") in state,
        deep_supervision="head" not in missing and state.count("decoder.seg_layers.{}.weight") == stages - 1,
    )
    near = tuple(max(1, round(128 / step)) * step for step in config.stride)
    crop = settings.take("crop", near, "near nnU-Net's usual 128; any multiple of the strides fits")
    return dataclasses.replace(config, crop=crop), missing


def _decoder_plan(
    state: _Once, settings: Settings, kind: str, kernels: tuple[tuple[int, ...], ...], missing: Mapping[str, str]
) -> tuple[Any, Any]:
    """Strides of the encoder's stages (fine to coarse) and convolutions of the decoder's."""
    decoder = range(len(kernels) - 1)
    if state.count("decoder.transpconvs.{}.weight"):
        strides: Any = ((1, 1, 1), *(state.shape(f"decoder.transpconvs.{i}.weight")[2:] for i in reversed(decoder)))
    else:
        # nnU-Net does not pool an axis, on leaving a stage, along which that stage's kernels are 1.
        usual = ((1, 1, 1), *(tuple(2 if size > 1 else 1 for size in sizes) for sizes in kernels[:-1]))
        strides = settings.take("strides", usual, "without a decoder arrays do not tell; nnU-Net halves every axis that its kernels span")
    if "decoder" in missing:
        return strides, settings.take("decoder_convs", 1 if kind == "residual" else 2, "nnU-Net's own")
    return strides, tuple(state.count(f"decoder.stages.{i}.convs.{{}}.conv.weight") for i in decoder)


def _classes(state: _Once, settings: Settings, stages: int, missing: Mapping[str, str]) -> int:
    if "head" in missing:
        return settings.take("num_classes", 2, missing["head"])
    return state.shape(f"decoder.seg_layers.{stages - 2}.weight")[0]


def _encoder(state: _Once, config: UNetConfig) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    if config.kind == "residual":
        arrays |= _conv_norm(state, "encoder.stem.convs.0", "encoder.stem.convs.0")
    for i, count in enumerate(config.blocks):
        for j in range(count):
            if config.kind == "plain":
                arrays |= _conv_norm(state, f"encoder.stages.{i}.0.convs.{j}", f"encoder.stages.{i}.convs.{j}")
            else:
                ours = f"encoder.stages.{i}.first" if j == 0 else f"encoder.stages.{i}.blocks.{j - 1}"
                arrays |= _residual_block(state, f"encoder.stages.{i}.blocks.{j}", ours)
    return arrays


def _residual_block(state: _Once, theirs: str, ours: str) -> dict[str, np.ndarray]:
    arrays = _conv_norm(state, f"{theirs}.conv1", f"{ours}.conv1") | _conv_norm(state, f"{theirs}.conv2", f"{ours}.conv2")
    # The shortcut's convolution comes behind its pooling, where there is one.
    for place in (0, 1):
        if f"{theirs}.skip.{place}.conv.weight" in state:
            arrays |= _conv_norm(state, f"{theirs}.skip.{place}", f"{ours}.shortcut")
    return arrays


def _decoder(state: _Once, config: UNetConfig) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for i, count in enumerate(config.decoder_convs):
        theirs = f"decoder.transpconvs.{i}"
        arrays[f"decoder.{i}.up.kernel"] = transposed_kernel(state[f"{theirs}.weight"])
        arrays |= {f"decoder.{i}.up.bias": state[f"{theirs}.bias"]} if f"{theirs}.bias" in state else {}
        for j in range(count):
            arrays |= _conv_norm(state, f"decoder.stages.{i}.convs.{j}", f"decoder.{i}.stack.convs.{j}")
    return arrays


def _heads(state: _Once, config: UNetConfig) -> dict[str, np.ndarray]:
    """The peer's are numbered from coarse to fine, ours from fine to coarse and the finest apart."""
    finest = len(config.features) - 2
    names = {finest: "head"} | {finest - 1 - i: f"auxiliary.{i}" for i in range(finest if config.deep_supervision else 0)}
    arrays: dict[str, np.ndarray] = {}
    for number, ours in names.items():
        arrays[f"{ours}.kernel"] = kernel(state[f"decoder.seg_layers.{number}.weight"])
        arrays[f"{ours}.bias"] = state[f"decoder.seg_layers.{number}.bias"]
    return arrays


def _conv_norm(state: _Once, theirs: str, ours: str) -> dict[str, np.ndarray]:
    arrays = {f"{ours}.conv.kernel": kernel(state[f"{theirs}.conv.weight"])} | norm(state, f"{theirs}.norm", f"{ours}.norm")
    return arrays | ({f"{ours}.conv.bias": state[f"{theirs}.conv.bias"]} if f"{theirs}.conv.bias" in state else {})


def _recognise(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(_one_name(key) == _FIRST_CONV[kind] for key in shapes)


LAYOUTS = (
    Layout("nnU-Net PlainConvUNet", lambda shapes: _recognise("plain", shapes), convert_unet),
    Layout("nnU-Net ResidualEncoderUNet", lambda shapes: _recognise("residual", shapes), convert_unet),
)
