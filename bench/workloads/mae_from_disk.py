"""Masked pretraining of Primus-M's size (160³, tokens of 8³) fed from disk: store, loader, transfer and step, as `jaxseg pretrain` goes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import OUR_RECIPE, Absent, Case, Setting, Work


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`cases` scans of `shape` voxels, crops of `side`, `batch` a step, `steps` a run; `network` are fields of `EvaConfig`."""

    cases: int
    shape: tuple[int, int, int]
    side: int
    batch: int
    steps: int
    network: dict[str, Any] = dataclasses.field(default_factory=dict)


_FULL = Sizes(6, (208, 208, 192), 160, 8, 6)
_QUICK = Sizes(2, (24, 20, 18), 16, 2, 2, {"width": 48, "depth": 2, "heads": 2})
CASES = (
    Case(
        "primus_m_160",
        "nnssl EvaMAE",
        OUR_RECIPE,
        _FULL,
        _QUICK,
        lambda sizes: sizes.batch * sizes.steps,
        "crops",
        gpu_only=True,
        voxels=lambda sizes: sizes.batch * sizes.steps * sizes.side**3,
    ),
)


def peer(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Never there: nnssl is no package that can be installed beside this one, so the row holds ours alone."""
    raise Absent("nnssl's trainer is not a package; its sources give 4.6 TFLOP a crop")


def ours(sizes: Sizes, setting: Setting, folder: Path) -> Work:
    """Steps of AdamW on fresh crops; the next batch is read and sent while the device computes, as `train.fit` does."""
    import jax

    from bench.jax_side import compile_timed
    from jaxseg.zoo.cost import program_flops

    state, step = _training(sizes, setting)
    loader, layout = _loader(sizes, setting, folder), _layout()
    key = jax.random.key(0)
    batches = _ahead(loader, layout)
    state, first = layout.place(state), next(batches)
    compiled, seconds = compile_timed(layout.compile(step), state, first, key)
    flops = sizes.steps * float(program_flops(step, state, first, key)) if setting.device == "gpu" else None
    kept = [compiled(state, first, key)[0]]

    def run() -> float:
        metrics = None
        for _ in range(sizes.steps):
            kept[0], metrics = compiled(kept[0], next(batches), key)
        assert metrics is not None
        return float(jax.block_until_ready(metrics["loss"]))

    return Work(lambda: {"loss": np.array([run()])}, run, flops, seconds)


def _layout() -> Any:
    import jax

    from jaxseg.train import Layout

    return Layout("mesh", jax.devices()[:1])


def _training(sizes: Sizes, setting: Setting) -> tuple[Any, Any]:
    """The train state at step 0 and the step: what the crop costs belongs to the network, so nothing is augmented."""
    import jax
    import optax
    from flax import nnx

    from jaxseg.models.eva import EvaConfig
    from jaxseg.models.eva_mae import EvaMAEConfig
    from jaxseg.train import TrainState, make_step
    from jaxseg.zoo.registry import network_of

    encoder = EvaConfig.medium(crop=(sizes.side,) * 3, dtype=setting.dtype, **sizes.network)
    config = EvaMAEConfig.medium(encoder=encoder, decoder_heads=encoder.heads)
    graph, _ = nnx.split(nnx.eval_shape(lambda: network_of(config)))

    def loss(params: Any, batch: Any, keys: Any, extra: Any) -> Any:
        return nnx.merge(graph, params).loss(batch["image"], batch["mask"], batch["present"], batch["spacing"], keys)[0]

    optimizer = optax.adamw(1e-4)
    state = jax.jit(lambda: TrainState.create(nnx.state(network_of(config)), optimizer))()
    return state, make_step(loss, optimizer)


def _loader(sizes: Sizes, setting: Setting, folder: Path) -> Any:
    """Crops of a store of scans made here: noise, prepared as CT so that none of it is air."""
    import nibabel as nib

    from jaxseg.data.cases import find_cases
    from jaxseg.data.loader import CropLoader
    from jaxseg.data.recipe import Recipe
    from jaxseg.data.store import build_store

    for number in range(sizes.cases):
        rng = np.random.default_rng(number)
        place = folder / "scans" / f"case_{number}"
        place.mkdir(parents=True)
        nib.save(nib.Nifti1Image(rng.integers(100, 200, sizes.shape).astype(np.int16), np.eye(4)), place / "T1.nii")
    recipe = Recipe(channels=("T1",), spacing=(1.0, 1.0, 1.0), intensity=("ct",))
    store = build_store(find_cases(folder / "scans"), recipe, folder / "store", processes=1)
    crop = (sizes.side, sizes.side, sizes.side)
    return CropLoader(store, store.names, crop=crop, batch=sizes.batch, seed=0, threads=setting.threads)


def _ahead(loader: Any, layout: Any) -> Iterator[Any]:
    """Batches on the device, always one more than was asked for."""
    upcoming = layout.put(next(loader))
    while True:
        now, upcoming = upcoming, layout.put(next(loader))
        yield now
