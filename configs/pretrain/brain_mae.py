"""Masked-autoencoder pretraining on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_mae --store runs/brain/store --out runs/brain/mae

Where the store holds labels, --probe.store runs/brain/store --probe.train IXI067 IXI092 IXI104 --probe.test IXI105 IXI148 IXI161 logs every 500
steps what a linear and a nearest-neighbour probe tell of the frozen tokens of these six.

Tokens of 8 mm, three quarters hidden in units of two tokens (16 mm). An hour on one core.
Of the 112 scans that could be restored, 89 to learn from, one draw, Dice with the encoder and from scratch in the `brain` config's UNETR+: 0.896 and 0.887
with one label; mirrored left to right alone in pretraining, too (--augment.flip 0.5 0 0), 0.936 and 0.938 (a second draw: 0.941 and 0.939)
with five and 0.946 both with ten, so nothing;
in a small UNETR at half resolution 0.835 and 0.746 with one label, 0.875 and 0.828 with five, 0.884 and 0.849 with ten. docs/results.md, "Brain".
"""

from pathlib import Path

from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.config import PretrainConfig

SPLIT = Path(__file__).resolve().parents[1] / "splits" / "brain.json"

config = PretrainConfig(
    split=f"{SPLIT}:pretrain",
    model=MAEConfig(
        encoder=ViTConfig(crop=(32, 32, 32), token=(4, 4, 4), width=128, depth=6, heads=4),
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
        predict=0.5,
    ),
    batch=8,
    augment=Augment.light(),
    optim=OptimConfig(muon=True, lr=2e-3, warmup=100),
    loop=LoopConfig(steps=9000, save_every=1500),
)
