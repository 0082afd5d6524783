"""Outlining artificial lesions on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_lesions --store runs/brain/store --out runs/brain/lesions
jaxseg finetune brain --store runs/brain/store --init runs/brain/lesions --take network --labels 5 --out runs/brain/finetune

The UNETR+ of the `brain` fine-tuning is trained whole, on the encoder of `brain_mae`; nothing is known beforehand of the lesions' signal.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig
from pretrain.implants import Lesions

base = load_config("brain_mae", "pretrain", PretrainConfig)
config = dataclasses.replace(
    base,
    objective="lesions",
    lesions=Lesions(decoder="unetr_plus", feature=32, stride=1),
    loop=dataclasses.replace(base.loop, steps=1000, save_every=250),
)
