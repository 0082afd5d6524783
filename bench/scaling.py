"""`python -m bench.scaling`: the model of docs/scaling.md beside compiled programs on simulated devices, or (`--estimate`) what a masked autoencoder
asks of each device at full size, computed and not measured."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Before JAX is imported: eight simulated devices, and threads enough that no collective waits for one.
if "jax" not in sys.modules:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    os.environ.setdefault("NPROC", "32")

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bench.collectives import collectives, result_bytes
from bench.scaling_model import Predicted, predict
from jaxseg.losses import dice_ce
from jaxseg.models import MAEConfig, UNETRConfig, ViTConfig, fast_paths
from jaxseg.train import Layout, TrainState, make_step
from jaxseg.zoo.cost import count_params, program_flops
from jaxseg.zoo.registry import create_model, network_of

LAYOUTS = ("1x1", "2x1", "8x1", "4x2", "2x4", "1x8")
NETWORKS = ("mae", "unetr")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network's loss, its abstract train state (AdamW) and its abstract batch of all devices."""

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformation
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]


def small_problem(name: str, *, batch: int = 8, side: int = 32, width: int = 64, depth: int = 4, remat: bool = False) -> Problem:
    """The masked autoencoder or the UNETR that is compiled: tokens of 8³, one channel, crops of `side` voxels."""
    encoder = ViTConfig(in_channels=1, crop=(side, side, side), token=(8, 8, 8), width=width, depth=depth, heads=2, remat=remat)
    if name == "mae":
        return problem_of(network_of_config(MAEConfig(encoder, width // 2, 2, 1)), batch, side)
    return problem_of(network_of_config(UNETRConfig(encoder, num_classes=2, feature=8)), batch, side)


def network_of_config(config: Any) -> Any:
    """The network of a config, abstract."""
    return nnx.eval_shape(lambda: network_of(config))


def problem_of(network: Any, batch: int, side: int) -> Problem:
    """A masked autoencoder's own loss, or Dice and cross-entropy of a network that segments; `batch` cubic crops in float16, as the loader's."""
    graph, params = nnx.split(network)
    config = network.config
    channels = getattr(config, "encoder", config).in_channels

    def reconstruct(params: Any, batch: Any, keys: Any, extra: Any) -> Any:
        return nnx.merge(graph, params).loss(batch["image"], batch["mask"], batch["present"], batch["spacing"], keys)[0]

    def segment(params: Any, batch: Any, keys: Any, extra: Any) -> Any:
        return dice_ce(nnx.merge(graph, params)(batch["image"], spacing=batch["spacing"], key=keys), batch["label"])

    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), params)
    shape = (batch, side, side, side)
    arrays: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((*shape, channels), jnp.float16),
        "mask": (shape, jnp.uint8),
        "label": (shape, jnp.uint8),
        "present": ((batch, channels), jnp.float32),
        "spacing": ((batch, 3), jnp.float32),
        "id": ((batch,), jnp.int32),
    }
    masked = hasattr(network, "loss")
    unused = "label" if masked else "mask"
    given = {name: jax.ShapeDtypeStruct(*array) for name, array in arrays.items() if name != unused}
    return Problem(reconstruct if masked else segment, optimizer, state, given)


def layout_of(name: str, *, shard_min_bytes: int = 4096) -> Layout:
    """The mesh of `DATAxFSDP` devices. Arrays are spread from 4 KB on: at these sizes hardly one has the 4 MB of real runs."""
    data, fsdp = map(int, name.split("x"))
    return Layout("mesh", jax.devices()[: data * fsdp], fsdp=fsdp, shard_min_bytes=shard_min_bytes)


def compiled_step(problem: Problem, layout: Layout, accumulate: int = 1) -> Any:
    """The real step, compiled for abstract arguments: nothing is allocated or run."""
    placed = [
        jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, places)
        for tree, places in ((problem.state, layout.shardings(problem.state)), (problem.batch, layout.batch_shardings(problem.batch)))
    ]
    step = make_step(problem.loss, problem.optimizer, accumulate=accumulate)
    return layout.compile(step).lower(*placed, jax.eval_shape(lambda: jax.random.key(0))).compile()


