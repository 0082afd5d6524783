"""Our UNETR and SwinUNETR as a `state_dict` of MONAI's, which loads it with `strict=True`. Called by `jaxseg export-torch`."""

from collections.abc import Iterable

import numpy as np
from flax import nnx

from jaxseg.errors import ConfigError
from jaxseg.models.swin import SwinConfig
from jaxseg.models.swin_unetr import SwinUNETR, SwinUNETRConfig
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.windows import relative_index
from jaxseg.zoo.convert.monai_table import Row, decoder_rows, head_rows, swin_rows, swin_skip_rows, unetr_rows
from jaxseg.zoo.names import flatten_params

_FIXED_BEFORE = {"window_size": (7, 7, 7), "mlp_ratio": 4.0, "qkv_bias": True, "patch_norm": False, "use_v2": False}
"""What a SwinUNETR of MONAI before 1.5 has always, or by default."""


def export_monai(network: nnx.Module, *, old_merging: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a UNETR or SwinUNETR by the names of MONAI 1.6.1, float32 copies in C order, ready for safetensors; buffers included.

    Build MONAI's network with `monai_arguments(network)` and load them with `strict=True`: the logits are equal. Converting the arrays back
    gives the network again, to the bit. Raises ConfigError for a network that MONAI has not, saying what differs. A SwinUNETR with
    "merging_repeated" is equal in MONAI 0.9 to 1.4 alone and differs silently in later ones, so it is written only with `old_merging`.
    """
    if isinstance(network, SwinUNETR):
        _refuse("SwinUNETR", _swin_differences(network.config, old_merging))
        rows = [*swin_rows(network.config.encoder), *swin_skip_rows(network.config), *decoder_rows(5), *head_rows()]
        return _written(network, rows) | _swin_buffers(network.config.encoder)
    if isinstance(network, UNETR):
        _refuse("UNETR", _unetr_differences(network.config))
        return _written(network, unetr_rows(network.config)) | _unreached_norms(network.config)
    raise ConfigError(f"a {type(network).__name__} has no counterpart in MONAI's names here; UNETR and SwinUNETR have")


def monai_arguments(network: UNETR | SwinUNETR) -> dict[str, object]:
    """The keyword arguments of MONAI's class of the same name that `export_monai`'s arrays fit, in the versions of `monai_versions`.

    Those before 1.5 ask for `img_size` too, multiples of 32 that shape nothing; arguments that have their only value, or its default, there are left
    out, "merging_repeated" among them, which is what they merge by.
    """
    if isinstance(network, SwinUNETR):
        encoder = network.config.encoder
        arguments: dict[str, object] = {
            "in_channels": encoder.in_channels,
            "out_channels": network.config.num_classes,
            "feature_size": encoder.feature,
            "depths": encoder.depths,
            "num_heads": encoder.heads,
            "window_size": encoder.window,
            "mlp_ratio": encoder.mlp_ratio,
            "qkv_bias": encoder.qkv_bias,
            "patch_norm": encoder.patch_norm,
            "normalize": encoder.normalize,
            "downsample": encoder.downsample,
            "use_v2": encoder.use_v2,
        }
        if encoder.downsample != "merging_repeated":
            return arguments
        kept = {name: value for name, value in arguments.items() if name != "downsample" and _FIXED_BEFORE.get(name) != value}
        return {"img_size": (96, 96, 96), **kept}
    vit = network.config.encoder
    return {
        "in_channels": vit.in_channels,
        "out_channels": network.config.num_classes,
        "img_size": vit.crop,
        "feature_size": network.config.feature,
        "hidden_size": vit.width,
        "mlp_dim": vit.block.hidden,
        "num_heads": vit.heads,
        "proj_type": "conv",
        "qkv_bias": vit.qkv_bias,
    }


def monai_versions(network: UNETR | SwinUNETR) -> str | None:
    """The versions of MONAI that alone compute what this network does; None where those of today do."""
    old = isinstance(network, SwinUNETR) and network.config.encoder.downsample == "merging_repeated"
    return "0.9 to 1.4" if old else None


def _written(network: nnx.Module, rows: Iterable[Row]) -> dict[str, np.ndarray]:
    arrays, state = flatten_params(network), {}
    for row in rows:
        state[row.theirs] = np.array(row.write(arrays.pop(row.ours)), np.float32, order="C")
    assert not arrays, f"arrays without a row in the table: {sorted(arrays)}"
    return state


def _swin_buffers(config: SwinConfig) -> dict[str, np.ndarray]:
    return {
        f"swinViT.layers{stage + 1}.0.blocks.{i}.attn.relative_position_index": relative_index(config.window).astype(np.int64)
        for stage, depth in enumerate(config.depths)
        for i in range(depth)
    }


def _unreached_norms(config: UNETRConfig) -> dict[str, np.ndarray]:
    """A norm in each of MONAI's blocks that its forward pass never reaches, but strict loading asks for: as it is initialised."""
    values = {"weight": np.ones, "bias": np.zeros}
    width = config.encoder.width
    return {
        f"vit.blocks.{i}.norm_cross_attn.{part}": make(width, np.float32)
        for i in range(config.encoder.depth)
        for part, make in values.items()
    }


def _swin_differences(config: SwinUNETRConfig, old_merging: bool) -> list[str]:
    encoder, found = config.encoder, []
    if encoder.patch != (2, 2, 2):
        found.append(f"patch is {encoder.patch} where MONAI's decoder fits (2, 2, 2) only")
    if encoder.feature % 12:
        found.append(f"feature is {encoder.feature} where MONAI takes multiples of 12")
    if encoder.downsample == "merging_repeated" and not old_merging:
        found.append(
            "downsample is 'merging_repeated', which MONAI after 1.4 computes in another way (for 1.4 and earlier: old_merging=True)"
        )
    return found


def _unetr_differences(config: UNETRConfig) -> list[str]:
    vit = config.encoder
    published = {
        "token": (16, 16, 16),
        "depth": 12,
        "positions": "learned",
        "mlp": "gelu",
        "layer_scale": None,
        "registers": 0,
        "class_token": False,
    }
    found = [
        f"{field} is {getattr(vit, field)!r} where MONAI has {value!r}"
        for field, value in published.items()
        if getattr(vit, field) != value
    ]
    if config.fold != (1, 1, 1):
        found.append(f"stride is {config.stride} where MONAI has 1")
    return found


def _refuse(name: str, found: list[str]) -> None:
    if found:
        raise ConfigError(f"this {name} cannot be written for MONAI: {'; '.join(found)}")
