"""A pretraining run from its config to a model folder. Called by `jaxseg pretrain` and by the main job."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jaxseg.config import as_json
from jaxseg.data.augment import Augment
from jaxseg.data.catalog import Store, open_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.mixed_stores import cases_content, content_drawn, names_drawn, open_others
from jaxseg.data.mixture import Source
from jaxseg.data.split import select_cases
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig
from jaxseg.models.masked_model import MaskedModel
from jaxseg.train import Layout, RunFolder, TrainState, fit, learning_rate, make_optimizer
from jaxseg.train.log import TrainingProgressProtocol
from jaxseg.train.run import CONTENT
from jaxseg.zoo import save_model
from jaxseg.zoo.cost import update_flops
from jaxseg.zoo.registry import network_of
from pretrain.config import PretrainConfig
from pretrain.implants import Lesions
from pretrain.objectives import OBJECTIVES
from pretrain.operations import operations_of
from pretrain.pictures import make_pictures
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
    others = open_others(config.also, config.also_split, labelled=False)
    sources = (Source(store, names), *others)
    model_config, objective = adapt(config.model, store), OBJECTIVES[config.objective]
    lesions = config.lesions or Lesions()
    network = objective.settings(model_config, config.contrast, lesions, config.anatomy)
    optim = config.optim.over(config.loop.steps)
    drawing = ("pictures.keep", "pictures.case", "pictures.channel")
    settings = {**as_json(config), "names": list(names), **names_drawn(others), CONTENT: cases_content(sources)}
    with RunFolder.open(config.out, settings, may_change=drawing) as run:
        abstract = nnx.eval_shape(lambda: network_of(network))
        graph = nnx.graphdef(abstract)
        optimizer = make_optimizer(optim, nnx.state(abstract))
        layout = Layout(config.layout, fsdp=config.fsdp)
        layout.check_parts(config.batch, config.accumulate)
        state = layout.init(lambda: objective.start(nnx.state(network_of(network, seed=config.seed)), optimizer))
        besides: dict[str, Any] = {"lesions": lesions, "channels": store.recipe.channels, "anatomy": config.anatomy}
        step = objective.make_step(
            graph,
            config.augment,
            optimizer,
            weights=config.weights,
            momentum=config.momentum,
            accumulate=config.accumulate,
            **besides,
        )
        crop = config.contrast.loaded(model_config.encoder) if objective.contrasts else model_config.encoder.crop
        loader = CropLoader(
            sources,
            crop=crop,
            batch=config.batch,
            seed=config.seed,
            places=objective.places,
            process=(jax.process_index(), jax.process_count()),
        )
        watched = []
        if config.probe.store:
            watched.append(make_probe(graph, config.probe, model_config.encoder, store.recipe.channels))
        if config.pictures.keep and isinstance(abstract, MaskedModel):
            watched.append(make_pictures(graph, config.pictures, store, names, model_config.encoder, run.path))
        loop = evaluated(config.loop, config.probe).seeded(config.seed)
        state = fit(
            step, state, loader, layout, run, loop, evaluate=together(watched, layout), schedule=learning_rate(optim), progress=progress
        )
        final = layout.host(state.params)
        if jax.process_index() == 0:
            still = objective.loss_of(graph, Augment.none(), **besides)
            each = operations_of(still, final, state.extra, crop, model_config.encoder.in_channels)
            flops = config.loop.steps * (config.batch * each + update_flops(optimizer, final))
            save_model(Path(config.out) / "model", nnx.merge(graph, final), _card(config, sources, model_config, flops))
        return Path(config.out) / "model"


def together(
    watched: Sequence[Callable[[TrainState], dict[str, float]]], layout: Layout
) -> Callable[[TrainState], dict[str, float]] | None:
    """All numbers of several functions of the train state; None of none."""

    def evaluate(state: TrainState) -> dict[str, float]:
        # What is watched runs once on one device, not on all that hold a copy or a part; put there once, not with every crop.
        state = dataclasses.replace(state, params=jax.device_put(layout.host(state.params), jax.local_devices()[0]))
        return {name: value for each in watched for name, value in each(state).items()}

    return evaluate if watched else None


def adapt(model: MAEConfig, store: Store) -> MAEConfig:
    """The model's config with as many input channels as the store's scans have."""
    return dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, in_channels=len(store.recipe.channels)))


def _looked_at(config: PretrainConfig) -> dict[str, Any]:
    """The probe's labelled scans: nothing was learnt of them, but what was kept may have been chosen by them."""
    names = (*config.probe.train, *config.probe.test)
    return {"probed": content_drawn((Source(open_store(config.probe.store), names),))} if config.probe.store else {}


def _card(config: PretrainConfig, sources: Sequence[Source], model: MAEConfig, flops: int) -> dict[str, Any]:
    store = sources[0].store
    return {
        "objective": config.objective,
        "channels": list(store.recipe.channels),
        "recipe": as_json(store.recipe),
        "crop": list(model.encoder.crop),
        "training": {
            "steps": config.loop.steps,
            "batch": config.batch,
            "seed": config.seed,
            "flops": flops,
            "cases": sum(len(source.names) for source in sources),
            **content_drawn(sources),
            **_looked_at(config),
        },
        "licence": "unspecified: it follows the licence of the scans it was trained on",
    }
