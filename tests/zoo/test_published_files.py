"""Files that PyTorch saved of the peers' own modules, in the wrappers of published checkpoints: each is of exactly one layout, and whole."""

import pytest

from jaxseg.errors import CheckpointError
from jaxseg.zoo.pretrained import convert_file
from tests.peers import import_peer

CUBE = {"img_size": (32, 32, 32), "patch_size": (16, 16, 16)}
SMALL = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4}


def monai(kind, **arguments):
    return getattr(import_peer("monai.networks.nets"), kind)(**arguments)


def u_net(kind, **arguments):
    nn = import_peer("torch").nn
    stages = {"n_stages": 3, "features_per_stage": (4, 8, 8), "kernel_sizes": 3, "strides": (1, 2, 2), "num_classes": 2}
    norm = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU}
    peer = import_peer("dynamic_network_architectures.architectures.unet")
    return getattr(peer, kind)(1, conv_op=nn.Conv3d, conv_bias=True, n_conv_per_stage_decoder=1, **stages, **norm, **arguments)


def primus():
    peer = import_peer("dynamic_network_architectures.architectures.primus")
    arguments = {
        "embed_dim": 48,
        "patch_embed_size": (8, 8, 8),
        "num_classes": 2,
        "eva_depth": 2,
        "eva_numheads": 4,
        "input_shape": (24, 24, 24),
    }
    return peer.Primus(1, **arguments, scale_attn_inner=True, init_values=0.1)


def bare(state):
    return state


def nnunet(state):
    return {
        "network_weights": state,
        "current_epoch": 1000,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"fold": 0},
        "optimizer_state": {},
    }


def distributed(state):
    return {"epoch": 5, "state_dict": {f"module.{name}": array for name, array in state.items()}, "best_acc": 0.8}


FILES = {
    "MONAI UNETR": (lambda: monai("UNETR", in_channels=1, out_channels=2, img_size=(32, 32, 32), **SMALL), distributed, {"heads": 4}),
    "MONAI ViT": (lambda: monai("ViT", in_channels=1, num_layers=2, **CUBE, **SMALL), distributed, {"heads": 4}),
    "MONAI ViTAutoEnc": (lambda: monai("ViTAutoEnc", in_channels=1, num_layers=2, **CUBE, **SMALL), bare, {"heads": 4}),
    "MONAI MaskedAutoEncoderViT": (
        lambda: monai(
            "MaskedAutoEncoderViT",
            **{"in_channels": 1, "num_layers": 2, **CUBE, **SMALL},
            **{"decoder_hidden_size": 24, "decoder_mlp_dim": 48, "decoder_num_layers": 1, "decoder_num_heads": 2},
        ),
        bare,
        {"heads": 4, "decoder_heads": 2},
    ),
    "MONAI SwinUNETR": (lambda: monai("SwinUNETR", in_channels=2, out_channels=3, feature_size=12), distributed, {}),
    "MONAI UNet": (
        lambda: monai("UNet", spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 8), strides=(2, 2), num_res_units=2),
        bare,
        {},
    ),
    "MONAI AttentionUnet": (
        lambda: monai("AttentionUnet", spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 8), strides=(2, 2)),
        bare,
        {},
    ),
    "nnU-Net PlainConvUNet": (lambda: u_net("PlainConvUNet", n_conv_per_stage=2, deep_supervision=True), nnunet, {}),
    "nnU-Net ResidualEncoderUNet": (lambda: u_net("ResidualEncoderUNet", n_blocks_per_stage=1, deep_supervision=True), nnunet, {}),
    "nnU-Net Primus": (primus, nnunet, {"heads": 4}),
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("layout", FILES)
def test_a_peers_own_file_is_of_exactly_one_layout_and_whole(tmp_path, layout):
    torch = import_peer("torch")
    make, wrap, settings = FILES[layout]
    torch.set_num_threads(1)
    torch.save(wrap(make().state_dict()), tmp_path / "published.pth")
    model, report = convert_file(tmp_path / "published.pth", settings=settings)
    assert report.layout == layout and report.whole
    assert model.card["axes"] == ("z, y, x, channel" if layout.startswith("nn") else "x, y, z, channel")


@pytest.mark.parity
def test_an_encoder_alone_is_a_network_in_part(tmp_path):
    torch = import_peer("torch")
    state = monai("SwinUNETR", in_channels=1, out_channels=2, feature_size=12).swinViT.state_dict()
    torch.save({"state_dict": {f"module.{name}": array for name, array in state.items()}}, tmp_path / "model_swinvit.pt")
    with pytest.raises(CheckpointError, match=r"(?s)self-supervised encoder.*missing.*decoder.*--partial"):
        convert_file(tmp_path / "model_swinvit.pt")
