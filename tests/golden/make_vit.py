"""Makes vit_monai.npz: a tiny MONAI ViT's weights in our layout, an input, and MONAI's output and hidden states. Needs the parity extra.

python tests/golden/make_vit.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets.vit import ViT

CROP, TOKEN, WIDTH, DEPTH, HEADS, MLP, CHANNELS = (16, 16, 24), (8, 8, 8), 24, 3, 2, 48, 2


def arrays_in_our_layout(tensors: dict[str, torch.Tensor], *, embed: str, depth: int, crop: tuple, token: tuple) -> dict[str, np.ndarray]:
    """A MONAI ViT's state as `{our dotted name: array}`: matrices transposed, blocks stacked, tokens' voxels in the order (x y z c)."""
    state = {name: value.detach().numpy() for name, value in tensors.items()}
    if embed == "conv":
        weight = state["patch_embedding.patch_embeddings.weight"]
        kernel, bias = weight.transpose(2, 3, 4, 1, 0).reshape(-1, weight.shape[0]), state["patch_embedding.patch_embeddings.bias"]
    else:
        kernel, bias = state["patch_embedding.patch_embeddings.1.weight"].T, state["patch_embedding.patch_embeddings.1.bias"]
    grid = tuple(c // t for c, t in zip(crop, token))
    table = state["patch_embedding.position_embeddings"].reshape(*grid, -1)
    ours = {
        "patch.kernel": kernel,
        "patch.bias": bias,
        "positions.table": table,
        "norm.scale": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    names = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv", "attn.out_proj": "attention.out"}
    for theirs, name in {**names, "mlp.linear1": "mlp.linear1", "mlp.linear2": "mlp.linear2"}.items():
        weights = np.stack([state[f"blocks.{i}.{theirs}.weight"] for i in range(depth)])
        ours[f"blocks.{name}.{'scale' if weights.ndim == 2 else 'kernel'}"] = weights if weights.ndim == 2 else weights.transpose(0, 2, 1)
        if theirs != "attn.qkv":
            ours[f"blocks.{name}.bias"] = np.stack([state[f"blocks.{i}.{theirs}.bias"] for i in range(depth)])
    return ours


def monai_vit(embed: str, seed: int) -> ViT:
    """A small MONAI ViT with random weights everywhere, biases and norms included."""
    torch.manual_seed(seed)
    model = ViT(CHANNELS, CROP, TOKEN, hidden_size=WIDTH, mlp_dim=MLP, num_layers=DEPTH, num_heads=HEADS, proj_type=embed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def run(model: ViT, image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """MONAI's normed output and hidden states after each block, for an image `(b, x, y, z, c)`."""
    with torch.no_grad():
        output, states = model(torch.from_numpy(image.transpose(0, 4, 1, 2, 3).copy()))
    return output.numpy(), [state.numpy() for state in states]


def main() -> None:
    model = monai_vit("conv", 0)
    image = np.random.default_rng(0).normal(size=(2, *CROP, CHANNELS)).astype(np.float16)
    output, states = run(model, image.astype(np.float32))
    weights = arrays_in_our_layout(model.state_dict(), embed="conv", depth=DEPTH, crop=CROP, token=TOKEN)
    arrays: dict[str, Any] = {"image": image, "output": output, "state_1": states[0], **weights}
    np.savez_compressed(Path(__file__).with_name("vit_monai.npz"), **arrays)


if __name__ == "__main__":
    main()
