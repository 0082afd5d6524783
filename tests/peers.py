"""Peers' packages as the parity tests and the bench import them; the bench runs where there is no pytest."""

import importlib
import warnings
from types import ModuleType

_ABSENT = ("nms", "qnms")
"""Operators of torchvision's compiled part, which has no build for the CPU-only torch: its Python part registers shapes for these two."""


def import_peer(module: str) -> ModuleType:
    """`module` of a peer (see `find_peer`), or a skip where the parity extra is not installed."""
    import pytest

    try:
        return find_peer(module)
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs the parity extra: {missing}", allow_module_level=True)


def find_peer(module: str) -> ModuleType:
    """`module` of a peer (torch, monai, timm, dynamic_network_architectures, …); ModuleNotFoundError where it is not installed.

    timm imports torchvision, for no operator that a 3D network runs.
    """
    with warnings.catch_warnings():
        # What their own imports are warned about is not ours to mend.
        warnings.simplefilter("ignore")
        torch = importlib.import_module("torch")
        if module.split(".")[0] in ("timm", "dynamic_network_architectures", "torchvision"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in _ABSENT:
                if not hasattr(torch.ops.torchvision, name):
                    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(library)
        return importlib.import_module(module)


def without_kinks(network, torch: ModuleType):
    """The peer's network with softplus in the place of each LeakyReLU and ReLU, for comparing gradients of many voxels to rounding.

    Their slope jumps at 0. Of millions of activations a few lie within rounding of it and get the one slope or the other by the
    order in which a processor adds: two right answers then differ in per cents (float32 and float64 of the peer itself do).
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.LeakyReLU | torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())
    return network


_KEPT: list[object] = []
"""A library's definitions live as long as it does."""