def compare(network: str, name: str, *, remat: bool = False, accumulate: int = 1, **sizes: int) -> dict[str, Any]:
    """Predicted and found, in bytes a device, for one network in one layout."""
    problem, layout = small_problem(network, remat=remat, **sizes), layout_of(name)
    layout.check_parts(problem.batch["id"].shape[0], accumulate)
    told = predict(layout, problem.loss, problem.state, problem.batch, accumulate=accumulate)
    program = compiled_step(problem, layout, accumulate)
    found = collectives(program.as_text())
    memory = program.memory_analysis()
    return {
        "network": network,
        "layout": name,
        "remat": remat,
        "accumulate": accumulate,
        "predicted": {"arguments": told.arguments, "temporaries": told.temporaries, **told.results},
        "found": {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes, **result_bytes(found)},
        "sent": told.sent,
        "sent_as_compiled": sum(each.sent for each in found),
    }


def estimate(
    name: str, *, side: int, batch: int, devices: int, fsdp: int, dtype: str, remat: bool, keep: str | None = None
) -> dict[str, Any]:
    """Memory, bytes sent and operations of a step of a network of the zoo at full size; `batch` crops a device. Computed, never run.

    `keep` is the networks' `remat_keep`. The operations are those without remat: what it does again is no progress.
    """

    def problem(remat: bool) -> Problem:
        changes = {"crop": (side,) * 3, "dtype": dtype, "remat": remat, "remat_keep": keep}
        return problem_of(nnx.eval_shape(lambda: create_model(name, **changes)), batch * devices, side)

    full = problem(remat)
    simulated = _Many(devices, fsdp)
    told = predict(simulated, full.loss, full.state, full.batch)  # pyright: ignore[reportArgumentType]
    return {"network": name, "parameters": count_params(full.state.params), **_told(told), "tflop_per_crop": _tflop(problem(False))}


class _Many(Layout):
    """A layout's arithmetic for devices that this machine does not have."""

    def __init__(self, devices: int, fsdp: int):
        super().__init__("mesh", jax.devices()[:1])
        self.devices, self.fsdp = [self.devices[0]] * devices, fsdp
        axes = (("data", devices // fsdp), ("fsdp", fsdp))
        self.mesh = jax.sharding.AbstractMesh(tuple(size for _, size in axes), tuple(axis for axis, _ in axes))  # pyright: ignore[reportAttributeAccessIssue]


def _told(told: Predicted) -> dict[str, Any]:
    return {**dataclasses.asdict(told), "memory_gib": told.memory / _GIB}


def _tflop(problem: Problem) -> float:
    """10¹² operations of one crop's step, forward and backward, of the plain forms: a fast one may do some twice to save memory. The
    optimizer's few are left out."""
    one = {name: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for name, leaf in problem.batch.items()}

    def gradient(params: Any, batch: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["id"])
        return jax.grad(lambda params: sum(total for total, _ in problem.loss(params, batch, keys, None).values()))(params)

    with fast_paths(attention=False, convolution=False):
        return program_flops(gradient, problem.state.params, one) / 1e12


def lines_of(row: dict[str, Any]) -> Iterator[str]:
    """A row of the table for each number that was predicted or found."""
    name = (
        f"{row['network']} {row['layout']}"
        + " remat" * row["remat"]
        + (f" accumulate {row['accumulate']}" if row["accumulate"] > 1 else "")
    )
    for what in dict.fromkeys((*row["predicted"], *row["found"])):
        told, found = row["predicted"].get(what, 0), row["found"].get(what, 0)
        yield f"| {name} | {what} | {told} | {found} | {found / told if told else float('inf'):.3f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or what `--estimate` asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="bytes a device, predicted and compiled")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), help="DATAxFSDP devices each")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--remat-keep", choices=("products",), help="what is kept all the same, with --remat and --estimate")
    parser.add_argument("--json", action="store_true", help="a JSON line a row")
    parser.add_argument("--estimate", metavar="MODEL", help="a masked autoencoder of the zoo at full size, such as evamae_m")
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--batch", type=int, default=1, help="crops a device, with --estimate")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    given = parser.parse_args(arguments)
    if given.estimate:
        options = {name: getattr(given, name) for name in ("side", "batch", "devices", "fsdp", "dtype", "remat")}
        print(json.dumps(estimate(given.estimate, **options, keep=given.remat_keep), indent=None if given.json else 1))
        return 0
    if not given.json:
        print("| program | what | predicted bytes | found bytes | found / predicted |\n|---|---|---|---|---|")
    for network in given.networks:
        for layout in given.layouts:
            row = compare(network, layout, remat=given.remat, accumulate=given.accumulate)
            print(json.dumps(row) if given.json else "\n".join(lines_of(row)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
