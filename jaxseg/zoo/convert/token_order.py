"""Evidence for the order in which an EvaMAE flattened its tokens: the order that reconstructs a hidden part of a real crop better.

Called by `nnssl_primus` when the user gives a sample.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg.errors import CheckpointError, InputError
from jaxseg.models.eva_mae import EvaMAE, EvaMAEConfig
from jaxseg.models.positions import gather_tokens
from jaxseg.zoo.convert.eva_blocks import Order
from jaxseg.zoo.names import unflatten_params


def read_sample(path: str | Path, config: EvaMAEConfig) -> np.ndarray:
    """A crop `(x, y, z)` or `(x, y, z, c)` from an .npy file, cut at its centre to the crop of `config`: `(1, x, y, z, c)`, float32.

    It is in the network's own axis order and normalised as in training. Raises InputError if it is no such array, or too small.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable .npy file ({error}); expected one crop, normalised as in training") from error
    array = array[..., None] if array.ndim == 3 else array
    crop, channels = config.encoder.crop, config.in_channels
    if array.ndim != 4 or array.shape[-1] != channels or any(n < c for n, c in zip(array.shape, crop)):
        raise InputError(f"{path}: the sample has the shape {array.shape}; expected (x, y, z, {channels}) of at least {crop} voxels")
    starts = [(n - c) // 2 for n, c in zip(array.shape, crop)]
    return array[tuple(slice(start, start + c) for start, c in zip(starts, crop))][None].astype(np.float32)


def reconstruction_errors(
    config: EvaMAEConfig, candidates: Mapping[Order, Mapping[str, np.ndarray]], image: np.ndarray, *, seed: int = 0
) -> dict[Order, float]:
    """Of each candidate's arrays, the mean squared error of the hidden patches of `image` `(1, x, y, z, c)`, relative to their variance.

    75 % of the patches are hidden, by `seed`, the same ones for all.
    """
    graph, shapes = nnx.split(nnx.eval_shape(lambda: EvaMAE(config, rngs=nnx.Rngs(0))))
    grid = config.encoder.grid
    tokens = int(np.prod(grid))
    shuffled = np.random.default_rng(seed).permutation(tokens)[None]
    visible, hidden = np.split(shuffled, [max(1, round(0.25 * tokens))], axis=1)

    @jax.jit
    def error(params, image, visible, hidden):
        network = nnx.merge(graph, params)
        patches = network.encoder.patchify(image)
        wanted = gather_tokens(patches, hidden)
        return jnp.mean(jnp.square(network.predict(patches, grid, None, visible, hidden) - wanted)) / jnp.var(wanted)

    return {order: float(error(unflatten_params(shapes, arrays), image, visible, hidden)) for order, arrays in candidates.items()}


def better_order(config: EvaMAEConfig, candidates: Mapping[Order, Mapping[str, np.ndarray]], image: np.ndarray) -> tuple[Order, str]:
    """The order whose arrays reconstruct `image` better, and a line that says all errors. CheckpointError if they do not differ."""
    errors = reconstruction_errors(config, candidates, image)
    said = ", ".join(f"{order} {error:.4f}" for order, error in errors.items())
    best = min(errors, key=lambda order: errors[order])
    if not np.isfinite(list(errors.values())).all() or max(errors.values()) - errors[best] < 1e-3 * max(errors.values()):
        raise CheckpointError(
            f"the sample does not tell the token orders apart (relative reconstruction errors {said}): give another, or token_order"
        )
    return best, f"token_order = {best}, by the relative reconstruction error of hidden patches: {said}"
