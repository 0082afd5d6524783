"""Masked autoencoder and latent prediction in one on T1 brains at 2 mm (IXI: 120 of 150 scans, no labels).

jaxseg prepare IXI --out runs/brain/store
jaxseg pretrain brain_mae_latent --store runs/brain/store --out runs/brain/mae_latent

Voxels and a slow average's states of the hidden tokens, from one pass of the encoder; both terms count the same (`--weights latent 0.5`).
Everything else is that of `brain_mae`.

Not measured.
"""

import dataclasses

from jaxseg.config import load_config
from pretrain.config import PretrainConfig

config = dataclasses.replace(load_config("brain_mae", "pretrain", PretrainConfig), objective="mae_latent")
