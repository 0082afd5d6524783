"""A fine-tuning run from its config to a model folder. Called by `jaxseg finetune`, the main job and the few-label study."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig
from finetune.monitor import watch
from finetune.objective import make_loss, start_at_prior
from finetune.transfer import Transfer, take_encoder
from jaxseg.audit import card_of, refuse_overlap
from jaxseg.config import as_json
from jaxseg.data.duplicates import scans_of_card, scans_of_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.split import refuse_shared_patients, select_cases
from jaxseg.data.store import Store, open_store
from jaxseg.errors import ConfigError
from jaxseg.models import UNETRConfig, UNETRPlusConfig
from jaxseg.models.unet import UNetConfig
from jaxseg.train import Layout, RunFolder, TrainState, array_names, fit, learning_rate, make_optimizer, make_step, read_arrays
from jaxseg.train.log import TrainingProgress
from jaxseg.zoo import load_model, save_model
from jaxseg.zoo.registry import network_of

ModelConfig = UNETRConfig | UNETRPlusConfig | UNetConfig


def finetune(config: FinetuneConfig, *, names: tuple[str, ...] | None = None, progress: TrainingProgress | None = None) -> Path:
    """Fine-tune, or go on where the same command was interrupted.

    Args:
        config: the run's settings.
        names: the training cases, when the caller chose them; otherwise `config.split` and `config.labels` say.
        progress: how to show progress; a bar on standard error by default.

    Returns:
        The model folder `OUT/model`, ready for `segment`.

    Raises:
        ConfigError, InputError, CheckpointError, StorageError, TrainingError, Preempted: see `jaxseg.errors`.
    """
    if not config.store or not config.out:
        raise ConfigError("fine-tuning needs a store of prepared, labelled scans and a run folder: --store STORE --out OUT")
    store = open_store(config.store)
    names = names or select_cases(store.labelled, config.split, config.labels)
    watched = _watched(config, store, names)
    model_config, classes = adapt(config.model, store), Classes.of(store.recipe)
    optim = dataclasses.replace(config.optim, steps=max(1, config.loop.steps))
    loop = dataclasses.replace(config.loop, best="dice" if config.keep == "best" else None)
    with RunFolder.open(config.out, {**as_json(config), "names": list(names)}) as run:
        graph, _ = nnx.split(nnx.eval_shape(lambda: network_of(model_config)))
        params = _initial(config, model_config, store, classes)
        optimizer = make_optimizer(optim, params)
        layout = Layout(config.layout, fsdp=config.fsdp)
        state = layout.place(TrainState.create(params, optimizer, ema=config.ema is not None))
        weights = {"dice": config.loss.dice, "cross_entropy": config.loss.cross_entropy}
        step = make_step(make_loss(graph, classes, config), optimizer, weights=weights, ema_decay=config.ema, accumulate=config.accumulate)
        loader = CropLoader(
            store,
            names,
            crop=crop_of(model_config),
            batch=config.batch,
            seed=config.seed,
            foreground=config.foreground,
            labelled=True,
            process=(jax.process_index(), jax.process_count()),
        )
        evaluate = watch(graph, store, watched, classes, crop_of(model_config)) if watched else None
        state = fit(step, state, loader, layout, run, loop, evaluate=evaluate, schedule=learning_rate(optim), progress=progress)
        final = layout.host(state.params if state.ema is None else state.ema)
        if jax.process_index() == 0:
            final = _best(run.path, final, config) if config.keep == "best" else final
            save_model(Path(config.out) / "model", nnx.merge(graph, final), _card(config, store, names, model_config))
        return Path(config.out) / "model"


def _watched(config: FinetuneConfig, store: Store, names: tuple[str, ...]) -> tuple[str, ...]:
    """The cases to watch while training; ConfigError if one of them is trained on, or if there are none to choose the best by."""
    watched = select_cases(store.labelled, config.monitor) if config.monitor else ()
    if set(watched) & set(names):
        raise ConfigError(f"--monitor {config.monitor}: these cases are trained on: {', '.join(sorted(set(watched) & set(names)))}")
    patients = {name: store.entry(name).patient for name in store.names}
    refuse_shared_patients(patients, names, watched, "training cases and monitored cases")
    if config.init and watched and not config.allow_overlap:
        refuse_overlap(scans_of_card(card_of(config.init)), scans_of_store(store, watched), "monitored cases")
    if config.keep == "best" and not watched:
        raise ConfigError("--keep best needs cases to choose by: name them with --monitor FILE.json:KEY")
    return watched


def _initial(config: FinetuneConfig, model: ModelConfig, store: Store, classes: Classes) -> Any:
    """The network's first parameters, with the pretrained encoder in place where there is one."""
    # One compiled program: layer by layer, every shape of every array would be compiled for itself.
    params = jax.jit(lambda: nnx.state(network_of(model, seed=config.seed)))()
    params = start_at_prior(params, classes)
    if not config.init:
        return params
    transfer = _take(params, model, store, Path(config.init))
    print(transfer.describe())
    return transfer.params


def _best(run: Path, params: Any, config: FinetuneConfig) -> Any:
    """The parameters (or their average) of the checkpoint that did best on the watched cases, in the place of `params`."""
    arrays = read_arrays(run, "params." if config.ema is None else "ema.", best=True)
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [arrays[name] for name in array_names(params)])


def adapt(model: ModelConfig, store: Store) -> ModelConfig:
    """The network's config with the store's channels and classes."""
    if isinstance(model, UNetConfig):
        return dataclasses.replace(model, in_channels=len(store.recipe.channels), num_classes=Classes.of(store.recipe).outputs)
    encoder = dataclasses.replace(model.encoder, in_channels=len(store.recipe.channels))
    return dataclasses.replace(model, encoder=encoder, num_classes=Classes.of(store.recipe).outputs)


def crop_of(model: ModelConfig) -> tuple[int, int, int]:
    """Voxels of the crops that a network is trained on and segments with."""
    return model.crop if isinstance(model, UNetConfig) else model.encoder.crop


def _take(params: Any, model: ModelConfig, store: Store, init: Path) -> Transfer:
    if isinstance(model, UNetConfig):
        raise ConfigError("a U-Net is trained from scratch: leave --init out, or choose a network with a ViT encoder")
    source = load_model(init / "model" if (init / "model" / "model.json").is_file() else init)
    return take_encoder(
        params,
        model.encoder,
        nnx.state(source.network),
        getattr(source.config, "encoder", source.config),
        channels=store.recipe.channels,
        source_channels=source.card["channels"],
    )


def _card(config: FinetuneConfig, store: Store, names: tuple[str, ...], model: ModelConfig) -> dict[str, Any]:
    return {
        "channels": list(store.recipe.channels),
        "recipe": as_json(store.recipe),
        "labels": store.recipe.labels,
        "regions": store.recipe.regions,
        "crop": list(crop_of(model)),
        "training": {
            "init": "pretrained encoder" if config.init else "scratch",
            "steps": config.loop.steps,
            "batch": config.batch,
            "seed": config.seed,
            "cases": len(names),
            "data": store.hashes(names),
            "scans": store.contents(names),
        },
        "licence": "unspecified: it follows the licence of the scans it was trained on",
        "scores": [],
    }
