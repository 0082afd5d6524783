"""The settings of the main job, derived from the scans and the minutes at hand, and readable as JSON.

Made by `pipeline`, taken by `pretrain.plan` and `finetune.plan`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxseg.config import from_json
from jaxseg.data.preprocess import Recipe
from jaxseg.errors import ConfigError

TOKENS, SIDE = 8, 4  # along an axis of a crop; voxels of a token along the finest axis
CROP = TOKENS * SIDE
# Steps for every minute of the whole job on two cores: a quarter of the time pretrains, a quarter each fine-tunes an arm, and the rest
# makes, prepares, segments and evaluates. docs/results.md has the runs.
PRETRAIN_STEPS = 80
FINETUNE_STEPS = 40
# Outlining artificial lesions trains a whole network: a step of 6 crops takes half a second where one of the masked autoencoder takes about a fifth.
# Half of the time goes there, and less into fine-tuning, which starts from outlines.
LESION_STEPS, LESION_FINETUNE_STEPS = 60, 15


@dataclass(frozen=True)
class Plan:
    """What the main job will do.

    Attributes:
        recipe: how a scan becomes an array.
        crop: voxels of a training crop, per axis of the working grid.
        token: voxels of a token, per axis; about a cube in millimetres.
        width, depth, heads: of the encoder.
        pretrain_steps, pretrain_batch, pretrain_lr, finetune_steps, finetune_batch, finetune_lr: the two runs.
        decoder: the network around the encoder: a UNETR+, or a UNETR, as for artificial lesions and in plans from before there was a choice.
        feature, stride: of its convolutional path.
        layer_decay: of the learning rate of a pretrained encoder; one that starts from scratch learns everywhere alike.
        muon: both runs learn by Muon (`jaxseg.train.OptimConfig.muon`), with these learning rates; AdamW where not, as plans from before it existed.
        minutes, seed: what was asked for.
        objective: of the pretraining: "mae", or "lesions", of which the whole network is taken and which half of the time is for.
        signal: what is known of the signal of the lesions looked for, by channel, see `pretrain.implants.Lesions`: how far margin, living and dead
            part lie above the tissue around, in the units of the prepared scans. Empty: artificial lesions get any signal.
    """

    recipe: Recipe
    crop: tuple[int, int, int]
    token: tuple[int, int, int]
    width: int
    depth: int
    heads: int
    pretrain_steps: int
    pretrain_batch: int
    finetune_steps: int
    finetune_batch: int
    pretrain_lr: float
    finetune_lr: float
    feature: int
    stride: int
    layer_decay: float
    minutes: float
    seed: int
    muon: bool = False
    decoder: Literal["unetr", "unetr_plus"] = "unetr"
    objective: Literal["mae", "lesions"] = "mae"
    signal: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """The plan that `plan.json` holds."""
        return from_json(cls, value)


def make_plan(
    recipe: Recipe,
    *,
    minutes: float,
    seed: int,
    devices: int = 1,
    tokens: int = TOKENS,
    side: int = SIDE,
    objective: Literal["mae", "lesions"] = "mae",
    signal: dict[str, tuple[float, float, float]] | None = None,
) -> Plan:
    """A plan for small machines: `tokens` tokens along each axis, each about a cube of `side` voxels of the finest axis.

    An axis whose voxels are coarse gets fewer voxels a token (a power of two), so that anatomy keeps its proportions.
    Batches are rounded up to a multiple of the `devices` that they are split over.

    Raises:
        ConfigError: `minutes` is not positive; `signal` of another objective than "lesions", or of a channel that the scans lack.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes}: expected a positive number")
    lesions = objective == "lesions"
    if signal and not lesions:
        raise ConfigError("--signal says what artificial lesions look like: it goes with --objective lesions")
    if unknown := sorted(set(signal or {}) - set(recipe.channels)):
        raise ConfigError(f"--signal names {', '.join(unknown)}; the scans' channels are {', '.join(recipe.channels)}")
    finest = min(recipe.spacing)
    token = tuple(max(1, 2 ** round(math.log2(side * finest / spacing))) for spacing in recipe.spacing)
    return Plan(
        recipe=recipe,
        crop=(tokens * token[0], tokens * token[1], tokens * token[2]),
        token=(token[0], token[1], token[2]),
        width=128,
        depth=6,
        heads=4,
        pretrain_steps=max(20, round(minutes * (LESION_STEPS if lesions else PRETRAIN_STEPS))),
        pretrain_batch=_multiple(6 if lesions else 8, devices),
        finetune_steps=max(20, round(minutes * (LESION_FINETUNE_STEPS if lesions else FINETUNE_STEPS))),
        finetune_batch=_multiple(4, devices),
        pretrain_lr=1.5e-3 if lesions else 2e-3,
        finetune_lr=1.5e-3 if lesions else 5e-3,
        muon=not lesions,
        decoder="unetr" if lesions else "unetr_plus",
        feature=16,
        stride=2,
        layer_decay=1.0 if lesions else 0.75,
        minutes=minutes,
        seed=seed,
        objective=objective,
        signal=signal or {},
    )


def _multiple(batch: int, devices: int) -> int:
    return -(-batch // devices) * devices
