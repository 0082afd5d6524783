"""A fine-tuning run from its config to a model folder. Called by `jaxseg finetune`, the main job and the few-label study."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx

from finetune.classes import Classes
from finetune.config import FinetuneConfig, stored
from finetune.monitor import watch
from finetune.objective import make_loss, start_at_prior
from finetune.semi.companion import PairedLoader, advance_with, first_extra, pool_seed, with_unlabelled
from finetune.semi.config import SemiConfig
from finetune.semi.mean_teacher import mean_teacher
from finetune.semi.pseudo_labels import pseudo_labels
from finetune.transfer import Transfer, refuse_other_meaning, take_encoder, take_network
from jaxseg.audit import card_of, refuse_overlap
from jaxseg.config import as_json
from jaxseg.data.catalog import Store, open_store
from jaxseg.data.duplicates import scans_of_card, scans_of_store
from jaxseg.data.loader import CropLoader
from jaxseg.data.mixed_stores import cases_content, content_drawn, names_drawn, open_others
from jaxseg.data.mixture import Source
from jaxseg.data.partial import Cubes, Slices
from jaxseg.data.split import refuse_shared_patients, select_cases
from jaxseg.data.untaught import sentence, untaught
from jaxseg.errors import ConfigError
from jaxseg.models import UNETRConfig, UNETRPlusConfig
from jaxseg.models.unet import UNetConfig
from jaxseg.train import Layout, RunFolder, TrainState, array_names, fit, learning_rate, make_optimizer, make_step, read_arrays
from jaxseg.train.log import TrainingProgress
from jaxseg.train.processes import meet
from jaxseg.train.run import CONTENT, STARTED_FROM
from jaxseg.train.step import Step
from jaxseg.zoo import load_model, save_model
from jaxseg.zoo.registry import network_of

ModelConfig = UNETRConfig | UNETRPlusConfig | UNetConfig
COMPANIONS = {"mean_teacher": mean_teacher, "pseudo_labels": pseudo_labels}
TEACHER = "teacher"  # in a run folder: the first stage of pseudo-labels, a run of its own


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
    pool = select_cases(store.names, config.semi.pool) if config.semi.method else ()
    if config.semi.method and not pool:
        raise ConfigError(f"{config.semi.pool or 'semi.pool'}: no unlabelled case, and {config.semi.method} needs some; see --semi.pool")
    sources = sources_of(config, store, names)
    others = sources[1:]
    watched = _watched(config, store, names, pool, others)
    if not others and (lost := untaught(store, names)):
        print(f"{config.store}: {sentence(lost, len(names))}", file=sys.stderr)
    model_config, classes = adapt(config.model, store), Classes.of(store.recipe)
    optim = config.optim.over(config.loop.steps)
    loop = dataclasses.replace(config.loop, best="dice" if config.keep == "best" else None).seeded(config.seed)
    first_stage = _first_stage(config, names, progress) if config.semi.method == "pseudo_labels" else None
    with RunFolder.open(config.out, run_config(config, sources, pool)) as run:
        layout = Layout(config.layout, fsdp=config.fsdp)
        layout.check_parts(config.batch, config.accumulate)
        graph, first = graph_of(model_config), jax.device_get(first_params(config, model_config, store, classes))
        optimizer = make_optimizer(optim, first)
        teacher = first if first_stage is None else jax.device_get(nnx.state(load_model(first_stage).network))
        semi = bool(config.semi.method)

        def begin(params: Any, teacher: Any) -> TrainState:
            return TrainState.create(params, optimizer, ema=config.ema is not None, extra=first_extra(teacher) if semi else None)

        # From the host: the parameters alone were whole on one device, and are gone there before moments and averages are made in parts.
        state = layout.init(begin, layout.place(first), layout.place(teacher) if semi else None)
        del first, teacher
        step = training_step(config, graph, classes, optimizer)
        loader = crop_loader(config, sources, pool, crop_of(model_config))
        evaluate = watch(graph, store, watched, classes, crop_of(model_config)) if watched else None
        state = fit(step, state, loader, layout, run, loop, evaluate=evaluate, schedule=learning_rate(optim), progress=progress)
        final = layout.host(state.params if state.ema is None else state.ema)
        if jax.process_index() == 0:
            final = _best(run.path, final, config) if config.keep == "best" else final
            save_model(Path(config.out) / "model", nnx.merge(graph, final), _card(config, store, names, pool, others, model_config))
        return Path(config.out) / "model"


def _first_stage(config: FinetuneConfig, names: tuple[str, ...], progress: TrainingProgress | None) -> Path:
    """The model that makes pseudo-labels: the same run without unlabelled scans."""
    model = finetune(dataclasses.replace(config, out=str(Path(config.out) / TEACHER), semi=SemiConfig()), names=names, progress=progress)
    meet("the first stage is saved")  # by process 0 alone, and read by all
    return model


def sources_of(config: FinetuneConfig, store: Store, names: tuple[str, ...]) -> tuple[Source, ...]:
    """Where labelled crops come from: these cases of the store, and the config's further stores."""
    return (Source(store, names), *open_others(config.also, config.also_split, labelled=True))


