"""The settings of a fine-tuning run. Built by the files in `configs/finetune`, overridden on the command line, stored as JSON in the run."""

from dataclasses import dataclass, field
from typing import Literal

from jaxseg.data.augment import Augment
from jaxseg.models import UNETRConfig, UNETRPlusConfig
from jaxseg.models.unet import UNetConfig
from jaxseg.train import LoopConfig, OptimConfig


@dataclass(frozen=True)
class LossConfig:
    """Dice + cross-entropy: their weights, and whether Dice is pooled over the batch ("batch Dice") or taken per sample."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    batch_dice: bool = False


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning run.

    Attributes:
        store: folder of the prepared, labelled scans (`jaxseg prepare`).
        out: run folder.
        init: model or run folder of a pretraining whose encoder is taken; "" trains from scratch.
        split: the pool of training cases: "" for every labelled case of the store, or "FILE.json:KEY".
        labels: train on the first so many cases of the pool; None for all.
        monitor: cases watched during training, "FILE.json:KEY"; never trained on. "" for none.
        model: the network, a UNETR, a UNETR+ or (only from scratch) a U-Net; its input channels and classes are those of the store.
        batch: crops a step, over all devices together.
        foreground: fraction of crops that hold a labelled voxel, at a random place of the crop.
        augment, optim, loop, layout, fsdp, accumulate, seed: as in pretraining.
        ema: decay of the average of the weights that is kept and exported; None for the last weights.
        allow_overlap: go on where the pretraining has seen monitored cases.
        keep: "last" checkpoint (no peeking, for few labels) or the "best" one on the monitored cases.
    """

    store: str = ""
    out: str = ""
    init: str = ""
    split: str = ""
    labels: int | None = None
    monitor: str = ""
    allow_overlap: bool = False
    model: UNETRConfig | UNETRPlusConfig | UNetConfig = field(default_factory=UNETRConfig)
    batch: int = 2
    foreground: float = 0.5
    loss: LossConfig = field(default_factory=LossConfig)
    augment: Augment = field(default_factory=Augment)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    ema: float | None = None
    keep: Literal["last", "best"] = "last"
    layout: Literal["pmap", "mesh"] = "pmap"
    fsdp: int = 1
    accumulate: int = 1
    seed: int = 0
