"""A training step of nnU-Net's residual-encoder U-Net (64³): dynamic-network-architectures' module and ours with its weights."""

from pathlib import Path
from typing import Any

from bench.case import Setting, Work
from bench.segmentation import Sizes, case, our_work, peer_work
from bench.torch_side import import_or_absent

_M: dict[str, Any] = {
    "n_stages": 6,
    "features_per_stage": (32, 64, 128, 256, 320, 320),
    "strides": (1, 2, 2, 2, 2, 2),
    "n_blocks_per_stage": (1, 3, 4, 6, 6, 6),
}
_TINY: dict[str, Any] = {"n_stages": 3, "features_per_stage": (4, 8, 8), "strides": (1, 2, 2), "n_blocks_per_stage": (1, 1, 1)}
_PEER = "dynamic-network-architectures ResidualEncoderUNet"
CASES = (case("m_64_step", _PEER, Sizes(64, _M), Sizes(16, _TINY, channels=1, classes=2)),)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """The peer's, of random weights, with nnU-Net's norm, non-linearity and biases."""
    unet = import_or_absent(setting, "dynamic_network_architectures.architectures.unet")
    torch = import_or_absent(setting, "torch")
    net = unet.ResidualEncoderUNet(
        sizes.channels,
        num_classes=sizes.classes,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **sizes.network,
    )
    return peer_work(net, sizes, setting, folder)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Ours, of the peer's weights."""
    from jaxseg.models.unet import UNetConfig

    def alone() -> UNetConfig:
        plan = {"features": sizes.network["features_per_stage"], "strides": sizes.network["strides"]}
        plan |= {"blocks": sizes.network["n_blocks_per_stage"], "kernels": 3, "decoder_convs": 1, "deep_supervision": True}
        return UNetConfig(kind="residual", in_channels=sizes.channels, num_classes=sizes.classes, **plan)

    return our_work(sizes, setting, folder, alone)
