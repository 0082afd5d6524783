"""A pretraining run from its config to a model folder. Called by `jaxseg pretrain` and by the main job."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxseg.config import as_json
from jaxseg.data.loader import CropLoader
from jaxseg.data.split import select_cases
from jaxseg.data.store import Store, open_store
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig
from jaxseg.train import Layout, RunFolder, fit, learning_rate, make_optimizer
from jaxseg.train.log import TrainingProgressProtocol
from jaxseg.zoo import save_model
from jaxseg.zoo.registry import network_of
from pretrain.config import PretrainConfig
from pretrain.objectives import OBJECTIVES
from pretrain.probe import evaluated, make_probe


def pretrain(config: PretrainConfig, *, progress: TrainingProgressProtocol | None = None) -> Path:
    """Pretrain, or go on where the same command was interrupted.

    Returns:
        The model folder `OUT/model`, which holds the whole network of the objective; fine-tuning takes its encoder by name.

    Raises:
        ConfigError, InputError, StorageError, TrainingError, Preempted: see `jaxseg.errors`.
    """
    if not config.store or not config.out:
        raise ConfigError("pretraining needs a store of prepared scans and a run folder: --store STORE --out OUT")
    store = open_store(config.store)
    names = select_cases(store.names, config.split)
    model_config, objective = adapt(config.model, store), OBJECTIVES[config.objective]
    network = objective.network(model_config)
    optim = dataclasses.replace(config.optim, steps=max(1, config.loop.steps))
    with RunFolder.open(config.out, {**as_json(config), "names": list(names)}) as run:
        graph, _ = nnx.split(nnx.eval_shape(lambda: network_of(network)))
        # One compiled program: layer by layer, every shape of every array would be compiled for itself.
        params = jax.jit(lambda: nnx.state(network_of(network, seed=config.seed)))()
        optimizer = make_optimizer(optim, params)
        layout = Layout(config.layout, fsdp=config.fsdp)
        state = layout.place(objective.start(params, optimizer))
        step = objective.make_step(graph, config.augment, optimizer, momentum=config.momentum, accumulate=config.accumulate)
        loader = CropLoader(
            store,
            names,
            crop=model_config.encoder.crop,
            batch=config.batch,
            seed=config.seed,
            process=(jax.process_index(), jax.process_count()),
        )
        probe = make_probe(graph, config.probe, model_config.encoder, store.recipe.channels) if config.probe.store else None
        loop = evaluated(config.loop, config.probe)
        state = fit(step, state, loader, layout, run, loop, evaluate=probe, schedule=learning_rate(optim), progress=progress)
        final = layout.host(state.params)
        if jax.process_index() == 0:
            save_model(Path(config.out) / "model", nnx.merge(graph, final), _card(config, store, names, model_config))
        return Path(config.out) / "model"


def adapt(model: MAEConfig, store: Store) -> MAEConfig:
    """The model's config with as many input channels as the store's scans have."""
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, in_channels=len(store.recipe.channels)))


def _card(config: PretrainConfig, store: Store, names: tuple[str, ...], model: MAEConfig) -> dict[str, Any]:
    return {
        "objective": config.objective,
        "channels": list(store.recipe.channels),
        "recipe": as_json(store.recipe),
        "crop": list(model.encoder.crop),
        "training": {
            "steps": config.loop.steps,
            "batch": config.batch,
            "seed": config.seed,
            "cases": len(names),
            "data": store.hashes(names),
            "scans": store.contents(names),
        },
        "licence": "unspecified: it follows the licence of the scans it was trained on",
    }
