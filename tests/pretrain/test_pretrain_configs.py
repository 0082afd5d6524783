"""Every shipped pretraining config builds its network, and every option of the objectives can be set on the command line and computes a loss."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from finetune.config import FinetuneConfig
from jaxseg.config import list_configs, load_config
from jaxseg.data.augment import Augment
from jaxseg.zoo.registry import network_of
from pretrain.config import PretrainConfig
from pretrain.objectives import OBJECTIVES

SMALL = "--model.encoder.crop 16 16 16 --model.encoder.token 2 2 2 --model.encoder.width 24 --model.encoder.depth 1 --model.encoder.heads 2"
SMALL += " --model.decoder-width 12 --model.decoder-depth 1 --model.decoder-heads 1"


def terms_of(config: PretrainConfig) -> set[str]:
    """The terms of the config's loss on a batch of two; traced, not computed."""
    objective, side = OBJECTIVES[config.objective], config.model.encoder.crop
    graph, params = nnx.split(nnx.eval_shape(lambda: network_of(objective.settings(config.model, config.contrast))))
    batch = {
        "image": jax.ShapeDtypeStruct((2, *side, 1), np.float16),
        "mask": jax.ShapeDtypeStruct((2, *side), np.uint8),
        "present": jax.ShapeDtypeStruct((2, 1), np.float32),
        "spacing": jax.ShapeDtypeStruct((2, 3), np.float32),
        "air": jax.ShapeDtypeStruct((2, 1), np.float32),
        "place": jax.ShapeDtypeStruct((2, 2, 3), np.float32),
    }
    extra = None if objective.teacher is None else objective.teacher(params)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    terms = jax.eval_shape(objective.make_loss(graph, config.augment), params, batch, keys, extra)
    assert all(sums.shape == counts.shape == () and sums.dtype == np.float32 for sums, counts in terms.values())
    return set(terms)


TERMS = {
    "mae": {"mae"},
    "simmim": {"simmim"},
    "latent": {"latent"},
    "mae_latent": {"mae", "latent"},
    "contrastive": {"position", "apart"},
    "simclr": {"simclr"},
    "lesions": {"dice", "cross_entropy"},
    "anatomy": {"place", "filled"},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_has_a_config_that_says_what_it_scored(objective):
    path = list_configs("pretrain")[f"brain_{objective}"]
    said = path.read_text().split('"""')[1]
    assert "docs/results.md" in said or "Not measured" in said
    config = load_config(f"brain_{objective}", "pretrain", PretrainConfig)
    assert config.objective == objective and terms_of(config) == TERMS[objective]


@pytest.mark.parametrize(("name", "task"), [("brain_lesions", "brain"), ("brain_anatomy", "brain"), ("sarcoma_lesions", "sarcoma")])
def test_a_whole_network_is_the_one_that_its_fine_tuning_trains(name, task):
    config, taking = load_config(name, "pretrain", PretrainConfig), load_config(task, "finetune", FinetuneConfig)
    assert "take network" in list_configs("pretrain")[name].read_text()
    trained = OBJECTIVES[config.objective].settings(config.model, lesions=config.lesions, anatomy=config.anatomy)
    assert trained == dataclasses.replace(taking.model, num_classes=trained.num_classes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model.mask-unit 1 1 1", {"mask_unit": (1, 1, 1)}),
        ("--model.mask-unit 2 2 2 --model.mask-ratio 0.6", {"mask_unit": (2, 2, 2), "mask_ratio": 0.6}),
        ("--model.mask-unit 4 4 4", {"mask_unit": (4, 4, 4)}),
        ("--model.mask-blocks 0.5 --model.mask-slabs 0.25", {"mask_blocks": 0.5, "mask_slabs": 0.25}),
        ("--model.norm-target", {"norm_target": True}),
        ("--model.no-norm-target --model.body-first", {"norm_target": False, "body_first": True}),
        ("--model.distance l1", {"distance": "l1"}),
        ("--model.predict 0.25", {"predict": 0.25}),
    ],
)
def test_options_of_the_masked_autoencoder_are_options_of_the_command_line(options, expected):
    config = load_config("brain_mae", "pretrain", PretrainConfig, f"{SMALL} {options}".split())
    assert {name: getattr(config.model, name) for name in expected} == expected
    assert config.augment == Augment.light() and terms_of(config) == {"mae"}


def test_options_of_artificial_lesions_are_options_of_the_command_line():
    config = load_config(
        "brain_lesions", "pretrain", PretrainConfig, "--lesions.radius 3 9 --lesions.signal T1 1 0.5 -2 --lesions.feature 8".split()
    )
    assert config.lesions is not None and config.lesions.radius == (3.0, 9.0) and config.lesions.signal == {"T1": (1.0, 0.5, -2.0)}
    assert OBJECTIVES["lesions"].settings(config.model, lesions=config.lesions).feature == 8


def test_weights_pictures_and_probes_are_options_of_the_command_line():
    config = load_config("brain_simclr", "pretrain", PretrainConfig, "--contrast.temperature 0.5 --contrast.part 1".split())
    network = OBJECTIVES["simclr"].settings(config.model, config.contrast)
    assert (network.temperature, network.view) == (0.5, config.model.encoder.crop)
    options = "--weights latent 0.5 mae 2 --pictures.keep 1 --pictures.channel T1 --probe.neighbours 5 --objective mae_latent"
    config = load_config("brain_mae", "pretrain", PretrainConfig, options.split())
    assert config.weights == {"latent": 0.5, "mae": 2.0} and config.objective == "mae_latent"
    assert (config.pictures.keep, config.pictures.channel, config.probe.neighbours) == (1, "T1", 5)
