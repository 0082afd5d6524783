"""Where voxels lie, and what hidden blocks held, on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_anatomy --store runs/brain/store --out runs/brain/anatomy
jaxseg finetune brain --store runs/brain/store --init runs/brain/anatomy --take network --labels 5 --out runs/brain/finetune

The UNETR+ of the `brain` fine-tuning is trained whole, on the encoder of `brain_mae`; there are 750 steps, moved by AdamW. Everything else is that
of `brain_mae`.

With this network, but 1000 steps of 4 crops by Muon (--batch 4 --optim.muon --optim.lr 5e-3), it loses: 0.889 Dice against 0.901 from scratch with
one label, on development scans. As it is: not measured. With a small UNETR (`--anatomy.decoder unetr --anatomy.feature 16 --anatomy.stride 2`),
fine-tuned whole on five labels by AdamW: +0.059 over scratch after 300 steps (two draws), less than a `brain_mae` of 3000 steps by AdamW.
docs/results.md, "Brain".
"""

import dataclasses

from jaxseg.config import load_config
from jaxseg.train import OptimConfig
from pretrain.config import PretrainConfig
from pretrain.objectives import Anatomy

base = load_config("brain_mae", "pretrain", PretrainConfig)
config = dataclasses.replace(
    base,
    objective="anatomy",
    anatomy=Anatomy(decoder="unetr_plus", feature=32, stride=1),
    optim=OptimConfig(lr=1e-3, warmup=100),
    loop=dataclasses.replace(base.loop, steps=750, save_every=250),
)
