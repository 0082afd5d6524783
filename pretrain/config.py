"""The settings of a pretraining run. Built by the files in `configs/pretrain`, overridden on the command line, stored as JSON in the run."""

from dataclasses import dataclass, field
from typing import Literal

from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig
from jaxseg.train import LoopConfig, OptimConfig


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        store: folder of the prepared, unlabelled scans (`jaxseg prepare`).
        out: run folder.
        split: "" for every case of the store, or "FILE.json:KEY".
        model: the masked autoencoder; its input channels are those of the store.
        batch: crops a step, over all devices together.
        augment: what is done to a crop before it is masked.
        optim: AdamW and its schedule.
        loop: number of steps, and how often to log and save.
        layout: "pmap" (one host) or "mesh" (sharded parameters, several hosts).
        fsdp: over how many devices the parameters are sharded ("mesh" only).
        accumulate: micro-batches a step.
        seed: of the initial weights, the order of the crops, the masks and the augmentation.
    """

    store: str = ""
    out: str = ""
    split: str = ""
    model: MAEConfig = field(default_factory=MAEConfig)
    batch: int = 8
    augment: Augment = field(default_factory=Augment)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    layout: Literal["pmap", "mesh"] = "pmap"
    fsdp: int = 1
    accumulate: int = 1
    seed: int = 0
