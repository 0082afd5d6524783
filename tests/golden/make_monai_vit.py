"""Makes `monai_vit.npz`: outputs of MONAI's ViT, ViTAutoEnc and MaskedAutoEncoderViT for weights and images that follow from a seed.

Run: python tests/golden/make_monai_vit.py. Needs the parity extra (torch, monai). Only the peers' outputs are stored;
`tests/zoo/test_convert_monai_vit.py` makes the same weights again.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("monai_vit.npz")


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of MONAI: its class, image and token size (voxels), how patches are embedded and placed; the decoder is of an autoencoder."""

    kind: str
    channels: int
    size: tuple[int, int, int]
    token: tuple[int, int, int]
    embedding: str = "conv"
    positions: str = "learnable"
    decoder_positions: str = "sincos"
    width: int = 48
    hidden: int = 80
    depth: int = 2
    heads: int = 4
    decoder_width: int = 36
    decoder_hidden: int = 20
    decoder_heads: int = 3
    qkv_bias: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the image."""
        return int(np.prod(self.size) // np.prod(self.token))


CASES = {
    "classifier": Case("ViT", 1, (16, 24, 16), (8, 8, 8), qkv_bias=True),
    "autoencoder": Case("ViTAutoEnc", 2, (16, 16, 32), (4, 4, 16), embedding="perceptron"),
    "mae": Case("MaskedAutoEncoderViT", 2, (16, 16, 24), (8, 8, 8), positions="sincos"),
    "mae_learned": Case("MaskedAutoEncoderViT", 1, (16, 16, 16), (8, 4, 8), "perceptron", decoder_positions="learnable", qkv_bias=True),
}


def make_state(case: Case) -> dict[str, np.ndarray]:
    """A `state_dict` in MONAI 1.6.1's keys and shapes with float32 values that depend on the key alone."""
    state = {key: _values(key, shape) for key, shape in _shapes(case).items()}
    fixed = {"patch_embedding.position_embeddings": case.positions, "decoder_pos_embedding": case.decoder_positions}
    return state | {key: _waves(case, state[key].shape[-1]) for key, kind in fixed.items() if key in state and kind == "sincos"}


def make_image(case: Case) -> np.ndarray:
    """Two images (2, x, y, z, c), float32, of mean 0 and deviation 1."""
    return _uniform("image", (2, *case.size, case.channels)).astype(np.float32)


