"""UNETR, forward and training step, small and base, 64³ and 96³: MONAI's `UNETR` and ours with its weights."""

from pathlib import Path

from bench.case import Setting, Work
from bench.segmentation import Sizes, case, our_work, peer_work
from bench.torch_side import import_or_absent

_NETWORKS = {
    "small": {"feature_size": 16, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3},
    "base": {"feature_size": 32, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
}
_TINY = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}


def _sizes(name: str, side: int, train: bool) -> Sizes:
    return Sizes(side, _NETWORKS[name], {"heads": _NETWORKS[name]["num_heads"]}, train)


CASES = tuple(
    case(
        f"{name}_{side}_{'step' if train else 'forward'}",
        "MONAI UNETR",
        _sizes(name, side, train),
        Sizes(32, _TINY, {"heads": 2}, train, channels=1, classes=2),
    )
    for name in _NETWORKS
    for side in (64, 96)
    for train in (False, True)
)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """MONAI's, of random weights."""
    nets = import_or_absent(setting, "monai.networks.nets")
    return peer_work(nets.UNETR(sizes.channels, sizes.classes, (sizes.side,) * 3, **sizes.network), sizes, setting, folder)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of MONAI's weights."""
    return our_work(sizes, setting, folder)
