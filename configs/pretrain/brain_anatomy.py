"""Where voxels lie, and what hidden blocks held, on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_anatomy --store runs/brain/store --out runs/brain/anatomy
jaxseg finetune brain --store runs/brain/store --init runs/brain/anatomy --take network --labels 5 --out runs/brain/finetune

A UNETR on the encoder of `brain_mae` is trained whole. Everything else is that of `brain_mae`.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig

config = dataclasses.replace(load_config("brain_mae", "pretrain", PretrainConfig), objective="anatomy")
