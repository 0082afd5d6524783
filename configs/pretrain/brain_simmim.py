"""SimMIM on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_simmim --store runs/brain/store --out runs/brain/simmim

Every token is encoded, hidden ones as one learned token; a linear head tells their voxels. Everything else is that of `brain_mae`.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig

config = dataclasses.replace(load_config("brain_mae", "pretrain", PretrainConfig), objective="simmim")
