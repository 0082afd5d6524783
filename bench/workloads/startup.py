"""From the start of a process to the end of its first training step (a small UNETR, 64³): PyTorch and MONAI, and ours with the compilation
cache cold and warm."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.case import OUR_RECIPE, Case, Setting, Work
from bench.process import ROOT
from bench.torch_side import import_or_absent


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A crop of `side` voxels, a ViT of `width` with `heads`, `feature` channels; `warm`: what was compiled once is on disk."""

    side: int
    width: int
    heads: int
    feature: int
    warm: bool


def _case(variant: str, warm: bool) -> Case:
    full, quick = Sizes(64, 192, 3, 16, warm), Sizes(32, 24, 2, 4, warm)
    return Case(variant, "torch, MONAI", OUR_RECIPE, full, quick, lambda sizes: 1, "starts", {"loss": 1e-3}, warmup=1 if warm else 0)


CASES = (_case("cold", False), _case("warm", True))

_PEER = """
import sys, torch, numpy as np
from monai.losses import DiceCELoss
from monai.networks.nets import UNETR
side, width, heads, feature = map(int, sys.argv[1:5])
torch.set_num_threads(int(sys.argv[5])); torch.manual_seed(0)
net = UNETR(1, 2, (side,) * 3, feature_size=feature, hidden_size=width, mlp_dim=4 * width, num_heads=heads)
torch.nn.init.zeros_(net.out.conv.conv.weight); torch.nn.init.zeros_(net.out.conv.conv.bias)
optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
rng = np.random.default_rng(0)
image = torch.from_numpy(rng.standard_normal((1, 1, side, side, side), np.float32))
loss = DiceCELoss(to_onehot_y=True, softmax=True)(net(image), torch.ones(1, 1, side, side, side))
loss.backward(); optimizer.step()
print(float(loss))
"""
_OURS = """
import sys, jax, numpy as np, jax.numpy as jnp, optax
from flax import nnx
from jaxseg.compilation import use_cache
from jaxseg.losses import dice_ce
from jaxseg.models.unetr import UNETR, UNETRConfig
from jaxseg.models.vit import ViTConfig
from jaxseg.train.state import TrainState
from jaxseg.train.step import make_step
use_cache()
side, width, heads, feature = map(int, sys.argv[1:5])
encoder = ViTConfig.classic(in_channels=1, crop=(side,) * 3, token=(16,) * 3, width=width, depth=12, heads=heads)
config = UNETRConfig(encoder, num_classes=2, feature=feature)
graph = nnx.split(nnx.eval_shape(lambda: UNETR(config, rngs=nnx.Rngs(0))))[0]
optimizer = optax.adamw(1e-4)
def make():
    network = UNETR(config, rngs=nnx.Rngs(0))
    network.head.kernel[...] = jnp.zeros_like(network.head.kernel[...])
    return TrainState.create(nnx.split(network)[1], optimizer)
def loss(params, batch, keys, extra):
    return dice_ce(nnx.merge(graph, params)(batch["image"]), batch["label"], include_background=True)
rng = np.random.default_rng(0)
image = rng.standard_normal((1, side, side, side, 1), np.float32)
batch = {"image": image, "label": np.ones((1, side, side, side), np.uint8), "id": np.zeros(1, np.int32)}
state, metrics = jax.jit(make_step(loss, optimizer), donate_argnums=0)(jax.jit(make)(), batch, jax.random.key(0))
print(float(jax.block_until_ready(metrics["loss"])))
"""


def _starter(code: str, sizes: Sizes, setting: Setting, changes: dict[str, str]) -> Callable[[], float]:
    """A function that starts a process for `code` and gives the loss that it prints. The head begins at zero, so both sides' are equal."""
    arguments = [str(value) for value in (sizes.side, sizes.width, sizes.heads, sizes.feature, setting.threads)]

    def start() -> float:
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        found = subprocess.run(command, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"the process that should take a first step failed:\n{found.stderr[-4000:]}")
        return float(found.stdout.split()[-1])

    return start


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """A process that imports PyTorch and MONAI and takes one step, eagerly."""
    import_or_absent(setting, "monai")
    start = _starter(_PEER, sizes, setting, {})
    return Work(lambda: {"loss": np.array([start()])}, start, in_children=True)


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """A process that imports jaxseg and takes one step, its programs compiled (cold) or read from the cache (warm)."""
    cache = folder / "cache"
    changes = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = _starter(_OURS, sizes, setting, changes)

    def run() -> float:
        if not sizes.warm:
            shutil.rmtree(cache, ignore_errors=True)
        return start()

    return Work(lambda: {"loss": np.array([run()])}, run, in_children=True)
