"""Which tokens a masked autoencoder sees: random units larger than a token, trimmed to an exact number. Called by `mae`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxseg.errors import ShapeError
from jaxseg.models.positions import Triple


def visible_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` stay visible when `ratio` is hidden: the nearest number that leaves at least one visible and one hidden."""
    return min(max(tokens - round(ratio * tokens), 1), tokens - 1)


def draw(
    keys: Key[Array, " b"],
    grid: Triple,
    ratio: float,
    *,
    unit: Triple = (2, 2, 2),
    blocks: float = 0.0,
    slabs: float = 0.0,
    body: Bool[Array, "b n"] | None = None,
    body_first: bool = False,
) -> tuple[Int[Array, "b visible"], Int[Array, "b hidden"]]:
    """Indices of the visible and of the hidden tokens of every sample, one key per sample; their numbers are static and exact.

    Visible tokens are whole units of `unit` tokens along each axis, except the last unit, of which a random part is taken. With the probability
    `blocks` a sample has units twice as large, with the probability `slabs` units that run through the crop except along one random axis.
    Units that do not divide the grid are cut at a random side of it. `body` says which tokens hold more than air: hidden tokens come in random
    order with those of the body first, so that a leading part of them is a random part of what is worth predicting, and `body_first` chooses
    the visible tokens among them before any air. Raises ShapeError for a grid of one token.
    """
    tokens = int(np.prod(grid))
    if tokens < 2:
        raise ShapeError(f"a token grid of {grid} cannot be masked: take smaller tokens or a larger crop")
    visible = visible_count(tokens, ratio)
    air = jnp.zeros((keys.shape[0], tokens)) if body is None else (~body).astype(jnp.float32)

    def one(key: Key[Array, ""], air: Float[Array, " n"]) -> tuple[Array, Array]:
        score_key, hidden_key = jax.random.split(key)
        order = jnp.argsort(_scores(score_key, grid, unit, blocks, slabs) + (air if body_first else 0))
        hidden = order[visible:]
        shuffled = jnp.argsort(jax.random.uniform(hidden_key, hidden.shape) + air[hidden])
        return order[:visible], hidden[shuffled]

    return jax.vmap(one)(keys, air)


def _scores(key: Key[Array, ""], grid: Triple, unit: Triple, blocks: float, slabs: float) -> Float[Array, " n"]:
    """Scores of one sample's tokens, of the kind of units that its key draws."""
    block = tuple(max(u, min(2 * u, -(-g // 2))) for u, g in zip(unit, grid))
    across = [tuple(unit[a] if a == axis else grid[a] for a in range(3)) for axis in range(3)]
    chances = np.array([1 - blocks - slabs, blocks, *[slabs / 3] * 3])
    kinds = [(kind, chance) for kind, chance in zip((unit, block, *across), chances) if chance > 0]
    if len(kinds) == 1:
        return unit_scores(key, grid, kinds[0][0])
    kind_key, key = jax.random.split(key)
    scores = jnp.stack([unit_scores(key, grid, kind) for kind, _ in kinds])
    return scores[jax.random.choice(kind_key, len(kinds), p=jnp.array([chance for _, chance in kinds]))]


def unit_scores(key: Key[Array, ""], grid: Triple, unit: tuple[int, ...]) -> Float[Array, " n"]:
    """Random scores in [0, 1): those of one unit's tokens lie together, apart from every other unit's, in random order among themselves."""
    order_key, offset_key, tie_key = jax.random.split(key, 3)
    counts = [-(-g // u) for g, u in zip(grid, unit)]
    spare = np.array([n * u - g for n, u, g in zip(counts, unit, grid)])
    offset = jax.random.randint(offset_key, (3,), 0, spare + 1)
    of_axis = [(jnp.arange(g) + offset[axis]) // u for axis, (g, u) in enumerate(zip(grid, unit))]
    units = int(np.prod(counts))
    rank = jax.random.permutation(order_key, units).reshape(counts)[jnp.ix_(*of_axis)].reshape(-1)
    return (rank + jax.random.uniform(tie_key, rank.shape)) / units
