"""Training: one step, its layouts over devices, optimizer, checkpoints and loop. It knows no model and no data."""

from jaxseg.train.checkpoint import Checkpoints, Restored, read_arrays
from jaxseg.train.groups import frozen, layer_depths
from jaxseg.train.log import QuietProgress, TrainingProgress, read_log
from jaxseg.train.loop import LoopConfig, fit
from jaxseg.train.optim import OptimConfig, learning_rate, make_optimizer
from jaxseg.train.parallel import Layout, mean
from jaxseg.train.run import RunFolder
from jaxseg.train.state import TrainState, array_names
from jaxseg.train.step import make_step

__all__ = [
    "Checkpoints",
    "Layout",
    "LoopConfig",
    "OptimConfig",
    "QuietProgress",
    "Restored",
    "RunFolder",
    "TrainState",
    "TrainingProgress",
    "array_names",
    "fit",
    "frozen",
    "layer_depths",
    "learning_rate",
    "make_optimizer",
    "make_step",
    "mean",
    "read_arrays",
    "read_log",
]
