"""Our side of a workload with a network: the peer's weights converted, a forward pass or a whole training step compiled. Used by workloads."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bench.case import Setting, Work
from bench.torch_side import BETAS, LEARNING_RATE, WEIGHT_DECAY, WEIGHTS
from jaxseg.train.parallel import Layout
from jaxseg.train.state import TrainState
from jaxseg.train.step import Terms, make_step
from jaxseg.zoo.cost import program_flops
from jaxseg.zoo.pretrained import load_pretrained
from jaxseg.zoo.registry import architecture, build, network_of

LossOf = Callable[[Any, Any, jax.Array], Terms]


def converted(
    folder: Path, setting: Setting, settings: Mapping[str, Any] | None = None, *, alone: Callable[[], Any], **changes: Any
) -> tuple[Any, Any]:
    """(graph, parameters) of our network with the peer's weights, computing in the setting's precision. `changes` are fields of its config.

    Where the peer is absent and left no weights, `alone()` is the config of the same network, whose weights are then random.
    """
    network = load_pretrained(folder / WEIGHTS, settings=settings).network if (folder / WEIGHTS).exists() else network_of(alone())
    description = architecture(network)
    description["arguments"] = _with_dtype(description["arguments"], setting.dtype) | changes
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(description)))
    return graph, jax.block_until_ready(nnx.split(network)[1])


def forward_work(graph: Any, params: Any, image: np.ndarray, setting: Setting) -> Work:
    """Logits of one batch."""
    x = jnp.asarray(image)

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    compiled, seconds = compile_timed(jax.jit(forward), params, x)
    return Work(
        lambda: {"logits": np.asarray(compiled(params, x), np.float32)},
        lambda: jax.block_until_ready(compiled(params, x)),
        _flops(setting, forward, params, x),
        seconds,
    )


def train_work(
    graph: Any, params: Any, batch: Mapping[str, np.ndarray], loss: LossOf, check: Callable[[Any], Any], setting: Setting
) -> Work:
    """Whole training steps of AdamW on one batch, the state donated. `loss(network, batch, keys)` is minimised.

    `check(network)` gives the numbers before any step; the gradient's norm is added to them.
    """
    optimizer = optax.adamw(LEARNING_RATE, *BETAS, weight_decay=WEIGHT_DECAY)
    step = make_step(lambda params, batch, keys, extra: loss(nnx.merge(graph, params), batch, keys), optimizer)
    first = TrainState.create(params, optimizer)
    placed = {name: jnp.asarray(array) for name, array in batch.items()} | {"id": jnp.arange(len(batch["image"]), dtype=jnp.int32)}
    key = jax.random.key(0)
    # As the mesh layout compiles it, options and all.
    compiled, seconds = compile_timed(Layout("mesh", jax.devices()[:1]).compile(step), first, placed, key)
    flops = _flops(setting, step, first, placed, key)
    kept = [first]

    def run() -> None:
        kept[0], metrics = compiled(kept[0], placed, key)
        jax.block_until_ready((kept[0], metrics))

    def checked() -> dict[str, np.ndarray]:
        def numbers(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            found = check(nnx.merge(graph, params))
            return found["loss"], found

        grads, found = jax.jit(jax.grad(numbers, has_aux=True))(kept[0].params)
        return {name: np.asarray(value, np.float32) for name, value in (found | {"grad_norm": optax.tree.norm(grads)}).items()}

    return Work(checked, run, flops, seconds)


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """The compiled program and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    return function.lower(*arguments).compile(), time.perf_counter() - start


def _with_dtype(arguments: Any, dtype: str) -> Any:
    if isinstance(arguments, dict):
        return {key: dtype if key == "dtype" else _with_dtype(value, dtype) for key, value in arguments.items()}
    return arguments


def _flops(setting: Setting, function: Callable[..., Any], *arguments: Any) -> float | None:
    # On a CPU the fast forms of a convolution do more operations than the convolution: a rate of them would mislead.
    return float(program_flops(function, *arguments)) if setting.device == "gpu" else None
