"""Swin UNETR, forward and training step (24 features, 64³): MONAI's `SwinUNETR` and ours with its weights."""

import dataclasses
from pathlib import Path

from bench.case import Setting, Work
from bench.segmentation import Sizes, case, our_work, peer_work
from bench.torch_side import import_or_absent

# 64 voxels: with 32 the deepest map would be a single voxel, of which an instance norm leaves nothing.
_QUICK = Sizes(64, {"feature_size": 12, "depths": (1, 1, 1, 1)}, channels=1, classes=2)
CASES = tuple(
    case(
        f"24_64_{'step' if train else 'forward'}",
        "MONAI SwinUNETR",
        Sizes(64, {"feature_size": 24}, train=train),
        dataclasses.replace(_QUICK, train=train),
    )
    for train in (False, True)
)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's, of random weights."""
    nets = import_or_absent(setting, "monai.networks.nets")
    return peer_work(nets.SwinUNETR(sizes.channels, sizes.classes, **sizes.network), sizes, setting, folder)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of MONAI's weights."""
    from jaxseg.models.swin import SwinConfig
    from jaxseg.models.swin_unetr import SwinUNETRConfig

    def alone() -> SwinUNETRConfig:
        changes = {"depths": sizes.network["depths"]} if "depths" in sizes.network else {}
        return SwinUNETRConfig(SwinConfig(in_channels=sizes.channels, feature=sizes.network["feature_size"], **changes), sizes.classes)

    return our_work(sizes, setting, folder, alone)
