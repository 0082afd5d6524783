"""The settings of a few-label study. Built by the files in `configs/few_label`, overridden on the command line."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from finetune.config import FinetuneConfig
from jaxseg.errors import ConfigError

Labels = int | Literal["all"]
ArmKind = Literal[
    "scratch",
    "pretrained",
    "untrained",
    "frozen",
    "scratch_x4",
    "equal_time",
    "no_transformer",
    "resenc",
    "resenc_time",
    "partial",
    "partial_scratch",
    "regions",
    "regions_scratch",
    "mean_teacher",
    "pseudo_labels",
    "anchor",
]
EVERY_ARM: tuple[ArmKind, ...] = get_args(ArmKind)
_LISTS: dict[str, tuple[Any, str]] = {
    "labels": (int, '(1, 5, "all")'),
    "draws": (int, "(0, 1, 2)"),
    "seeds": (int, "(0,)"),
    "arms": (str, '("scratch", "pretrained")'),
    "pretrained": (str, '("runs/mae",)'),
    "pretraining_seconds": ((int, float), "(900.0,)"),
    "spacings": ((int, float), "(1.0, 4.0)"),
}
"""Fields with several values: of which types, and an example. A config file is Python, and its values come as they are."""


@dataclass(frozen=True)
class FewLabelConfig:
    """A study: a grid of cells (arm, N labelled cases, draw, seed), each a fine-tuning run scored on one test set.

    Attributes:
        scans: folder of the scans with their labels, in any layout that `jaxseg prepare` knows.
        store: the same scans, prepared.
        split: JSON file with "pretrain" (the pool), "test" and "draws" (lists, of which the first N are labelled); "" makes `OUT/split.json`.
        pretrained: model or run folders of pretrainings: FOLDER, or NAME=FOLDER where there are several (arms `pretrained_NAME`). FOLDER:network takes
            the whole network of one, FOLDER:encoder its encoder alone, whatever `finetune.take` says.
        out: where the cells, `results.json` and the report go.
        label_name: which file of a case is its label, where names do not say; of DICOM contours which structures are (`jaxseg.data.contoured`).
        labels: N of the grid; "all" is the whole pool.
        draws, seeds: numbers of the draws and of the training seeds, apart from each other: seed s trains with `finetune.seed + s`.
        arms: what is compared, see `arms.ABOUT` and `arms.settings_of`.
        scratch_layer_decay: of the arms from scratch; that of `finetune.optim` is for the pretrained ones, as are its `decoder_first` and `freeze`.
        partial_every, partial_axis: the slices that are contoured in the arms `partial` and `partial_scratch`.
        partial_cube: voxels; one cube in `partial_every` of this side is contoured in the arms `regions` and `regions_scratch`.
        pretraining_share: the part of the pretraining's wall time that an arm of equal time is given beside that of fine-tuning: 1 for all of it, as
            if it served one cell, less where it serves many.
        pretraining_seconds: wall time of each pretraining, in the order of `pretrained`; () takes it from its run folder's log.
        spacings: mm, of `python -m finetune.few_label.spacing`: the same scans resampled.
        spacing_tokens: of the same program: tokens keep their "mm" (sides of the power of two voxels that is nearest, `finetune.resample_patches`), or
            their "voxels".
        test_cases, split_seed: of a split that is made: how many cases (or more, to keep patients whole) are held out, and its seed.
        allow_overlap: go on where test cases were seen in pretraining, or look like labelled ones.
        overlap: of the windows when the test cases are segmented.
        cells: fill in only these now: "N=1,5 draws=0,1 seeds=0 arms=scratch,pretrained"; "" for all. The others stay as they are.
        max_minutes: begin no cell after so many minutes.
        retry_failed: try failed cells again.
        stack: up to so many cells that differ in draw, labels, seed or first weights alone are trained in one program (`finetune.side_by_side`), for
            a GPU that one of them leaves idle; scores are those of cells trained alone up to rounding. 1 for one after the other.
        finetune: settings of every cell; store, out, init, split, labels and seed are filled in.

    Raises ConfigError for an axis of the grid (labels, draws, seeds, arms) that is empty, has a value twice (its cells would count twice), or one that
    counts nothing.
    """

    scans: str = ""
    store: str = ""
    split: str = ""
    pretrained: tuple[str, ...] = ()
    out: str = ""
    label_name: str | None = None
    labels: tuple[Labels, ...] = (1, 2, 5, 10, 20, "all")
    draws: tuple[int, ...] = (0, 1, 2, 3, 4)
    seeds: tuple[int, ...] = (0,)
    arms: tuple[ArmKind, ...] = ("pretrained", "scratch", "scratch_x4")
    scratch_layer_decay: float = 1.0
    partial_every: int = 5
    partial_axis: int = 2
    partial_cube: int = 16
    pretraining_share: float = 1.0
    pretraining_seconds: tuple[float, ...] = ()
    spacings: tuple[float, ...] = (1.0, 4.0)
    spacing_tokens: Literal["mm", "voxels"] = "mm"
    test_cases: int = 0
    split_seed: int = 2026
    allow_overlap: bool = False
    overlap: float = 0.5
    cells: str = ""
    max_minutes: float | None = None
    retry_failed: bool = False
    stack: int = 1
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self):
        for name, (kinds, example) in _LISTS.items():
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)):
                raise ConfigError(
                    f"{name} is {value!r}; expected several values, such as {example} (one alone needs a comma: ({value!r},))"
                )
            for each in value:
                if isinstance(each, bool) or not (isinstance(each, kinds) or (name == "labels" and each == "all")):
                    raise ConfigError(f"{name} is {value!r}; expected values as in {example}, found {each!r}")
        axes: dict[str, tuple[tuple[Any, ...], int]] = {"labels": (self.labels, 1), "draws": (self.draws, 0), "seeds": (self.seeds, 0)}
        if self.partial_cube < 1:
            raise ConfigError(f"partial_cube is {self.partial_cube}; expected the side of a cube, 1 voxel or more")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap is {self.overlap}; expected a share of a window, 0 or more and below 1")
        for name, (values, least) in {**axes, "arms": (self.arms, 0)}.items():
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} is {values}; expected one value or several, each once")
            if wrong := [value for value in values if isinstance(value, int) and value < least]:
                raise ConfigError(f"{name} is {values}; expected numbers of {least} or more, found {wrong[0]}")
