"""The processes of one training, which meet before they need each other's numbers."""

import itertools

import jax
import orbax.checkpoint as ocp

PATIENCE = 3600
"""Seconds that processes wait for a late one. One that died is noticed sooner: JAX's coordination service looks after all of them."""

_meetings = itertools.count()


def meet(name: str) -> None:
    """Return once every process is here; all of them must call this, in the same order. A lone process goes on at once.

    The processes meet at the coordination service, not in a collective: between CPUs the first collective gives up when a process is 30 s late
    (Gloo), as one is that compiles beside other work, or that hashes a large checkpoint while the others wait.

    Args:
        name: what is waited for, for the error.

    Raises:
        jax.errors.JaxRuntimeError: a process died, or was not here within `PATIENCE` seconds.
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"{name} ({next(_meetings)})", timeout_ms=PATIENCE * 1000)
