"""The settings of the main job, derived from the scans and the minutes at hand, and readable as JSON.

Made by `pipeline`, taken by `pretrain.plan` and `finetune.plan`.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxseg.config import from_json
from jaxseg.data.preprocess import Recipe
from jaxseg.errors import ConfigError

# Steps a minute on two cores of 2024 with the sizes below, measured by `jaxseg demo`; docs/results.md has the runs.
PRETRAIN_STEPS_A_MINUTE = 90
FINETUNE_STEPS_A_MINUTE = 36


@dataclass(frozen=True)
class Plan:
    """What the main job will do.

    Attributes:
        recipe: how a scan becomes an array.
        crop: voxels of a training crop, per axis of the working grid.
        token: voxels of a token, per axis; about a cube in millimetres.
        width, depth, heads: of the encoder.
        pretrain_steps, pretrain_batch, finetune_steps, finetune_batch: the two runs.
        minutes, seed: what was asked for.
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
    rope_scale: float
    minutes: float
    seed: int

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """The plan that `plan.json` holds."""
        return from_json(cls, value)


def make_plan(recipe: Recipe, *, minutes: float, seed: int, tokens: int = 8, side: int = 4) -> Plan:
    """A plan for small machines: `tokens` tokens along each axis, each about a cube of `side` voxels of the finest axis.

    An axis whose voxels are coarse gets fewer voxels a token (a power of two), so that anatomy keeps its proportions.

    Raises:
        ConfigError: `minutes` is not positive.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes}: expected a positive number")
    finest = min(recipe.spacing)
    token = tuple(max(1, 2 ** round(math.log2(side * finest / spacing))) for spacing in recipe.spacing)
    return Plan(
        recipe=recipe,
        crop=(tokens * token[0], tokens * token[1], tokens * token[2]),
        token=(token[0], token[1], token[2]),
        width=192,
        depth=6,
        heads=6,
        pretrain_steps=max(20, round(0.4 * minutes * PRETRAIN_STEPS_A_MINUTE)),
        pretrain_batch=8,
        finetune_steps=max(20, round(0.2 * minutes * FINETUNE_STEPS_A_MINUTE)),
        finetune_batch=4,
        pretrain_lr=1e-3,
        finetune_lr=5e-4,
        feature=16,
        rope_scale=8.0,
        minutes=minutes,
        seed=seed,
    )
