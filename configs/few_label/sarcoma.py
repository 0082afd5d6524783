"""N = 1 to all 20 labelled sarcomas, five draws: pretrained against scratch and other arms (configs/pretrain/sarcoma_mae.py, configs/finetune/sarcoma.py).

python -m finetune.few_label sarcoma --scans SARCOMA --store runs/sarcoma/store --pretrained runs/sarcoma/mae --out runs/sarcoma/few_label

fills in the whole grid, and goes on where it was stopped. On two cores, the cells that matter most: --cells "N=1,5 draws=0,1 arms=scratch,pretrained".
Cost and score: docs/results.md, "Sarcoma".
"""

from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from finetune.few_label.config import EVERY_ARM
from jaxseg.config import load_config

config = FewLabelConfig(
    split=str(Path(__file__).resolve().parents[1] / "splits" / "sarcoma.json"),
    labels=(1, 2, 5, 10, "all"),
    arms=EVERY_ARM,
    overlap=0.25,
    finetune=load_config("sarcoma", "finetune", FinetuneConfig),
)
