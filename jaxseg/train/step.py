"""The one training step: global loss ratios, gradients, the update, the NaN policy. Layouts wrap it for devices."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.errors import ConfigError
from jaxseg.train.norm import global_norm
from jaxseg.train.parallel import mean
from jaxseg.train.state import TrainState

Terms = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., Terms]
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
Moved = Callable[[Any], Any]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    weights: Mapping[str, float] | None = None,
    ema_decay: float | None = None,
    advance: Callable[[Any, Any], Any] | None = None,
    accumulate: int = 1,
    across: bool = False,
) -> Step:
    """Build `step(state, batch, key, axis=None) -> (state, metrics)`.

    The loss minimised is `sum_t weights[t] * mean(sum_t) / mean(count_t)`, with the means over all devices and micro-batches: the
    ratio of the global batch whatever the layout, also when a device holds no foreground. Gradients are averaged over `axis`.

    Args:
        loss: `loss(params, batch, keys, extra) -> {term: (sum, count)}`, float32 scalars; counts must not depend on `params`. `keys`
            is `(b,)`, one per sample: the run's key folded with `batch["id"]`, so the numbers do not depend on which device holds a sample.
        optimizer: any optax transformation; `make_optimizer` builds ours.
        weights: factor of each term, 1 where not named.
        ema_decay: keep `ema = decay * ema + (1 - decay) * params` in the state (which must have been created with it).
        advance: `advance(extra, params) -> extra` after each update, on the new parameters (a teacher's average); without it `extra` stays.
        accumulate: split each device's batch into so many micro-batches, one after the other; the result is the same for a loss that is a sum over
            samples, the memory smaller.
        across: the loss compares samples with one another. It is then called `loss(params, batch, keys, extra, axis)`, so that it can see those
            of all devices (`parallel.gather`), sums over its own samples alone, and cannot be accumulated.

    Returns:
        The step. A layout that spreads the state hands it `whole`, which brings arrays onto every device for the loss, and `parts`, which leaves
        each device its part of the gradients. Its metrics are float32 scalars, equal on all devices: each term, `loss`, `grad_norm`, and `skipped` (1 where the
        loss or the gradient was not finite: parameters, optimizer state, average and `extra` then stay as they were, and only `step` advances).
    """
    if accumulate < 1:
        raise ConfigError(f"accumulate is {accumulate}; it must be 1 or more micro-batches")
    if across and accumulate > 1:
        raise ConfigError(f"this loss compares all samples of a batch, which accumulate={accumulate} would part: set accumulate to 1")
    weights = dict(weights or {})
    told = optax.with_extra_args_support(optimizer)

    def step(
        state: TrainState, batch: Any, key: jax.Array, axis: str | None = None, *, whole: Moved = _where_it_is, parts: Moved = _where_it_is
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
        own = partial(loss, axis=axis) if across else loss
        params, extra = whole((state.params, state.extra))
        grads, sums, counts = _gradients(
            own, weights, accumulate, dataclasses.replace(state, params=params, extra=extra), batch, keys, axis
        )
        grads = parts(mean(grads, axis))
        terms = {name: value / counts[name] for name, value in mean(sums, axis).items()}
        total = _weighted(terms, weights)
        norm = global_norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        metrics = {**terms, "loss": total, "grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
        return _update(state, grads, norm, finite, told, ema_decay, advance), metrics

    return step


def _where_it_is(tree: Any) -> Any:
    return tree


def _weighted(terms: Mapping[str, jax.Array], weights: Mapping[str, float]) -> jax.Array:
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ConfigError(f"weights name the loss terms {', '.join(unknown)}, but the loss returns {', '.join(terms)}")
    return sum((weights.get(name, 1.0) * value for name, value in terms.items()), jnp.zeros((), jnp.float32))


def _denominators(counts: Mapping[str, jax.Array], axis: str | None) -> dict[str, jax.Array]:
    """The mean count of each term over the axis; 1 where nothing was counted, so that 0 / 0 is 0."""
    totals = jax.lax.stop_gradient(mean(dict(counts), axis))
    return {name: jnp.where(count > 0, count, 1.0) for name, count in totals.items()}


def _gradients(loss: Loss, weights: Mapping[str, float], accumulate: int, state: TrainState, batch: Any, keys: jax.Array, axis: str | None):
    """This device's gradient of the global ratio, its term sums, and the global denominators."""

    def local(params: Any, part: Any, part_keys: jax.Array, counts: dict[str, jax.Array] | None):
        terms = loss(params, part, part_keys, state.extra)
        if counts is None:
            counts = _denominators({name: count for name, (_, count) in terms.items()}, axis)
        sums = {name: value.astype(jnp.float32) for name, (value, _) in terms.items()}
        return _weighted({name: value / counts[name] for name, value in sums.items()}, weights), (sums, counts)

    differentiate = jax.grad(local, has_aux=True)
    if accumulate == 1:
        grads, (sums, counts) = differentiate(state.params, batch, keys, None)
        return grads, sums, counts

    parts = _split((batch, keys), accumulate)

    # The denominators belong to the whole batch, so they come first; counts need no forward pass and the compiler drops it.
    def count(_: None, part: Any):
        return None, {name: value for name, (_, value) in loss(state.params, part[0], part[1], state.extra).items()}

    counts = _denominators(jax.tree.map(lambda each: each.sum(0), jax.lax.scan(count, None, parts)[1]), axis)

    def accumulated(total: Any, part: Any):
        grads, (sums, _) = differentiate(state.params, *part, counts)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    zeros = jax.tree.map(jnp.zeros_like, (state.params, {name: jnp.zeros((), jnp.float32) for name in counts}))
    (grads, sums), _ = jax.lax.scan(accumulated, zeros, parts)
    return grads, sums, counts


def _split(tree: Any, parts: int) -> Any:
    """Arrays `(b, ...)` to `(parts, b / parts, ...)`.

    Micro-batch j takes samples j, j + parts, ...: contiguous ones would lie on few devices in the mesh layout, and move.
    """

    def split(array: jax.Array) -> jax.Array:
        if array.shape[0] % parts:
            raise ConfigError(
                f"a batch of {array.shape[0]} per device cannot be accumulated in {parts} equal parts; change batch or accumulate"
            )
        return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def _update(
    state: TrainState,
    grads: Any,
    norm: jax.Array,
    finite: jax.Array,
    optimizer: optax.GradientTransformationExtraArgs,
    ema_decay: float | None,
    advance: Callable[[Any, Any], Any] | None,
) -> TrainState:
    if ema_decay is not None and state.ema is None:
        raise ConfigError("ema_decay is set, but the state holds no average: create it with TrainState.create(..., ema=True)")

    def moved(before: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(grads, before.opt_state, before.params, grad_norm=norm)
        params = optax.apply_updates(before.params, updates)
        ema = before.ema if ema_decay is None else _averaged(ema_decay, before.ema, params)
        extra = before.extra if advance is None else advance(before.extra, params)
        return dataclasses.replace(before, params=params, opt_state=opt_state, ema=ema, extra=extra)

    # A branch, not a choice per array: to choose, XLA keeps the old moments beside the new ones, two more copies of the parameters.
    after = jax.lax.cond(finite, moved, lambda before: before, state)
    return dataclasses.replace(after, step=state.step + 1)


def _averaged(decay: float, average: Any, params: Any) -> Any:
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, params)
