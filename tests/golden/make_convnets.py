"""Makes `convnets.npz`: logits of MONAI's own UNet, AttentionUnet and VNet for weights and images that follow from a seed.

Run: python tests/golden/make_convnets.py. Needs the parity extra (torch, monai). Only the keys and shapes of the weights and the peer's outputs are
stored; `tests/models/test_resunet.py` and those of the other two make the same weights again.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("convnets.npz")


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of MONAI: class, arguments, image size (voxels), and what our converter must be told of it."""

    network: str
    arguments: dict[str, Any]
    size: tuple[int, int, int]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.arguments["in_channels"]


def _unet(channels: int, classes: int, widths: tuple[int, ...], strides: tuple[Any, ...], **others: Any) -> dict[str, Any]:
    return {
        "spatial_dims": 3,
        "in_channels": channels,
        "out_channels": classes,
        "channels": widths,
        "strides": strides,
        **others,
    }


CASES = {
    "unet": Case("UNet", _unet(1, 2, (4, 8, 16), (2, 2), num_res_units=2), (8, 12, 16)),
    "unet_plain": Case(
        "UNet",
        _unet(2, 3, (6, 4, 8, 12), (2, 3, 2), act="leakyrelu", adn_ordering="AND", norm=["instance", {"affine": True}]),
        (24, 12, 12),
        {"strides": (2, 3, 2), "act": "leakyrelu", "adn_ordering": "AND"},
    ),
    "attention_unet": Case(
        "AttentionUnet",
        _unet(3, 2, (6, 8, 12), (2, (2, 2, 1)), kernel_size=5, up_kernel_size=(3, 3, 5), dropout=0.3),
        (8, 12, 6),
        {"strides": (2, (2, 2, 1)), "dropout": 0.3},
    ),
    "vnet": Case("VNet", {"in_channels": 2, "out_channels": 3}, (16, 16, 16)),
}


def make_state(case: Case, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A `state_dict` of these keys and shapes with float32 values that depend on the key alone."""
    del case
    return {key: _values(key, tuple(shape)) for key, shape in shapes.items()}


def stored_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the peer's `state_dict`."""
    return {key: tuple(shape) for key, shape in json.loads(str(np.load(FILE)[f"{name}.shapes"])).items()}


def make_image(case: Case, size: tuple[int, int, int] | None = None) -> np.ndarray:
    """Two images (2, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (2, *(size or case.size), case.channels)).astype(np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.array(7)
    values = _uniform(key, shape)
    if key.endswith("running_var"):
        values = 1 + 0.2 * values
    elif len(shape) == 1:
        # Of norms and of PReLU: around 1 and 1/4, not at them.
        around = 0.25 if ".A.weight" in key or "act_function" in key else float(key.endswith("weight"))
        values = 0.1 * values + around
    else:
        fan_in = np.prod(shape[1:]) if shape[2:] != (2, 2, 2) or "down" in key else shape[0]
        values = values / np.sqrt(fan_in)
    return values.astype(np.float32)


def main() -> None:
    """Run the peer in float64 and store its outputs, rounded to float32, at every second voxel."""
    import monai
    import torch
    from monai.networks import nets

    torch.set_num_threads(1)
    stored: dict[str, Any] = {"versions": np.array([f"monai {monai.__version__}", f"torch {torch.__version__}"])}
    for name, case in CASES.items():
        peer = getattr(nets, case.network)(**{key: tuple(v) if key == "norm" else v for key, v in case.arguments.items()})
        shapes = {key: tuple(value.shape) for key, value in peer.state_dict().items()}
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case, shapes).items()}, strict=True)
        with torch.no_grad():
            image = torch.from_numpy(make_image(case)).permute(0, 4, 1, 2, 3)
            out = peer.double().eval()(image.double()).permute(0, 2, 3, 4, 1).numpy()
        stored |= {name: out[:, ::2, ::2, ::2].astype(np.float32), f"{name}.shapes": np.array(json.dumps(shapes))}
        print(f"{name}: logits {out.min():.2f} to {out.max():.2f}")
    np.savez_compressed(FILE, **stored)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
