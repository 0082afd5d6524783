"""The main job's plan as a pretraining config. Handed to the main job by the command line."""

from pathlib import Path

from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.plan import Plan
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.config import PretrainConfig
from pretrain.implants import Lesions
from pretrain.train import pretrain

# How much lesions differ in signal where it is known; `Lesions` has the default for where it is not.
KNOWN_SPREAD = 0.35


def plan_config(plan: Plan, store: Path, out: Path) -> PretrainConfig:
    """What the plan asks for: a masked autoencoder (units of two tokens hidden, a quarter seen, a narrow decoder), or artificial lesions."""
    encoder = ViTConfig(crop=plan.crop, token=plan.token, width=plan.width, depth=plan.depth, heads=plan.heads)
    return PretrainConfig(
        store=str(store),
        out=str(out),
        objective=plan.objective,
        model=MAEConfig(encoder=encoder, decoder_width=96, decoder_depth=2, decoder_heads=3, predict=0.5),
        batch=plan.pretrain_batch,
        augment=Augment.light(),
        optim=OptimConfig(muon=plan.muon, lr=plan.pretrain_lr, warmup=plan.pretrain_steps // 20),
        loop=LoopConfig(steps=plan.pretrain_steps, save_every=max(50, plan.pretrain_steps // 8), seed=plan.seed),
        seed=plan.seed,
        lesions=_lesions(plan) if plan.objective == "lesions" else None,
    )


def _lesions(plan: Plan) -> Lesions:
    looks = {"signal": plan.signal, "spread": KNOWN_SPREAD} if plan.signal else {}
    # None, as in the settings of runs from before there was a choice.
    decoder = None if plan.decoder == "unetr" else plan.decoder
    return Lesions(decoder=decoder, feature=plan.feature, stride=plan.stride, **looks)


def run(plan: Plan, store: Path, out: Path) -> Path:
    """Pretrain as planned; returns the model folder."""
    return pretrain(plan_config(plan, store, out))
