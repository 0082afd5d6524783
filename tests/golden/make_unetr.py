"""Makes `unetr.npz`: logits of MONAI's own UNETR for weights and images that follow from a seed. Run: python tests/golden/make_unetr.py

Needs the parity extra (torch, monai). Only the peer's outputs are stored; `tests/models/test_unetr.py` makes the same weights again.
"""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("unetr.npz")


@dataclasses.dataclass(frozen=True)
class Case:
    """One UNETR of MONAI: how patches are embedded, channels in, classes out, image size (voxels)."""

    embedding: str
    channels: int
    classes: int
    size: tuple[int, int, int]
    width: int = 96
    hidden: int = 192
    heads: int = 4
    feature: int = 16


CASES = {
    "conv": Case("conv", channels=1, classes=2, size=(32, 16, 48)),
    "perceptron": Case("perceptron", channels=4, classes=3, size=(32, 32, 32)),
}


def make_state(case: Case) -> dict[str, np.ndarray]:
    """A `state_dict` in MONAI 1.6.1's keys and shapes with float32 values that depend on the key alone."""
    return {key: _values(key, shape) for key, shape in _shapes(case).items()}


def make_image(case: Case) -> np.ndarray:
    """Two images (2, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (2, *case.size, case.channels)).astype(np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _uniform(key, shape)
    if len(shape) == 1:
        values = 0.1 * values + ("norm" in key and key.endswith("weight"))
    elif "position" in key:
        values = 0.5 * values
    else:
        fan_in = shape[0] if "transp" in key or key.split(".")[-3:-2] == ["0"] else np.prod(shape[1:])
        values = values / np.sqrt(fan_in)
    return values.astype(np.float32)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width, hidden, feature = case.width, case.hidden, case.feature
    embedding = "vit.patch_embedding."
    shapes = {embedding + "position_embeddings": (1, int(np.prod(case.size)) // 16**3, width)}
    if case.embedding == "conv":
        shapes |= {embedding + "patch_embeddings.weight": (width, case.channels, 16, 16, 16), embedding + "patch_embeddings.bias": (width,)}
    else:
        shapes |= {embedding + "patch_embeddings.1.weight": (width, case.channels * 16**3), embedding + "patch_embeddings.1.bias": (width,)}
    for i in range(12):
        block = f"vit.blocks.{i}."
        shapes |= {block + "mlp.linear1.weight": (hidden, width), block + "mlp.linear1.bias": (hidden,)}
        shapes |= {block + "mlp.linear2.weight": (width, hidden), block + "mlp.linear2.bias": (width,)}
        shapes |= {block + "attn.out_proj.weight": (width, width), block + "attn.out_proj.bias": (width,)}
        shapes |= {block + "attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{block}{norm}.{part}": (width,) for norm in ("norm1", "norm2", "norm_cross_attn") for part in ("weight", "bias")}
    shapes |= {"vit.norm.weight": (width,), "vit.norm.bias": (width,)}
    shapes |= _residual("encoder1.layer", case.channels, feature)
    for level, further in ((2, 2), (3, 1), (4, 0)):
        out = feature * 2 ** (level - 1)
        shapes[f"encoder{level}.transp_conv_init.conv.weight"] = (width, out, 2, 2, 2)
        for i in range(further):
            shapes[f"encoder{level}.blocks.{i}.0.conv.weight"] = (out, out, 2, 2, 2)
            shapes |= _residual(f"encoder{level}.blocks.{i}.1", out, out)
    for level in (5, 4, 3, 2):
        out = feature * 2 ** (level - 2)
        shapes[f"decoder{level}.transp_conv.conv.weight"] = (width if level == 5 else 2 * out, out, 2, 2, 2)
        shapes |= _residual(f"decoder{level}.conv_block", 2 * out, out)
    return shapes | {"out.conv.conv.weight": (case.classes, feature, 1, 1, 1), "out.conv.conv.bias": (case.classes,)}


def _residual(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.conv1.conv.weight": (outputs, inputs, 3, 3, 3), f"{name}.conv2.conv.weight": (outputs, outputs, 3, 3, 3)}
    return shapes | ({f"{name}.conv3.conv.weight": (outputs, inputs, 1, 1, 1)} if inputs != outputs else {})


def main() -> None:
    """Run the peer in float64 and store every second voxel of its logits."""
    import monai
    import torch
    from monai.networks.nets import UNETR

    logits = {}
    for name, case in CASES.items():
        peer = UNETR(
            in_channels=case.channels,
            out_channels=case.classes,
            img_size=case.size,
            feature_size=case.feature,
            hidden_size=case.width,
            mlp_dim=case.hidden,
            num_heads=case.heads,
            proj_type=case.embedding,
        )
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case).items()}, strict=True)
        with torch.no_grad():
            image = torch.from_numpy(make_image(case)).permute(0, 4, 1, 2, 3)
            out = peer.double().eval()(image.double()).permute(0, 2, 3, 4, 1).numpy()
        logits[name] = out[:, ::2, ::2, ::2].astype(np.float32)
        print(f"{name}: logits {out.min():.2f} to {out.max():.2f}")
    np.savez_compressed(FILE, versions=np.array([f"monai {monai.__version__}", f"torch {torch.__version__}"]), **logits)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
