"""SimCLR on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_simclr --store runs/brain/store --out runs/brain/simclr

Two views of 48 mm of each crop against those of the 31 other crops of the step. Everything else is that of `brain_mae`.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig

config = dataclasses.replace(load_config("brain_mae", "pretrain", PretrainConfig), objective="simclr", batch=32)
