"""Measures how far our networks are from their peers and writes `parity.json`, for README's table. Run: python tests/golden/measure_parity.py

Needs the parity extra. Small networks with random weights by seed: ours in float32 against the peer's module in float64, each through the
converter of its published layout, two images of each size. The difference is the largest one as a part of the peer's range of outputs.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import make_monai_vit
import make_primus
from peers import import_peer

from jaxseg.models import MAE, UNETR, ViT
from jaxseg.models.attention_unet import AttentionUNet
from jaxseg.models.primus import Primus
from jaxseg.models.resunet import ResUNet
from jaxseg.models.swin_unetr import SwinUNETR
from jaxseg.models.unet import UNet
from jaxseg.models.vnet import VNet
from jaxseg.zoo.convert.recognise import published_layouts
from jaxseg.zoo.convert.source import Settings, Source
from jaxseg.zoo.names import unflatten_params

FILE = Path(__file__).with_name("parity.json")
Size = tuple[int, int, int]


class Peer(NamedTuple):
    """One comparison: our family and network, the peer's name and module, image sizes (voxels), and what shapes do not tell."""

    family: str
    network: Callable[..., nnx.Module]
    name: str
    module: Any
    channels: int
    sizes: tuple[Size, ...]
    settings: dict[str, Any]


def peers() -> Iterator[Peer]:
    """The peers whose outputs are logits."""
    nets, torch = import_peer("monai.networks.nets"), import_peer("torch")
    primus = import_peer("dynamic_network_architectures.architectures.primus")
    unet = import_peer("dynamic_network_architectures.architectures.unet")
    monai = f"MONAI {version('monai')}"
    dna = f"dynamic-network-architectures {version('dynamic-network-architectures')}"
    crop = (32, 16, 48)
    module = nets.UNETR(2, 3, crop, hidden_size=96, mlp_dim=192, num_heads=4)
    yield Peer("unetr", UNETR, f"{monai} `UNETR`", module, 2, (crop,), {"heads": 4, "crop": crop})
    module = nets.SwinUNETR(2, 3, feature_size=12, use_v2=True)
    yield Peer("swin_unetr", SwinUNETR, f"{monai} `SwinUNETR`", module, 2, ((64, 32, 32), (32, 64, 96)), {})
    for case in make_primus.CASES.values():
        module, name = make_primus.make_peer(primus, case), f"{dna} `Primus`, `PrimusV2`, `PrimusV3`"
        yield Peer("primus", Primus, name, module, case.channels, (case.size,), dict(case.settings()))
    plan: dict[str, Any] = {"n_stages": 4, "features_per_stage": [8, 16, 24, 24], "kernel_sizes": 3, "strides": [1, 2, 2, 2]}
    plan |= {"conv_op": torch.nn.Conv3d, "conv_bias": True, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    plan |= {"norm_op_kwargs": {"eps": 1e-5, "affine": True}, "num_classes": 3}
    both = f"{dna} `PlainConvUNet`, `ResidualEncoderUNet`"
    sizes = ((32, 16, 32), (16, 32, 48))
    yield Peer("unet", UNet, both, unet.PlainConvUNet(2, n_conv_per_stage=2, n_conv_per_stage_decoder=2, **plan), 2, sizes, {})
    module = unet.ResidualEncoderUNet(2, n_blocks_per_stage=[1, 2, 2, 2], n_conv_per_stage_decoder=1, **plan)
    yield Peer("unet", UNet, both, module, 2, sizes, {})
    arguments = (3, 2, 3, (8, 16, 24), (2, 2))
    yield Peer("resunet", ResUNet, f"{monai} `UNet`", nets.UNet(*arguments, num_res_units=2), 2, sizes, {})
    yield Peer("attention_unet", AttentionUNet, f"{monai} `AttentionUnet`", nets.AttentionUnet(*arguments), 2, sizes, {})
    yield Peer("vnet", VNet, f"{monai} `VNet`", nets.VNet(in_channels=2, out_channels=3), 2, ((16, 32, 16),), {})


def converted(network: Callable[..., nnx.Module], state: dict[str, np.ndarray], settings: dict[str, Any]) -> tuple[Any, Any]:
    """Our network with a peer's arrays, by the one layout that recognises them."""
    shapes = {key: value.shape for key, value in state.items()}
    (layout,) = [layout for layout in published_layouts() if layout.recognise(shapes)]
    found = layout.convert(Source(state, layout.name), Settings(settings))
    graph, params = nnx.split(nnx.eval_shape(lambda: network(found.config, rngs=nnx.Rngs(0))))
    return graph, unflatten_params(params, found.arrays)


def differences(peer: Peer) -> Iterator[float]:
    """One for each size."""
    torch = import_peer("torch")
    with torch.no_grad():
        for value in peer.module.parameters():
            value.add_(0.1 * torch.randn_like(value) if value.ndim == 1 else 0)
    peer.module.eval()
    graph, params = converted(peer.network, {key: value.numpy() for key, value in peer.module.state_dict().items()}, peer.settings)
    forward = jax.jit(lambda params, image: nnx.merge(graph, params)(image))
    peer.module.double()
    for size in peer.sizes:
        image = np.random.default_rng(0).normal(size=(2, *size, peer.channels)).astype(np.float32)
        with torch.no_grad():
            wanted = peer.module(torch.from_numpy(image).permute(0, 4, 1, 2, 3).double()).permute(0, 2, 3, 4, 1).numpy()
        yield float(np.abs(forward(params, image) - wanted).max() / np.ptp(wanted))


def stored() -> Iterator[tuple[str, str, float]]:
    """ViT and MAE against the outputs in their golden file, of which a reconstruction keeps every seventh voxel."""
    outputs = np.load(make_monai_vit.FILE)
    monai = f"MONAI {version('monai')}"
    for name, case in make_monai_vit.CASES.items():
        masked = case.kind == "MaskedAutoEncoderViT"
        settings: dict[str, Any] = {"heads": case.heads, "crop": case.size, "token": case.token, "decoder_heads": case.decoder_heads}
        graph, params = converted(MAE if masked else ViT, make_monai_vit.make_state(case), settings)
        inputs = (make_monai_vit.make_image(case), make_monai_vit.make_visible(case))
        found = jax.jit(_reconstructed if masked else _encoded, static_argnums=0)(graph, params, *inputs)
        wanted = outputs[f"{name}.{'reconstruction' if masked else 'tokens'}"]
        peer = f"{monai} `MaskedAutoEncoderViT`" if masked else f"{monai} `ViT`, `ViTAutoEnc`"
        yield "mae3d" if masked else "vit3d", peer, float(np.abs(np.asarray(found) - wanted).max() / np.ptp(wanted))


def _reconstructed(graph: Any, params: Any, image: Any, visible: Any) -> Any:
    network = nnx.merge(graph, params)
    return network.predict_all(network.encoder.patchify(image), network.encoder.grid_of(image), None, visible)[..., ::7]


def _encoded(graph: Any, params: Any, image: Any, visible: Any) -> Any:
    network = nnx.merge(graph, params)
    return network.encode(network.embed(network.patchify(image), network.grid_of(image)), None)


def main() -> None:
    """Measure all families and write the largest difference of each."""
    torch = import_peer("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, Any]] = {}
    for family, name, difference in chain(stored(), ((peer.family, peer.name, each) for peer in peers() for each in differences(peer))):
        worst = max(difference, found.get(family, {}).get("difference", 0.0))
        found[family] = {"peer": name, "difference": float(f"{worst:.1e}")}
        print(f"{family}: {difference:.1e} of the range of {name}", flush=True)
    # Their sources were read, their packages were never run.
    found["evamae"] = {"peer": "nnssl's `EvaMAE`, layout only", "difference": None}
    found["cinema"] = {"peer": "CineMA's `CineMA` (one view's encoder), layout only", "difference": None}
    FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
