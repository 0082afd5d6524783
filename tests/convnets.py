"""What the tests of MONAI's convolutional networks share: the module that made their golden file, and peers and ours with equal weights."""

import importlib.util
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.zoo.convert.monai_convnets import LAYOUTS
from jaxseg.zoo.convert.source import Converted, Settings, Source
from jaxseg.zoo.names import param_shapes, unflatten_params
from jaxseg.zoo.registry import network_of


def golden() -> ModuleType:
    """`tests/golden/make_convnets.py`: its cases, and weights and images by seed."""
    path = Path(__file__).parent / "golden" / "make_convnets.py"
    spec = importlib.util.spec_from_file_location("make_convnets", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(state: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Converted:
    """By the one layout that says the state is its own; no setting may be left over."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    (layout,) = [layout for layout in LAYOUTS if layout.recognise(shapes)]
    given = Settings(settings)
    found = layout.convert(Source(state, layout.name), given)
    given.check_all_asked()
    return found


def network(found: Converted) -> tuple[Any, Any]:
    """Graph and parameters, every array of the network filled from the peer's."""
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(found.config)))
    return graph, unflatten_params(params, found.arrays)


def random_network(config: Any) -> tuple[Any, Any]:
    """Graph and parameters from numpy: nothing to compile. Norms' scales and stored variances are positive."""
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(config)))
    rng = np.random.default_rng(0)
    draw = {
        name: rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        for name, shape in param_shapes(params).items()
    }
    return graph, unflatten_params(params, draw)


def shapes(config: Any, image: tuple[int, ...]) -> tuple[Any, list[tuple[int, ...]]]:
    """The logits (shape and type) and the shapes of the feature maps for an image `(b, x, y, z, c)`; nothing is computed."""

    def both(x: jax.Array) -> tuple[Any, Any]:
        model = network_of(config)
        spacing = jnp.ones((image[0], 3))
        return model(x, spacing=spacing), model.features(x, spacing=spacing)

    logits, maps = jax.eval_shape(both, jnp.zeros(image))
    return logits, [each.shape[1:] for each in maps]


@partial(jax.jit, static_argnums=0)
def apply(graph: Any, params: Any, image: Any, key: Any = None) -> jax.Array:
    """The network's logits."""
    return nnx.merge(graph, params)(image, key=key)


def check_golden(name: str) -> None:
    """The stored logits of the peer, at every second voxel, to 1e-5 of their range."""
    module = golden()
    case, wanted = module.CASES[name], np.load(module.FILE)[name]
    found = convert(module.make_state(case, module.stored_shapes(name)), case.settings)
    logits = np.asarray(apply(*network(found), module.make_image(case)))
    assert logits.dtype == np.float32 and logits.shape[1:4] == case.size
    assert np.abs(logits[:, ::2, ::2, ::2] - wanted).max() <= 1e-5 * np.ptp(wanted)


def randomise(torch: ModuleType, net: Any, seed: int) -> dict[str, np.ndarray]:
    """The `state_dict` of a peer in evaluation, drawn anew: statistics, affine norms and PReLU factors too are not those of a new network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.ndim == 5:
                value.normal_(std=(value[0].numel() if "up" not in name else value.shape[0]) ** -0.5)
            elif name.endswith(("running_var", "N.weight", "bn1.weight", ".1.weight")) and value.ndim == 1:
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.uniform_(-0.4, 0.4)
    net.eval()
    return {key: value.numpy() for key, value in net.state_dict().items()}


def check_peer(torch: ModuleType, net: Any, size: tuple[int, int, int], settings: Mapping[str, Any], seed: int = 0) -> None:
    """Logits of the peer's module and of ours for one image, to 1e-5 of their range."""
    torch.set_num_threads(1)
    found = convert(randomise(torch, net, seed), settings)
    image = np.random.default_rng(seed).normal(size=(1, *size, found.config.in_channels)).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    logits = np.asarray(apply(*network(found), image))
    assert logits.shape == wanted.shape and np.ptp(wanted) > 0.1
    assert np.abs(logits - wanted).max() <= 1e-5 * np.ptp(wanted)
