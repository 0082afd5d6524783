"""The settings of a fine-tuning run. Built by the files in `configs/finetune`, overridden on the command line, stored as JSON in the run."""

from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.semi.config import SemiConfig
from jaxseg.config import as_json
from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
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
        init: model or run folder of a pretraining to start from; "" trains from scratch.
        take: what of it: its "encoder", or the whole "network" but the head, where it is the same one; of the objective "lesions" the head, too, which
            then starts from its outlines.
        resample_patches: take an encoder into tokens of other sides than its own, with its patch embedding resampled
            (`jaxseg.zoo.patches`): for scans in voxels of another size, so that tokens keep theirs in mm. Refused otherwise.
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
        label_every, label_axis: partial labels: of every training case only each so-many-th slice of the prepared grid along an axis (0, 1, 2 for
            x, y, z) counts as contoured (`jaxseg.data.partial.Slices`); 1 for all. Monitored cases keep their whole label.
        label_cube: not slices but cubes of so many voxels a side, one in `label_every` of them (`jaxseg.data.partial.Cubes`); 0 for slices.
        semi: what unlabelled crops add to the loss.
        balanced: of the crops that hold a label (`foreground`), every label of the store as many, however few cases have it.
        also, also_split: further stores with the same labels, as in pretraining; of each every labelled case, or those of a split.
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
    label_every: int = 1
    label_axis: int = 2
    label_cube: int = 0
    semi: SemiConfig = field(default_factory=SemiConfig)
    balanced: bool = False
    also: dict[str, float] = field(default_factory=dict)
    also_split: dict[str, str] = field(default_factory=dict)
    take: Literal["encoder", "network"] = "encoder"
    resample_patches: bool = False

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}: expected a decay from 0 to below 1 (0.999, say), or None for the last weights")


# Fields that are younger than stored configs: they default to what one without them meant.
_YOUNGER = ("label_every", "label_axis", "label_cube", "semi", "balanced", "also", "also_split", "take", "resample_patches")


def stored(config: FinetuneConfig) -> dict[str, Any]:
    """The config as a run keeps it: younger fields only where they are set, so that runs and cells of before go on."""
    plain = as_json(FinetuneConfig())
    return {name: value for name, value in as_json(config).items() if name not in _YOUNGER or value != plain[name]}
