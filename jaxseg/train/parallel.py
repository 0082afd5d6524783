"""Where arrays live: the two layouts of a training step over devices, `pmap` (everything replicated) and `mesh` (data and fsdp axes).

The step itself is written once; `mean` is its only parallel call, and `gather` that of a loss between samples.
Used by the loop, the checkpoints and the tests of equality between layouts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import ConfigError
from jaxseg.train.processes import meet

AXIS = "data"


def mean(tree: Any, axis: str | None) -> Any:
    """The mean of each leaf over the devices of `axis`; the tree itself where `axis` is None (one device, or a mesh's global arrays)."""
    # Over one device XLA's CPU backend would still copy every gradient.
    return tree if axis is None or jax.lax.axis_size(axis) == 1 else jax.lax.pmean(tree, axis)


def gather(tree: Any, axis: str | None) -> Any:
    """Each leaf `(b, ...)` of all devices of `axis`, one after the other `(devices * b, ...)`; the tree itself where `axis` is None.

    Its gradient is that of the sum of all devices' losses, so a loss that sums over its own samples alone, compared with everybody's, has the
    numbers of one device.
    """
    return tree if axis is None else jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), tree)


class Layout:
    """A way to lay one step over devices. All layouts give the same numbers.

    Args:
        kind: "pmap" replicates the state and splits the batch; "mesh" splits the batch over all devices and large arrays over `fsdp`
            of them.
        devices: all devices of all processes by default.
        fsdp: how many devices share one copy of the state (mesh only).
        shard_min_bytes: smaller arrays are replicated; sharding them makes XLA rematerialise (4 MB by default, small in tests).

    Raises:
        ConfigError: a kind that does not exist, or `fsdp` that does not divide the devices.
    """

    def __init__(
        self,
        kind: Literal["pmap", "mesh"] = "pmap",
        devices: Sequence[Any] | None = None,
        *,
        fsdp: int = 1,
        shard_min_bytes: int = 4 << 20,
    ):
        if kind not in ("pmap", "mesh"):
            raise ConfigError(f"layout {kind!r} does not exist; choose 'pmap' or 'mesh'")
        chosen = list(jax.devices() if devices is None else devices)
        if fsdp < 1 or len(chosen) % fsdp:
            raise ConfigError(f"fsdp={fsdp} does not divide {len(chosen)} devices; choose a divisor of {len(chosen)}")
        if kind == "pmap" and fsdp != 1:
            raise ConfigError(f"fsdp={fsdp} needs layout 'mesh'; 'pmap' keeps a whole copy of the state on each device")
        self.kind, self.fsdp, self.shard_min_bytes, self.devices = kind, fsdp, shard_min_bytes, chosen
        self._pmap_devices = None if devices is None else chosen
        local = [device for device in chosen if device.process_index == jax.process_index()]
        # pmap works on what is local to a process; a mesh spans all processes.
        placed = local if kind == "pmap" else chosen
        self.mesh = Mesh(np.array(placed).reshape(-1, fsdp), (AXIS, "fsdp"), axis_types=(AxisType.Auto,) * 2)
        self.global_mesh = Mesh(np.array(chosen).reshape(-1, fsdp), (AXIS, "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def __repr__(self) -> str:
        return f"Layout({self.kind!r}, devices={len(self.devices)}, fsdp={self.fsdp})"

    def _spec(self, leaf: Any) -> PartitionSpec:
        bytes_needed = leaf.size * leaf.dtype.itemsize
        axes = [axis for axis, size in enumerate(leaf.shape) if size % self.fsdp == 0]
        if self.fsdp == 1 or bytes_needed < self.shard_min_bytes or not axes:
            return PartitionSpec()
        largest = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return PartitionSpec(*[None] * largest, "fsdp")

    def shardings(self, tree: Any) -> Any:
        """Where each leaf of a state lies: the largest axis that `fsdp` divides is sharded, in arrays of `shard_min_bytes` and more.

        The rule looks at shapes alone, so moments and averages lie where their parameters do.
        """
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf)), tree)

    def init(self, make: Callable[..., Any], *placed: Any) -> Any:
        """`make(*placed)`, a state, made on the devices (all processes must call this) of trees that `place` put there.

        No array is ever whole on one device where it should be sharded.
        """
        shardings = self.shardings(jax.eval_shape(make, *placed))
        meet("a state is made")
        return jax.jit(make, out_shardings=shardings)(*placed)

    def place(self, tree: Any) -> Any:
        """A copy of a state that exists already (the same on every process, all of which must call this), put where this layout wants it.

        A step uses the state up that it is given, and must not take the arrays of the caller's own network with it.
        """
        meet("a state is placed")
        own = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)
        return jax.device_put(own, self.shardings(tree))

    def check_parts(self, batch: int, accumulate: int) -> None:
        """ConfigError for a batch (samples over all processes) that does not give every device as many samples in each of `accumulate` parts.

        In a mesh such parts would lie on some devices alone, and samples would move between devices in every step.
        """
        devices = len(self.devices)
        if accumulate > 1 and batch % (devices * accumulate):
            raise ConfigError(
                f"a batch of {batch} on {devices} device{'s' * (devices > 1)} cannot be accumulated in {accumulate} equal parts; choose a batch that "
                f"is a multiple of {devices * accumulate}, or another accumulate"
            )

    def put(self, batch: Any) -> Any:
        """This process's host batch, arrays `(b, ...)`, onto the devices: `(devices, b / devices, ...)` (pmap) or global `(B, ...)`.

        Raises ConfigError where the batch does not divide by the devices.
        """
        local = sum(device.process_index == jax.process_index() for device in self.devices)
        sizes = sorted({len(array) for array in jax.tree.leaves(batch)})
        if len(sizes) != 1 or sizes[0] % local:
            found = " and ".join(map(str, sizes))
            raise ConfigError(f"a batch of {found} samples cannot be split over {local} devices; choose a multiple of {local}")
        if self.kind == "pmap":
            batch = jax.tree.map(lambda array: np.reshape(array, (local, len(array) // local, *array.shape[1:])), batch)
            return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(AXIS)))
        places = self.batch_shardings(batch)
        return jax.tree.map(lambda array, place: jax.make_array_from_process_local_data(place, np.asarray(array)), batch, places)

    def batch_shardings(self, batch: Any) -> Any:
        """Where each array of a mesh's batch lies: its samples split over all devices."""
        return jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec((AXIS, "fsdp"))), batch)

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step(state, batch, key, axis=None) -> (state, metrics)` as a compiled `f(state, batch, key)`, which uses up the state given.

        `f.lower(state, batch, key)` lowers it, as with `jax.jit`.
        """
        if self.kind == "pmap":
            wrapped = partial(step, axis=AXIS)
            options: dict[str, Any] = {"in_axes": (None, 0, None), "out_axes": None, "donate_argnums": 0, "devices": self._pmap_devices}
            return jax.pmap(wrapped, axis_name=AXIS, **options)

        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def whole(tree: Any) -> Any:
            return jax.lax.with_sharding_constraint(tree, everywhere)

        def parts(tree: Any) -> Any:
            return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

        # Left to itself, XLA spreads the activations as the parameters are, and moves them from device to device in every layer.
        spread = {"whole": whole, "parts": parts} if self.fsdp > 1 else {}

        def pinned(state: Any, batch: Any, key: jax.Array) -> Any:
            after, metrics = step(state, batch, key, **spread)
            return parts(after), whole(metrics)

        # XLA's CPU backend may start independent collectives in another order on each device, and with two mesh axes they then wait for each other
        # for ever (jax 0.10.2: 4 of 4 runs with fsdp 2 and accumulation hung; none with this scheduler off).
        on_cpu = self.devices[0].platform == "cpu"
        return jax.jit(
            pinned, donate_argnums=0, compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False} if on_cpu else None
        )

    def host(self, tree: Any) -> Any:
        """The whole of each array as numpy, on every process (all processes must call it)."""

        def whole(leaf: Any) -> np.ndarray:
            if leaf.is_fully_addressable or leaf.is_fully_replicated:
                return np.asarray(leaf)
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

        return jax.tree.map(whole, tree)

    def to_global(self, state: Any) -> Any:
        """A state as arrays that all processes share: across processes pmap's are local to each, which Orbax refuses."""
        if self.kind == "mesh" or jax.process_count() == 1:
            return state
        return multihost_utils.host_local_array_to_global_array(state, self.global_mesh, PartitionSpec())

    def from_global(self, state: Any) -> Any:
        """The inverse of `to_global`."""
        if self.kind == "mesh" or jax.process_count() == 1:
            return state
        return multihost_utils.global_array_to_host_local_array(state, self.global_mesh, PartitionSpec())

    def global_shardings(self, tree: Any) -> Any:
        """Where the leaves of `to_global(state)` lie."""
        return jax.tree.map(lambda leaf: NamedSharding(self.global_mesh, self._spec(leaf)), tree)
