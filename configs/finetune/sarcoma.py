"""Soft-tissue sarcomas in T1 + CT + PET at 3 x 3 x 3.27 mm, from N labelled patients and the encoder of `sarcoma_mae`.

jaxseg finetune sarcoma --store runs/sarcoma/store --init runs/sarcoma/mae --labels 5 --out runs/sarcoma/finetune

Cost and score: docs/results.md, "Sarcoma".
"""

from pathlib import Path

from finetune.config import FinetuneConfig, LossConfig
from jaxseg.data.augment import Augment
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig

SPLIT = Path(__file__).resolve().parents[1] / "splits" / "sarcoma.json"

config = FinetuneConfig(
    split=f"{SPLIT}:draws.0",
    model=UNETRConfig(encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=128, depth=6, heads=4), feature=16, stride=2),
    batch=4,
    loss=LossConfig(batch_dice=True),
    augment=Augment.light(),
    optim=OptimConfig(lr=2e-3, warmup=50, layer_decay=0.75),
    loop=LoopConfig(steps=300, save_every=300),
)
