"""The settings of a pretraining run. Built by the files in `configs/pretrain`, overridden on the command line, stored as JSON in the run."""

from dataclasses import dataclass, field
from typing import Literal

from jaxseg.data.augment import Augment
from jaxseg.models import MAEConfig
from jaxseg.train import LoopConfig, OptimConfig
from pretrain.implants import Lesions
from pretrain.objectives import Anatomy, Contrast
from pretrain.pictures import PictureConfig
from pretrain.probe import ProbeConfig


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
        store: folder of the prepared, unlabelled scans (`jaxseg prepare`).
        out: run folder.
        split: "" for every case of the store, or "FILE.json:KEY".
        also: further stores to draw crops from, and how often compared with `store`, whose weight is 1 (`--also STORE 0.5`). Their channels must
            be those of `store` in the same order: prepare them --like a model, or with the same ones; what a case lacks is marked as missing.
        also_split: "FILE.json:KEY" for those of them of which not every case is taken (`--also-split STORE FILE.json:KEY`).
        objective: what is learned, see `pretrain.objectives`.
        model: the masked autoencoder; its input channels are those of the store. Other objectives take its encoder and its masks.
        contrast: what contrastive objectives have besides.
        lesions: what the objective "lesions" has besides; None for its defaults.
        anatomy: what the objective "anatomy" has besides; None for its defaults.
        batch: crops a step, over all devices together.
        weights: factor of each of the objective's loss terms by name, 1 where not named (`--weights latent 0.5`).
        momentum: of the teacher's average, for objectives that have a teacher.
        augment: what is done to a crop before it is masked.
        optim: AdamW and its schedule.
        loop: number of steps, and how often to log and save.
        probe: labelled cases that the frozen tokens are tried on while pretraining; the numbers go to the log.
        pictures: reconstructions that are drawn into the run folder, for objectives that reconstruct.
        layout: "pmap" (one host) or "mesh" (sharded parameters, several hosts).
        fsdp: over how many devices the parameters are sharded ("mesh" only).
        accumulate: micro-batches a step.
        seed: of the initial weights, the order of the crops, the masks and the augmentation.
    """

    store: str = ""
    out: str = ""
    split: str = ""
    objective: Literal["mae", "simmim", "latent", "mae_latent", "contrastive", "simclr", "lesions", "anatomy"] = "mae"
    model: MAEConfig = field(default_factory=MAEConfig)
    contrast: Contrast = field(default_factory=Contrast)
    batch: int = 8
    weights: dict[str, float] = field(default_factory=dict)
    momentum: float = 0.996
    augment: Augment = field(default_factory=Augment)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    layout: Literal["pmap", "mesh"] = "pmap"
    fsdp: int = 1
    accumulate: int = 1
    seed: int = 0
    # Empty fields are no difference from a stored config without them.
    also: dict[str, float] = field(default_factory=dict)
    also_split: dict[str, str] = field(default_factory=dict)
    lesions: Lesions | None = None
    anatomy: Anatomy | None = None
