"""N = 1 to all 120 labelled brains, five draws: pretrained against scratch and other arms (configs/pretrain/brain_mae.py, configs/finetune/brain.py).

python -m finetune.few_label brain --scans IXI --store runs/brain/store --pretrained runs/brain/mae --out runs/brain/few_label

fills in the whole grid, and goes on where it was stopped. On two cores, the cells that matter most: --cells "N=1,5 draws=0,1 arms=scratch,pretrained".
Of the copy whose scans have wrapped around: python -m jaxseg.restore_overflow IXI --out IXI_restored, and --split configs/splits/brain_restored.json.
Cost and score: docs/results.md, "Brain".
"""

from pathlib import Path

from finetune.config import FinetuneConfig
from finetune.few_label import FewLabelConfig
from finetune.few_label.config import EVERY_ARM
from jaxseg.config import load_config

config = FewLabelConfig(
    split=str(Path(__file__).resolve().parents[1] / "splits" / "brain.json"),
    labels=(1, 2, 5, 10, 20, "all"),
    arms=EVERY_ARM,
    overlap=0.25,
    finetune=load_config("brain", "finetune", FinetuneConfig),
)
