"""What one training step asks of each device, told without compiling it: memory, bytes sent, operations. docs/scaling.md explains the terms;
`bench.scaling` sets them beside compiled programs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxseg.train import Layout

_KEY_BYTES = 8
"""Of the run's random key."""


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Of one step on one device.

    Attributes:
        arguments: bytes of its share of the train state and of the batch.
        gathered: bytes of parameters brought onto it for the step, where `fsdp` spreads them.
        gradients: bytes of the gradients before they are parted.
        activations: bytes that the forward pass keeps for the backward pass.
        results: bytes of all results of each kind of collective, as XLA's CPU backend writes them (an all-reduce where a GPU would
            reduce-scatter).
        sent: bytes it sends, by the ring algorithms, with the reduce-scatter of a GPU or TPU.
    """

    arguments: int
    gathered: int
    gradients: int
    activations: int
    results: dict[str, int]
    sent: float

    @property
    def temporaries(self) -> int:
        """Bytes beside the arguments: gathered parameters, gradients and activations. What one layer needs while it runs is not in it."""
        return self.gathered + self.gradients + self.activations

    @property
    def memory(self) -> int:
        """Arguments and temporaries."""
        return self.arguments + self.temporaries


def predict(layout: Layout, loss: Callable[..., Any], state: Any, batch: Any, *, accumulate: int = 1) -> Predicted:
    """The prediction for a mesh layout.

    Args:
        loss: as `make_step` takes it.
        state, batch: abstract or real; the batch is that of all devices.
        accumulate: micro-batches; each of them brings its gradients together.
    """
    count, fsdp = len(layout.devices), layout.fsdp
    data = count // fsdp
    spread, everywhere = _bytes_by_place(layout, state.params)
    share = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] // count // accumulate, *leaf.shape[1:]), leaf.dtype), batch)
    terms = jax.eval_shape(lambda state, batch: loss(state.params, batch, _keys(batch), state.extra), state, share)
    totals = 4 * 2 * len(terms)
    results = _collectives(spread, everywhere, data, fsdp, accumulate, totals)
    every = 2 * (count - 1) / count * (accumulate * everywhere + totals)
    parts = accumulate * ((fsdp - 1) / fsdp * spread + 2 * (data - 1) / data * spread / fsdp)
    return Predicted(
        arguments=sum(_share(layout, state))
        + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // count
        + _KEY_BYTES,
        gathered=spread if fsdp > 1 else 0,
        gradients=(spread + everywhere) * (2 if accumulate > 1 else 1),
        activations=kept_bytes(loss, state, share),
        results=results,
        sent=every + parts + (fsdp - 1) / fsdp * spread,
    )


def kept_bytes(loss: Callable[..., Any], state: Any, batch: Any) -> int:
    """Bytes that differentiation keeps between the passes over this batch, arrays that are there anyway (parameters, batch) not counted."""

    def kept(state: Any, batch: Any) -> Any:
        def total(params: Any) -> Any:
            terms = loss(params, batch, _keys(batch), state.extra)
            return sum(value for value, _ in terms.values())

        return jax.tree.leaves(jax.vjp(total, state.params)[1])

    jaxpr = jax.make_jaxpr(kept)(state, batch).jaxpr
    given = {id(each) for each in (*jaxpr.invars, *jaxpr.constvars)}
    found = {id(each): each.aval for each in jaxpr.outvars if id(each) not in given and not hasattr(each, "val")}
    return sum(aval.size * aval.dtype.itemsize for aval in found.values())  # pyright: ignore[reportAttributeAccessIssue]


def _keys(batch: Any) -> Any:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["id"])


def _share(layout: Layout, tree: Any) -> list[int]:
    """Bytes of each leaf on one device."""
    places = jax.tree.leaves(layout.shardings(tree))
    return [
        leaf.size * leaf.dtype.itemsize // (1 if place.is_fully_replicated else layout.fsdp)
        for leaf, place in zip(jax.tree.leaves(tree), places)
    ]


def _bytes_by_place(layout: Layout, params: Any) -> tuple[int, int]:
    """Bytes of the parameters that are spread over `fsdp`, and of those that every device holds."""
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    parted = [
        (leaf, place)
        for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(layout.shardings(params)))
        if not place.is_fully_replicated
    ]
    spread = sum(leaf.size * leaf.dtype.itemsize for leaf, _ in parted)
    return spread, whole - spread


def _collectives(spread: int, everywhere: int, data: int, fsdp: int, accumulate: int, totals: int) -> dict[str, int]:
    if data * fsdp == 1:
        return {}
    reduced = accumulate * (everywhere + spread + (spread // fsdp if data > 1 and fsdp > 1 else 0)) + totals
    return {"all-reduce": reduced} | ({"all-gather": spread} if fsdp > 1 else {})
