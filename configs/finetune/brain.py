"""Six structures in T1 brains at 2 mm (IXI with DLMUSE labels), from N labelled scans and the encoder of `brain_mae`.

jaxseg finetune brain --store runs/brain/store --init runs/brain/mae --labels 5 --out runs/brain/finetune

UNETR+ at full resolution, mirrored left to right. From scratch and with the encoder (DLMUSE, draw 0): with one label 0.887 and 0.896 Dice, with five 0.938 and
0.936, with ten 0.946 both. Mirrored along all axes: with one label 0.876 and 0.885, with five 0.917 and 0.919, a residual-encoder U-Net from scratch 0.920.
About 40 minutes on one core. docs/results.md, "Brain".
"""

import dataclasses
from pathlib import Path

from finetune.config import FinetuneConfig, LossConfig
from jaxseg.data.augment import Augment
from jaxseg.models import UNETRPlusConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig

SPLIT = Path(__file__).resolve().parents[1] / "splits" / "brain.json"

config = FinetuneConfig(
    split=f"{SPLIT}:draws.0",
    model=UNETRPlusConfig(encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=128, depth=6, heads=4), feature=32, stride=1),
    batch=4,
    loss=LossConfig(batch_dice=True),
    augment=dataclasses.replace(Augment.light(), flip=(0.5, 0.0, 0.0)),  # no brain is upside down
    optim=OptimConfig(muon=True, lr=5e-3, warmup=100, layer_decay=0.75),
    loop=LoopConfig(steps=1000, save_every=250),
)
