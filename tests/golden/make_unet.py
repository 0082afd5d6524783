"""Makes `unet.npz`: logits of nnU-Net's own U-Nets for weights and images that follow from a seed. Run: python tests/golden/make_unet.py

Needs the parity extra (torch, dynamic-network-architectures). Only the peer's outputs are stored; `tests/models/test_unet.py` makes the same
weights again, under every name that the peer's `state_dict` has for them.
"""

import dataclasses
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("unet.npz")
Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A U-Net of the peer, and the size of an image (voxels). `blocks` are convolutions of a plain stage, blocks of a residual one."""

    peer: str
    channels: int
    classes: int
    size: Triple
    features: tuple[int, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    blocks: tuple[int, ...]
    decoder: tuple[int, ...]
    bias: bool

    @property
    def plan(self) -> dict:
        """nnU-Net's `architecture` block of a plans.json."""
        blocks = "n_blocks_per_stage" if self.peer == "ResidualEncoderUNet" else "n_conv_per_stage"
        arguments = {
            "n_stages": len(self.features),
            "features_per_stage": list(self.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(kernel) for kernel in self.kernels],
            "strides": [list(stride) for stride in self.strides],
            blocks: list(self.blocks),
            "n_conv_per_stage_decoder": list(self.decoder),
            "conv_bias": self.bias,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        return {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{self.peer}",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }


CASES = {
    "plain": Case(
        peer="PlainConvUNet",
        channels=2,
        classes=3,
        size=(6, 16, 24),
        features=(6, 9, 12, 12),
        kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 1)),
        blocks=(2, 2, 1, 3),
        decoder=(2, 1, 2),
        bias=True,
    ),
    "residual": Case(
        peer="ResidualEncoderUNet",
        channels=1,
        classes=2,
        size=(16, 16, 8),
        features=(6, 6, 12),
        kernels=((3, 3, 3), (3, 3, 3), (5, 3, 1)),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        blocks=(1, 3, 2),
        decoder=(1, 2),
        bias=False,
    ),
}


def make_state(case: Case) -> dict[str, np.ndarray]:
    """A `state_dict` in the peer's keys (copies included) and shapes with float32 values that depend on the array's first key alone."""
    shapes = _encoder(case) | _decoder(case)
    arrays = {key: _values(key, shape) for key, shape in shapes.items()}
    arrays |= {f"decoder.{key}": array for key, array in arrays.items() if key.startswith("encoder.")}
    for key, array in list(arrays.items()):
        *module, part, kind = key.split(".")
        if part in ("conv", "norm"):
            arrays[".".join([*module, "all_modules", "0" if part == "conv" else "1", kind])] = array
    return arrays


def make_image(case: Case) -> np.ndarray:
    """Two images (2, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (2, *case.size, case.channels)).astype(np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _uniform(key, shape)
    if len(shape) == 1:
        values = 0.2 * values + (".norm." in key and key.endswith("weight"))
    else:
        values = values / np.sqrt(shape[0] if "transpconvs" in key else np.prod(shape[1:]))
    return values.astype(np.float32)


def _conv_norm(name: str, inputs: int, outputs: int, kernel: Triple, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.conv.weight": (outputs, inputs, *kernel)}
    shapes |= {f"{name}.conv.bias": (outputs,)} if bias else {}
    return shapes | {f"{name}.norm.weight": (outputs,), f"{name}.norm.bias": (outputs,)}


def _encoder(case: Case) -> dict[str, tuple[int, ...]]:
    residual, shapes, inputs = case.peer == "ResidualEncoderUNet", {}, case.channels
    if residual:
        shapes |= _conv_norm("encoder.stem.convs.0", inputs, case.features[0], case.kernels[0], case.bias)
        inputs = case.features[0]
    for i, (width, kernel, stride) in enumerate(zip(case.features, case.kernels, case.strides)):
        for j in range(case.blocks[i]):
            if residual:
                block = f"encoder.stages.{i}.blocks.{j}"
                shapes |= _conv_norm(f"{block}.conv1", inputs, width, kernel, case.bias)
                shapes |= _conv_norm(f"{block}.conv2", width, width, kernel, case.bias)
                shapes |= _conv_norm(f"{block}.skip.{int(max(stride) > 1)}", inputs, width, (1, 1, 1), False) if inputs != width else {}
            else:
                shapes |= _conv_norm(f"encoder.stages.{i}.0.convs.{j}", inputs, width, kernel, case.bias)
            inputs = width
    return shapes


def _decoder(case: Case) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, count in enumerate(case.decoder):
        below, width = case.features[-1 - i], case.features[-2 - i]
        shapes[f"decoder.transpconvs.{i}.weight"] = (below, width, *case.strides[-1 - i])
        shapes |= {f"decoder.transpconvs.{i}.bias": (width,)} if case.bias else {}
        for j in range(count):
            shapes |= _conv_norm(f"decoder.stages.{i}.convs.{j}", width if j else 2 * width, width, case.kernels[-2 - i], case.bias)
        shapes |= {f"decoder.seg_layers.{i}.weight": (case.classes, width, 1, 1, 1), f"decoder.seg_layers.{i}.bias": (case.classes,)}
    return shapes


def main() -> None:
    """Run the peer in float64 and store the logits of deep supervision, of the finest every second voxel."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.peers import import_peer

    torch = import_peer("torch")
    unet = import_peer("dynamic_network_architectures.architectures.unet")
    outputs = {}
    for name, case in CASES.items():
        arguments = case.plan["arch_kwargs"] | {
            "conv_op": torch.nn.Conv3d,
            "norm_op": torch.nn.InstanceNorm3d,
            "nonlin": torch.nn.LeakyReLU,
        }
        peer = getattr(unet, case.peer)(input_channels=case.channels, num_classes=case.classes, deep_supervision=True, **arguments)
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case).items()}, strict=True)
        with torch.no_grad():
            logits = peer.double().eval()(torch.from_numpy(make_image(case)).permute(0, 4, 1, 2, 3).double())
        arrays = [each.permute(0, 2, 3, 4, 1).numpy().astype(np.float32) for each in logits]
        outputs |= {f"{name}.{level}": array[:, ::2, ::2, ::2] if level == 0 else array for level, array in enumerate(arrays)}
        print(f"{name}: logits {arrays[0].min():.2f} to {arrays[0].max():.2f}")
    versions = [f"{package} {version(package)}" for package in ("dynamic-network-architectures", "torch")]
    np.savez_compressed(FILE, versions=np.array(versions), **outputs)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
