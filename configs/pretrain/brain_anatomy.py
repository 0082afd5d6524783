"""Where voxels lie, and what hidden blocks held, on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_anatomy --store runs/brain/store --out runs/brain/anatomy
jaxseg finetune brain --store runs/brain/store --init runs/brain/anatomy --take network --labels 5 --out runs/brain/finetune

A UNETR on the encoder of `brain_mae` is trained whole; a step takes four times as long; there are 750, moved by AdamW.
Everything else is that of `brain_mae`.

Fine-tuned whole on five labels by AdamW: +0.059 Dice over scratch after 300 steps (two draws), less than a
`brain_mae` of 3000 steps by AdamW. docs/results.md, "Brain".
"""

import dataclasses

from jaxseg.config import load_config
from jaxseg.train import OptimConfig
from pretrain.config import PretrainConfig

base = load_config("brain_mae", "pretrain", PretrainConfig)
config = dataclasses.replace(
    base, objective="anatomy", optim=OptimConfig(lr=1e-3, warmup=100), loop=dataclasses.replace(base.loop, steps=750, save_every=250)
)
