"""Both sides of a masked autoencoder's training step: the crops, which tokens are seen, ours with the peer's weights. mae_step and
evamae_step each say which network."""

from typing import Any, Protocol

import numpy as np

from bench.case import Setting, Work

TOLERANCE = {"reconstruction": 1e-4, "loss": 1e-4, "grad_norm": 1e-3}


class CropSizes(Protocol):
    """Cubic crops of `side` voxels, tokens of `token`, `batch` of them with `channels`."""

    @property
    def side(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def channels(self) -> int: ...


def noise(sizes: CropSizes) -> np.ndarray:
    """(b, x, y, z, c) of mean 0 and deviation 1, the same on both sides."""
    return np.random.default_rng(0).standard_normal((sizes.batch, *(sizes.side,) * 3, sizes.channels), np.float32)


def visible_tokens(sizes: CropSizes) -> np.ndarray:
    """The tokens that are seen where both sides must see the same: int(0.25 n) of each crop, (b, v)."""
    tokens = (sizes.side // sizes.token) ** 3
    return np.argsort(np.random.default_rng(1).random((sizes.batch, tokens)), axis=1)[:, : int(0.25 * tokens)]


def patches_of(image: np.ndarray, token: int) -> np.ndarray:
    """The voxels of every token, (b, n, token³ c), tokens and voxels in the order (x, y, z)."""
    b, x, y, z, c = image.shape
    grid = image.reshape(b, x // token, token, y // token, token, z // token, token, c)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 5, 2, 4, 6, 7)).reshape(b, -1, token**3 * c)


def our_work(graph: Any, params: Any, sizes: CropSizes, setting: Setting) -> Work:
    """Steps of our masked autoencoder whose structure is `graph`, masks of its own; what is checked sees the tokens of `visible_tokens`."""
    import jax.numpy as jnp

    from bench import jax_side

    image, visible = noise(sizes), visible_tokens(sizes)
    batch = {"image": image, "mask": np.ones(image.shape[:4], np.uint8), "present": np.ones((sizes.batch, sizes.channels), np.float32)}

    def loss(network: Any, batch: Any, keys: Any) -> Any:
        return network.loss(batch["image"], batch["mask"], batch["present"], None, keys)[0]

    def check(network: Any) -> Any:
        patches, grid = network.encoder.patchify(jnp.asarray(image)), network.encoder.grid_of(image)
        predicted = network.predict_all(patches, grid, None, jnp.asarray(visible))
        hidden = jnp.ones(patches.shape[:2]).at[jnp.arange(sizes.batch)[:, None], visible].set(0)
        error = jnp.square(predicted - patches).mean(-1)
        return {"reconstruction": predicted, "loss": jnp.sum(error * hidden) / jnp.sum(hidden)}

    return jax_side.train_work(graph, params, batch, loss, check, setting)
