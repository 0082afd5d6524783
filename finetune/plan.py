"""The main job's plan as a fine-tuning config. Handed to the main job by the command line."""

from pathlib import Path

from finetune.config import FinetuneConfig, LossConfig
from finetune.train import finetune
from jaxseg.data.augment import Augment
from jaxseg.models import UNETRConfig, UNETRPlusConfig, ViTConfig
from jaxseg.plan import Plan
from jaxseg.train import LoopConfig, OptimConfig


def plan_config(plan: Plan, store: Path, out: Path, init: Path | None) -> FinetuneConfig:
    """The UNETR+ or UNETR that the plan asks for.

    Both arms, pretrained and scratch, get the same network, crops, augmentation, steps and peak learning rate. The pretrained encoder
    learns more slowly towards its input (layer decay), which would only slow down one that starts from noise.
    """
    family = UNETRPlusConfig if plan.decoder == "unetr_plus" else UNETRConfig
    encoder = ViTConfig(crop=plan.crop, token=plan.token, width=plan.width, depth=plan.depth, heads=plan.heads)
    return FinetuneConfig(
        store=str(store),
        out=str(out),
        init="" if init is None else str(init),
        take="network" if init and plan.objective == "lesions" else "encoder",
        model=family(encoder=encoder, feature=plan.feature, stride=plan.stride),
        batch=plan.finetune_batch,
        loss=LossConfig(batch_dice=True),
        augment=Augment.light(),
        optim=OptimConfig(
            muon=plan.muon, lr=plan.finetune_lr, warmup=plan.finetune_steps // 10, layer_decay=plan.layer_decay if init else 1.0
        ),
        loop=LoopConfig(steps=plan.finetune_steps, save_every=max(25, plan.finetune_steps // 6), seed=plan.seed),
        seed=plan.seed,
    )


def run(plan: Plan, store: Path, names: tuple[str, ...], out: Path, init: Path | None) -> Path:
    """Fine-tune on the cases `names`; returns the model folder."""
    return finetune(plan_config(plan, store, out, init), names=names)
