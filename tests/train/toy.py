"""A small problem that the tests of training share: a two-term loss with unbalanced counts and per-sample noise, and a loader that is a pure function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.train import TrainState

BATCH, WIDTH, DEPTH = 16, 16, 3


def params() -> dict:
    """An encoder with stacked blocks and a head, named as the real models name theirs."""
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape) / np.sqrt(shape[-1])
    return {
        "encoder": {
            "embed": {"kernel": draw(0, 4, WIDTH), "bias": jnp.zeros(WIDTH)},
            "blocks": {
                "kernel": draw(1, DEPTH, WIDTH, WIDTH),
                "bias": jnp.zeros((DEPTH, WIDTH)),
                "norm": {"scale": jnp.ones((DEPTH, WIDTH))},
            },
        },
        "head": {"kernel": draw(2, WIDTH, 2), "bias": jnp.zeros(2)},
    }


def make_state(optimizer: optax.GradientTransformation, ema: bool = False) -> TrainState:
    """The state before the first step."""
    return TrainState.create(params(), optimizer, ema=ema)


def loss(p: dict, batch: dict, keys: jax.Array, extra: object) -> dict:
    """A masked square error, counted in entries of the mask (some samples have none), and a penalty counted in samples."""
    x = batch["x"] + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    x = x @ p["encoder"]["embed"]["kernel"] + p["encoder"]["embed"]["bias"]

    def block(x, layer):
        return x + layer["norm"]["scale"] * jnp.tanh(x @ layer["kernel"] + layer["bias"]), None

    x, _ = jax.lax.scan(block, x, p["encoder"]["blocks"])
    y = x @ p["head"]["kernel"] + p["head"]["bias"]
    error = jnp.where(batch["mask"][:, None] > 0, jnp.square(y - batch["y"]), 0.0)
    return {
        "error": (error.sum(), batch["mask"].sum()),
        "size": (jnp.square(y).sum(), jnp.float32(len(y))),
    }


def make_batch(number: int, batch: int = BATCH, process: tuple[int, int] = (0, 1)) -> dict[str, np.ndarray]:
    """Batch `number`; the first half of its samples have no masked entry, so that half of eight devices count nothing."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(batch, 4)).astype(np.float32)
    whole = {
        "x": x,
        "y": np.stack([x.sum(1), x[:, 0]], 1).astype(np.float32),
        "mask": np.where(np.arange(batch) < batch // 2, 0.0, rng.integers(1, 5, batch)).astype(np.float32),
        "id": (number * batch + np.arange(batch)).astype(np.int32),
    }
    part = batch // process[1]
    return {name: array[process[0] * part : (process[0] + 1) * part] for name, array in whole.items()}


class ToyLoader:
    """Batches 0, 1, 2, ...; those in `broken` hold NaN."""

    def __init__(self, process: tuple[int, int] = (0, 1), broken: tuple[int, ...] = ()):
        self.next, self.process, self.broken = 0, process, broken

    def __next__(self) -> dict[str, np.ndarray]:
        batch = make_batch(self.next, process=self.process)
        if self.next in self.broken:
            batch["y"] = np.full_like(batch["y"], np.nan)
        self.next += 1
        return batch

    def get_state(self) -> dict:
        return {"next": self.next}

    def set_state(self, state: dict) -> None:
        self.next = state["next"]
