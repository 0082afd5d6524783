"""Six structures in T1 brains at 2 mm (IXI with DLMUSE labels), from N labelled scans and the encoder of `brain_mae`.

jaxseg finetune brain --store runs/brain/store --init runs/brain/mae --labels 5 --out runs/brain/finetune

From scratch and with the encoder (DLMUSE labels, draw 0): 0.746 and 0.835 with one label, 0.828 and 0.875 with five, 0.849 and 0.884 with ten.
With five, scratch gets 0.889 in four times the steps, and a residual-encoder U-Net 0.920 in 1000 (ten times the operations a step).
About 20 minutes on one core. docs/results.md, "Brain".
"""

from pathlib import Path

from finetune.config import FinetuneConfig, LossConfig
from jaxseg.data.augment import Augment
from jaxseg.models import UNETRConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig

SPLIT = Path(__file__).resolve().parents[1] / "splits" / "brain.json"

config = FinetuneConfig(
    split=f"{SPLIT}:draws.0",
    model=UNETRConfig(encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=128, depth=6, heads=4), feature=16, stride=2),
    batch=4,
    loss=LossConfig(batch_dice=True),
    augment=Augment.light(),
    optim=OptimConfig(muon=True, lr=5e-3, warmup=160, layer_decay=0.75),
    loop=LoopConfig(steps=1600, save_every=800),
)
