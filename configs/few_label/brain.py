"""N = 1 and 5 labelled brains, two draws each, pretrained against scratch at equal steps (configs/pretrain/brain_mae.py, configs/finetune/brain.py).

python -m finetune.few_label brain --scans IXI --store runs/brain/store --pretrained runs/brain/mae --out runs/brain/few_label

Cost and score: docs/results.md, "Brain".
"""

from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from jaxseg.config import load_config

config = FewLabelConfig(
    split=str(Path(__file__).resolve().parents[1] / "splits" / "brain.json"),
    labels=(1, 5),
    draws=(0, 1),
    overlap=0.25,
    finetune=load_config("brain", "finetune", FinetuneConfig),
)
