"""nnU-Net's `architecture` block of a `plans.json` in the fields of `UNetConfig`, and how a plan's numbers are spelt out. Called by `unet`."""

from collections.abc import Mapping
from typing import Any

from jaxseg.errors import ConfigError
from jaxseg.models.instance_norm import EPSILON, SLOPE

_KINDS = {"PlainConvUNet": ("plain", "n_conv_per_stage"), "ResidualEncoderUNet": ("residual", "n_blocks_per_stage")}
_REQUIRED = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_op", "norm_op", "nonlin")
_ONLY: dict[str, tuple[Any, ...]] = {
    "conv_op": ("Conv3d",),
    "norm_op": ("InstanceNorm3d",),
    "nonlin": ("LeakyReLU",),
    "dropout_op": (None,),
    "nonlin_first": (False,),
    "block": ("BasicBlockD",),
    "bottleneck_channels": (None,),
}
"""Arguments that this network has one value for. Classes are compared by the last part of their dotted name."""
_DEFAULT_KWARGS: dict[str, dict[str, Any]] = {
    "norm_op_kwargs": {"eps": EPSILON, "affine": True, "momentum": None, "track_running_stats": False},
    "nonlin_kwargs": {"negative_slope": SLOPE, "inplace": None},
}
"""What the norm and the activation may be told; None where the value makes no difference to the network's output."""
_NO_EFFECT = ("dropout_op_kwargs", "input_channels", "num_classes")


def fields_of_plan(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `UNetConfig` that an `architecture` block (JSON) settles; see `UNetConfig.from_plan` for what is refused.

    What the peer's class has a default for may be missing: `conv_bias` is then False.
    """
    name, given = _parts(architecture)
    kind, blocks = _KINDS[name]
    required = (*_REQUIRED, blocks)
    if missing := [key for key in required if key not in given]:
        raise ConfigError(f"the plan's arch_kwargs have no {', '.join(missing)}; found {', '.join(given)}")
    extra = ("conv_bias", "stem_channels", "deep_supervision")
    if unknown := [key for key in given if key not in (*required, *extra, *_ONLY, *_DEFAULT_KWARGS, *_NO_EFFECT)]:
        raise ConfigError(f"the plan's {name} has {unknown[0]} = {given[unknown[0]]!r}, which this U-Net does not know")
    _check_values(given)
    stages = given["n_stages"]
    return {
        "kind": kind,
        "features": spelt_out("features_per_stage", given["features_per_stage"], stages),
        "kernels": spelt_out("kernel_sizes", given["kernel_sizes"], stages, 3),
        "strides": spelt_out("strides", given["strides"], stages, 3),
        "blocks": spelt_out(blocks, given[blocks], stages),
        "decoder_convs": spelt_out("n_conv_per_stage_decoder", given["n_conv_per_stage_decoder"], stages - 1),
        "stem": given.get("stem_channels"),
        "conv_bias": given.get("conv_bias", False),
        "deep_supervision": given.get("deep_supervision", False),
    }


def spelt_out(name: str, value: Any, count: int, axes: int = 0) -> tuple[Any, ...]:
    """`value` as `count` integers, or with `axes` as that many tuples of `axes` integers. A number stands for all entries and all axes.

    Raises ConfigError, naming the field, if the counts differ or something else than integers is found.
    """
    entries: list[Any] = [value] * count if isinstance(value, int) else list(value)
    if axes:
        entries = [(entry,) * axes if isinstance(entry, int) else tuple(entry) for entry in entries]
    rows = entries if axes else [(entry,) for entry in entries]
    if len(rows) != count or any(len(row) != (axes or 1) or not all(isinstance(number, int) for number in row) for row in rows):
        raise ConfigError(f"{name} is {value}; expected {count} {f'times {axes} integers' if axes else 'integers'}, or one for all")
    return tuple(entries)


def _parts(architecture: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if "network_class_name" not in architecture or "arch_kwargs" not in architecture:
        raise ConfigError(
            f"not an nnU-Net architecture block: it has no network_class_name or arch_kwargs but {', '.join(architecture)}; give "
            "plans['configurations']['3d_fullres']['architecture'] of a plans.json that nnU-Net 2.4 or later wrote"
        )
    name = architecture["network_class_name"].rpartition(".")[2]
    if name not in _KINDS:
        raise ConfigError(f"the plan builds a {architecture['network_class_name']}; known: {', '.join(_KINDS)}")
    return name, architecture["arch_kwargs"]


def _check_values(given: Mapping[str, Any]) -> None:
    for key, allowed in _ONLY.items():
        value = given.get(key, allowed[0])
        if (value.rpartition(".")[2] if isinstance(value, str) else value) not in allowed:
            raise ConfigError(f"the plan has {key} = {value!r}; this U-Net has {allowed[0]} alone")
    if "affine" not in (given.get("norm_op_kwargs") or {}):
        raise ConfigError("the plan's norm_op_kwargs have no affine = True; this U-Net's norms have a learned scale and bias")
    for key, known in _DEFAULT_KWARGS.items():
        for name, value in (given.get(key) or {}).items():
            if name not in known or known[name] not in (None, value):
                raise ConfigError(f"the plan has {name} = {value!r} in {key}; this U-Net has {known.get(name)!r} alone")
