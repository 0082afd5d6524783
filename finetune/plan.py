"""The main job's plan as a fine-tuning config. Handed to the main job by the command line."""

import dataclasses
from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.train import finetune
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.plan import Plan
from jaxseg.train import LoopConfig, OptimConfig


def plan_config(plan: Plan, store: Path, out: Path, init: Path | None) -> FinetuneConfig:
    """The UNETR that the plan asks for, with its convolutional path at half resolution.

    Both arms, pretrained and scratch, get the same network, crops, steps and learning rates.
    """
    encoder = ViTConfig(crop=plan.crop, token=plan.token, width=plan.width, depth=plan.depth, heads=plan.heads, rope_scale=plan.rope_scale)
    return FinetuneConfig(
        store=str(store),
        out=str(out),
        init="" if init is None else str(init),
        model=UNETRConfig(encoder=encoder, feature=plan.feature, stride=2),
        batch=plan.finetune_batch,
        optim=OptimConfig(lr=plan.finetune_lr, warmup=plan.finetune_steps // 10),
        loop=LoopConfig(steps=plan.finetune_steps, save_every=max(25, plan.finetune_steps // 6), seed=plan.seed),
        seed=plan.seed,
    )


def run(plan: Plan, store: Path, names: tuple[str, ...], out: Path, init: Path | None) -> Path:
    """Fine-tune on the cases `names`; returns the model folder."""
    return finetune(dataclasses.replace(plan_config(plan, store, out, init)), names=names)