def make_visible(case: Case) -> np.ndarray:
    """The tokens that MONAI would leave visible at its ratio of 0.75: int(0.25 n) of every image, in no order."""
    order = np.argsort(_uniform("mask", (2, case.tokens)), axis=1)
    return order[:, : int(0.25 * case.tokens)]


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # Plain uniform doubles: of all of numpy's streams the one that has never changed between versions.
    return (np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5) * 12**0.5


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    values = _uniform(key, shape)
    if len(shape) == 1:
        values = 0.1 * values + key.endswith("weight")
    elif not key.endswith(("token", "tokens", "embeddings", "embedding")):
        values = values / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def _waves(case: Case, width: int) -> np.ndarray:
    """The fixed table of the paper: sine and cosine of y, x and z, each of width / 6 wave lengths from 1 to 10000."""
    grid = [size // token for size, token in zip(case.size, case.token)]
    waves = 10000.0 ** -(np.arange(width // 6) / (width // 6))
    x, y, z = (index.reshape(-1, 1) * waves for index in np.meshgrid(*map(np.arange, grid), indexing="ij"))
    return np.concatenate([np.sin(y), np.cos(y), np.sin(x), np.cos(x), np.sin(z), np.cos(z)], axis=1)[None].astype(np.float32)


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    width, patch = case.width, "patch_embedding.patch_embeddings"
    shapes: dict[str, tuple[int, ...]] = {"patch_embedding.position_embeddings": (1, case.tokens, width)}
    if case.embedding == "conv":
        shapes |= {f"{patch}.weight": (width, case.channels, *case.token), f"{patch}.bias": (width,)}
    else:
        shapes |= {f"{patch}.1.weight": (width, case.channels * int(np.prod(case.token))), f"{patch}.1.bias": (width,)}
    shapes |= _blocks("blocks", case, width, case.hidden)
    match case.kind:
        case "ViT":
            shapes |= _norm("norm", width) | {"cls_token": (1, 1, width)} | _linear("classification_head.0", width, 2)
        case "ViTAutoEnc":
            up = tuple(int(size**0.5) for size in case.token)
            shapes |= _norm("norm", width) | {"conv3d_transpose.weight": (width, 16, *up), "conv3d_transpose.bias": (16,)}
            shapes |= {"conv3d_transpose_1.weight": (16, 1, *up), "conv3d_transpose_1.bias": (1,)}
        case _:
            narrow = case.decoder_width
            shapes |= _norm(f"blocks.{case.depth}", width) | {"cls_token": (1, 1, width), "mask_tokens": (1, 1, narrow)}
            shapes |= {"decoder_pos_embedding": (1, case.tokens, narrow)} | _linear("decoder_embed", width, narrow)
            shapes |= _blocks("decoder_blocks", case, narrow, case.decoder_hidden) | _norm(f"decoder_blocks.{case.depth}", narrow)
            shapes |= _linear("decoder_pred", narrow, case.channels * int(np.prod(case.token)))
    return shapes


def _blocks(name: str, case: Case, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(case.depth):
        block = f"{name}.{i}."
        shapes |= _linear(f"{block}mlp.linear1", width, hidden) | _linear(f"{block}mlp.linear2", hidden, width)
        shapes |= _linear(f"{block}attn.out_proj", width, width) | {f"{block}attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{block}attn.qkv.bias": (3 * width,)} if case.qkv_bias else {}
        shapes |= _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width) | _norm(f"{block}norm_cross_attn", width)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def make_peer(case: Case) -> Any:
    """MONAI's own module, in float64."""
    from monai.networks import nets

    common: dict[str, Any] = {
        "in_channels": case.channels,
        "img_size": case.size,
        "patch_size": case.token,
        "hidden_size": case.width,
        "mlp_dim": case.hidden,
        "num_layers": case.depth,
        "num_heads": case.heads,
        "proj_type": case.embedding,
        "qkv_bias": case.qkv_bias,
    }
    if case.kind == "ViT":
        return nets.ViT(**common, pos_embed_type=case.positions, classification=True).double().eval()
    if case.kind == "ViTAutoEnc":
        return nets.ViTAutoEnc(**common).double().eval()
    decoder = {
        "decoder_hidden_size": case.decoder_width,
        "decoder_mlp_dim": case.decoder_hidden,
        "decoder_num_layers": case.depth,
        "decoder_num_heads": case.decoder_heads,
        "decoder_pos_embed_type": case.decoder_positions,
    }
    return nets.MaskedAutoEncoderViT(**common, **decoder, pos_embed_type=case.positions).double().eval()


def run(case: Case, peer: Any, image: np.ndarray, visible: np.ndarray) -> dict[str, np.ndarray]:
    """What the peer makes of images (b, x, y, z, c): tokens after the final norm, the class token first, and an autoencoder's reconstruction."""
    import torch

    volume = torch.from_numpy(image).double().permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        if case.kind != "MaskedAutoEncoderViT":
            return {"tokens": peer.norm(peer(volume)[1][-1]).numpy()}
        seen = {}
        peer._masking = lambda x, masking_ratio=None: (x[_rows(visible), visible], torch.from_numpy(visible), torch.ones(x.shape[:2]))
        peer.blocks.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output.numpy()))
        return {"reconstruction": peer(volume)[0].numpy(), **seen}


def _rows(visible: np.ndarray) -> np.ndarray:
    return np.arange(len(visible))[:, None]


def main() -> None:
    """Run the peers in float64 and store their outputs, of a reconstruction every seventh voxel."""
    import monai
    import torch

    outputs = {}
    for name, case in CASES.items():
        peer = make_peer(case)
        peer.load_state_dict({key: torch.from_numpy(value) for key, value in make_state(case).items()}, strict=True)
        for what, array in run(case, peer, make_image(case), make_visible(case)).items():
            outputs[f"{name}.{what}"] = (array[..., ::7] if what == "reconstruction" else array).astype(np.float32)
            print(f"{name}.{what} {array.shape}: {array.min():.2f} to {array.max():.2f}")
    np.savez_compressed(FILE, versions=np.array([f"monai {monai.__version__}", f"torch {torch.__version__}"]), **outputs)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
