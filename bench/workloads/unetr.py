"""UNETR, forward and training step, small and base, 64³ and 96³: MONAI's `UNETR` and ours with its weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.case import Setting, Work
from bench.segmentation import Sizes, case, our_work, peer_work
from bench.torch_side import import_or_absent

_NETWORKS = {
    "small": {"feature_size": 16, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3},
    "base": {"feature_size": 32, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
}
_QUICK = Sizes(32, {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}, {"heads": 2}, channels=1, classes=2)


def _sizes(name: str, side: int, train: bool) -> Sizes:
    return Sizes(side, _NETWORKS[name], {"heads": _NETWORKS[name]["num_heads"]}, train)


CASES = tuple(
    case(
        f"{name}_{side}_{'step' if train else 'forward'}",
        "MONAI UNETR",
        _sizes(name, side, train),
        dataclasses.replace(_QUICK, train=train),
    )
    for name in _NETWORKS
    for side in (64, 96)
    for train in (False, True)
) + (
    case(
        "base_96_step_batch8",
        "MONAI UNETR",
        dataclasses.replace(_sizes("base", 96, True), batch=8),
        dataclasses.replace(_QUICK, batch=2),
        gpu_only=True,
    ),
)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's, of random weights."""
    nets = import_or_absent(setting, "monai.networks.nets")
    return peer_work(nets.UNETR(sizes.channels, sizes.classes, (sizes.side,) * 3, **sizes.network), sizes, setting, folder)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of MONAI's weights."""
    return our_work(sizes, setting, folder, lambda: config(sizes.network, sizes.side, sizes.channels, sizes.classes))


def config(network: Mapping[str, int], side: int, channels: int, classes: int) -> Any:
    """Our config of MONAI's arguments."""
    from jaxseg.models import UNETRConfig, ViTConfig

    width = network["hidden_size"]
    encoder = ViTConfig.classic(
        in_channels=channels,
        crop=(side,) * 3,
        token=(16,) * 3,
        width=width,
        depth=12,
        heads=network["num_heads"],
        mlp_ratio=network["mlp_dim"] / width,
    )
    return UNETRConfig(encoder, num_classes=classes, feature=network["feature_size"])
