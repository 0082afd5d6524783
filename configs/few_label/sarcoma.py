"""N = 5 and 10 labelled sarcomas, two draws each, pretrained against scratch at equal steps (configs/pretrain/sarcoma_mae.py, configs/finetune/sarcoma.py).

python -m finetune.few_label sarcoma --scans SARCOMA --store runs/sarcoma/store --pretrained runs/sarcoma/mae --out runs/sarcoma/few_label

Cost and score: docs/results.md, "Sarcoma".
"""

from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from jaxseg.config import load_config

config = FewLabelConfig(
    split=str(Path(__file__).resolve().parents[1] / "splits" / "sarcoma.json"),
    labels=(5, 10),
    draws=(0, 1),
    overlap=0.25,
    finetune=load_config("sarcoma", "finetune", FinetuneConfig),
)
