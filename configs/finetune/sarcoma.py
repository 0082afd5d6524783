"""Soft-tissue sarcomas in T1 + CT + PET at 3 x 3 x 3.27 mm, from N labelled patients and the encoder of `sarcoma_mae`.

jaxseg finetune sarcoma --store runs/sarcoma/store --init runs/sarcoma/mae --labels 5 --out runs/sarcoma/finetune

UNETR+ at full resolution, by Muon, as was chosen on brains. On the test patients, mean of five draws, from scratch and with the encoder: 0.705 and 0.727
Dice with one label, 0.703 and 0.729 with two, 0.749 and 0.769 with five, 0.768 and 0.797 with ten; a residual-encoder U-Net with five 0.725 where
this has 0.768 (one draw). Mirrored along all axes: left to right alone was worse. About 7 to 10 minutes on one core. docs/results.md, "Sarcoma".
"""

from pathlib import Path

from finetune.config import FinetuneConfig, LossConfig
from jaxseg.data.augment import Augment
from jaxseg.models import UNETRPlusConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig

SPLIT = Path(__file__).resolve().parents[1] / "splits" / "sarcoma.json"

config = FinetuneConfig(
    split=f"{SPLIT}:draws.0",
    model=UNETRPlusConfig(encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=128, depth=6, heads=4), feature=32, stride=1),
    batch=4,
    loss=LossConfig(batch_dice=True),
    augment=Augment.light(),
    optim=OptimConfig(muon=True, lr=5e-3, warmup=50, layer_decay=0.75),
    loop=LoopConfig(steps=300, save_every=300),
)
