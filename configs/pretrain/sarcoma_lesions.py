"""Outlining artificial lesions on soft-tissue sarcomas, T1 + CT + PET at 3 x 3 x 3.27 mm (20 of 38 patients, no labels).

jaxseg prepare SARCOMA --out runs/sarcoma/store --spacing 3,3,3.27
jaxseg pretrain sarcoma_lesions --store runs/sarcoma/store --out runs/sarcoma/lesions
python -m finetune.few_label sarcoma --scans SARCOMA --store runs/sarcoma/store --pretrained runs/sarcoma/lesions --finetune.take network --out O

All that is known beforehand is that living tumour takes up more FDG than the tissue around it. Sizes are those of large tumours; the loss stays
close to each lesion, because nearly every crop of these scans holds a true one.

The UNETR+ of the `sarcoma` fine-tuning is trained whole: not measured. A small UNETR (`--lesions.decoder unetr --lesions.feature 16 --lesions.stride 2`)
lost against scratch (docs/results.md, "Sarcoma"), perhaps because of true tumours, which are learnt to be none next to an artificial lesion: not tried.
"""

import dataclasses

from jaxseg.config import load_config
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.config import PretrainConfig
from pretrain.implants import Lesions

config = dataclasses.replace(
    load_config("sarcoma_mae", "pretrain", PretrainConfig),
    objective="lesions",
    lesions=Lesions(
        decoder="unetr_plus",
        feature=32,
        stride=1,
        radius=(10.0, 45.0),
        core=(0.8, 1.0),
        signal={"PET": (0.5, 2.5, 0.5)},
        spread=0.7,
        near=1.3,
    ),
    batch=6,
    optim=OptimConfig(lr=1.5e-3, warmup=50),
    loop=LoopConfig(steps=600, save_every=200),
)
