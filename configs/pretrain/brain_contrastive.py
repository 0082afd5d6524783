"""VoCo's position contrast on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_contrastive --store runs/brain/store --out runs/brain/contrastive

Where in a crop of 64 mm a part of 32 mm lies, told from features. Everything else is that of `brain_mae`.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig

config = dataclasses.replace(load_config("brain_mae", "pretrain", PretrainConfig), objective="contrastive")