def run_config(config: FinetuneConfig, sources: tuple[Source, ...], pool: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the run's folder holds as its config: the settings, the cases that they came to with what these hold, and the weights it starts from."""
    used = tuple(dict.fromkeys((*sources[0].names, *pool)))
    return {
        **stored(config),
        "names": list(sources[0].names),
        **({"pool": list(pool)} if pool else {}),
        **names_drawn(sources[1:]),
        **({STARTED_FROM: card_of(config.init)["weights"]["sha256"]} if config.init else {}),
        CONTENT: cases_content((Source(sources[0].store, used), *sources[1:])),
    }


def graph_of(model: ModelConfig) -> nnx.GraphDef:
    """The network's structure, without its arrays."""
    return nnx.split(nnx.eval_shape(lambda: network_of(model)))[0]


def training_step(config: FinetuneConfig, graph: nnx.GraphDef, classes: Classes, optimizer: optax.GradientTransformation) -> Step:
    """The training step: the loss of labelled crops, and that of unlabelled ones where the config has them.

    ConfigError for micro-batches of a Dice that is pooled over the batch: each would have a Dice of its own.
    """
    if config.loss.batch_dice and config.accumulate > 1:
        raise ConfigError(
            f"the Dice loss is pooled over the whole batch (loss.batch_dice), which accumulate={config.accumulate} would part: set loss.batch_dice to "
            "False, or accumulate to 1"
        )
    weights = {"dice": config.loss.dice, "cross_entropy": config.loss.cross_entropy}
    loss, advance = make_loss(graph, classes, config), None
    if config.semi.method:
        companion = COMPANIONS[config.semi.method](graph, classes, config)
        loss = with_unlabelled(loss, companion, config.augment, weight=config.semi.weight, ramp=config.semi.ramp)
        advance = advance_with(companion)
    return make_step(loss, optimizer, weights=weights, ema_decay=config.ema, advance=advance, accumulate=config.accumulate)


def crop_loader(
    config: FinetuneConfig, sources: tuple[Source, ...], pool: tuple[str, ...], crop: tuple[int, int, int]
) -> CropLoader | PairedLoader:
    """Labelled crops, and with a pool as many unlabelled ones beside them."""
    process = (jax.process_index(), jax.process_count())
    labelled = CropLoader(
        sources,
        crop=crop,
        batch=config.batch,
        seed=config.seed,
        foreground=config.foreground,
        balanced=config.balanced,
        labelled=True,
        partial=Cubes(config.label_every, config.label_cube) if config.label_cube else Slices(config.label_every, config.label_axis),
        process=process,
    )
    if not pool:
        return labelled
    return PairedLoader(
        labelled, CropLoader(sources[0].store, pool, crop=crop, batch=config.batch, seed=pool_seed(config.seed), process=process)
    )


def _watched(
    config: FinetuneConfig, store: Store, names: tuple[str, ...], pool: tuple[str, ...], others: tuple[Source, ...]
) -> tuple[str, ...]:
    """The cases to watch while training; ConfigError if one of them is trained on, or if there are none to choose the best by."""
    watched = select_cases(store.labelled, config.monitor) if config.monitor else ()
    used = tuple(dict.fromkeys((*names, *pool)))
    if set(watched) & set(used):
        raise ConfigError(f"--monitor {config.monitor}: these cases are trained on: {', '.join(sorted(set(watched) & set(used)))}")
    patients = {name: store.entry(name).patient for name in store.names}
    refuse_shared_patients(patients, used, watched, "training cases and monitored cases")
    if config.init and watched and not config.allow_overlap:
        refuse_overlap(scans_of_card(card_of(config.init)), scans_of_store(store, watched), "monitored cases")
    for other in others if watched and not config.allow_overlap else ():
        seen = scans_of_store(other.store, other.names)
        refuse_overlap(seen, scans_of_store(store, watched), "monitored cases", by=f"--also {other.store.path}")
    if config.keep == "best" and not watched:
        raise ConfigError("--keep best needs cases to choose by: name them with --monitor FILE.json:KEY")
    return watched


def first_params(config: FinetuneConfig, model: ModelConfig, store: Store, classes: Classes) -> Any:
    """The network's first parameters, with the pretrained encoder in place where there is one."""
    # One compiled program: layer by layer, every shape of every array would be compiled for itself.
    params = jax.jit(lambda: nnx.state(network_of(model, seed=config.seed)))()
    params = start_at_prior(params, classes)
    if not config.init:
        return params
    transfer = _take(params, model, store, Path(config.init), config.take, config.resample_patches)
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


def _take(params: Any, model: ModelConfig, store: Store, init: Path, what: str, resample: bool) -> Transfer:
    if isinstance(model, UNetConfig):
        raise ConfigError("a U-Net is trained from scratch: leave --init out, or choose a network with a ViT encoder")
    source = load_model(init / "model" if (init / "model" / "model.json").is_file() else init)
    encoder = getattr(source.config, "encoder", source.config)
    if what == "network":
        refuse_other_meaning(model.encoder, encoder)
        # Of any other network nobody says that its outputs are outlines, and of one that was never trained they are none yet.
        outlined = source.card.get("objective") == "lesions" and source.card.get("training", {}).get("steps") != 0
        return take_network(
            params,
            nnx.state(source.network),
            channels=store.recipe.channels,
            source_channels=source.card["channels"],
            outlines=Classes.of(store.recipe).outlines(source.config.num_classes) if outlined else None,
        )
    return take_encoder(
        params,
        model.encoder,
        nnx.state(source.network),
        encoder,
        channels=store.recipe.channels,
        source_channels=source.card["channels"],
        resample=resample,
    )


def _card(
    config: FinetuneConfig, store: Store, names: tuple[str, ...], pool: tuple[str, ...], others: tuple[Source, ...], model: ModelConfig
) -> dict[str, Any]:
    seen = tuple(dict.fromkeys((*names, *pool)))
    return {
        "channels": list(store.recipe.channels),
        "recipe": as_json(store.recipe),
        "labels": store.recipe.labels,
        "regions": store.recipe.regions,
        "crop": list(crop_of(model)),
        "training": {
            "init": f"pretrained {config.take}" if config.init else "scratch",
            "steps": config.loop.steps,
            "batch": config.batch,
            "seed": config.seed,
            "cases": len(names) + sum(len(other.names) for other in others),
            **({"unlabelled": len(pool), "semi": config.semi.method} if pool else {}),
            **content_drawn((Source(store, seen), *others)),
        },
        "licence": "unspecified: it follows the licence of the scans it was trained on",
        "scores": [],
    }
