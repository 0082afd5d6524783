"""Makes `swin.npz`: logits of MONAI's own SwinUNETR for weights and images that follow from a seed. Run: python tests/golden/make_swin.py

Needs the parity extra (torch, monai). Only the peer's outputs are stored; `tests/models/test_swin_unetr.py` makes the same weights again.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("swin.npz")


@dataclasses.dataclass(frozen=True)
class Case:
    """One SwinUNETR of MONAI: its arguments, and the image's size (voxels)."""

    size: tuple[int, int, int]
    channels: int
    classes: int
    feature: int = 12
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    window: tuple[int, int, int] = (7, 7, 7)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = False
    normalize: bool = True
    downsample: str = "merging"
    use_v2: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of MONAI's class."""
        names = {
            "channels": "in_channels",
            "classes": "out_channels",
            "feature": "feature_size",
            "heads": "num_heads",
            "window": "window_size",
        }
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "size"}
        return {names.get(name, name): value for name, value in fields.items()}


CASES = {
    # Windows of 7 are padded at the first stage and shrink at all others.
    "default": Case((64, 32, 32), channels=1, classes=2),
    # A window that is no cube is shifted along some axes and shrinks along others.
    "v2": Case(
        (32, 32, 64),
        channels=3,
        classes=3,
        heads=(2, 4, 8, 8),
        depths=(2, 1, 3, 2),
        window=(4, 3, 5),
        mlp_ratio=2.5,
        qkv_bias=False,
        patch_norm=True,
        normalize=False,
        downsample="mergingv2",
        use_v2=True,
    ),
}


def make_state(case: Case) -> dict[str, np.ndarray]:
    """A `state_dict` in MONAI 1.6.1's keys and shapes with float32 values that depend on the key alone; without the index buffers."""
    return {key: _values(key, shape) for key, shape in _shapes(case).items()}


def make_image(case: Case) -> np.ndarray:
    """An image (1, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (1, *case.size, case.channels)).astype(np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _uniform(key, shape)
    if len(shape) == 1:
        values = 0.1 * values + ("norm" in key and key.endswith("weight"))
    elif "bias_table" in key:
        values = 0.5 * values
    else:
        values = values / np.sqrt(shape[0] if "transp" in key else np.prod(shape[1:]))
    return values.astype(np.float32)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    feature = case.feature
    shapes = _linear("swinViT.patch_embed.proj", (feature, case.channels, 2, 2, 2))
    shapes |= _norm("swinViT.patch_embed.norm", feature) if case.patch_norm else {}
    for stage in range(4):
        shapes |= _stage(case, stage)
    shapes |= _residual("encoder1.layer", case.channels, feature)
    for level, width in {2: 1, 3: 2, 4: 4, 10: 16}.items():
        shapes |= _residual(f"encoder{level}.layer", width * feature, width * feature)
    for level, (inputs, outputs) in {5: (16, 8), 4: (8, 4), 3: (4, 2), 2: (2, 1), 1: (1, 1)}.items():
        shapes[f"decoder{level}.transp_conv.conv.weight"] = (inputs * feature, outputs * feature, 2, 2, 2)
        shapes |= _residual(f"decoder{level}.conv_block", 2 * outputs * feature, outputs * feature)
    return shapes | _linear("out.conv.conv", (case.classes, feature, 1, 1, 1))


def _stage(case: Case, stage: int) -> dict[str, tuple[int, ...]]:
    width = case.feature * 2**stage
    shapes = _residual(f"swinViT.layers{stage + 1}c.0.layer", width, width) if case.use_v2 else {}
    for i in range(case.depths[stage]):
        block = f"swinViT.layers{stage + 1}.0.blocks.{i}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        offsets = int(np.prod([2 * side - 1 for side in case.window]))
        shapes[f"{block}.attn.relative_position_bias_table"] = (offsets, case.heads[stage])
        qkv = _linear(f"{block}.attn.qkv", (3 * width, width))
        shapes |= qkv if case.qkv_bias else {f"{block}.attn.qkv.weight": (3 * width, width)}
        shapes |= _linear(f"{block}.attn.proj", (width, width))
        hidden = int(width * case.mlp_ratio)
        shapes |= _linear(f"{block}.mlp.linear1", (hidden, width)) | _linear(f"{block}.mlp.linear2", (width, hidden))
    merge = f"swinViT.layers{stage + 1}.0.downsample"
    return shapes | _norm(f"{merge}.norm", 8 * width) | {f"{merge}.reduction.weight": (2 * width, 8 * width)}


def _linear(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _residual(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.conv1.conv.weight": (outputs, inputs, 3, 3, 3), f"{name}.conv2.conv.weight": (outputs, outputs, 3, 3, 3)}
    return shapes | ({f"{name}.conv3.conv.weight": (outputs, inputs, 1, 1, 1)} if inputs != outputs else {})


def main() -> None:
    """Run the peer in float64 and store every fourth voxel of its logits."""
    import monai
    import torch
    from monai.networks.nets import SwinUNETR

    torch.set_num_threads(1)
    logits = {}
    for name, case in CASES.items():
        peer = SwinUNETR(**case.arguments)
        found = peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case).items()}, strict=False)
        assert not found.unexpected_keys and all(key.endswith("relative_position_index") for key in found.missing_keys), found
        with torch.no_grad():
            image = torch.from_numpy(make_image(case)).permute(0, 4, 1, 2, 3)
            out = peer.double().eval()(image.double()).permute(0, 2, 3, 4, 1).numpy()
        logits[name] = out[:, ::4, ::4, ::4].astype(np.float32)
        print(f"{name}: logits {out.min():.2f} to {out.max():.2f}")
    np.savez_compressed(FILE, versions=np.array([f"monai {monai.__version__}", f"torch {torch.__version__}"]), **logits)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
