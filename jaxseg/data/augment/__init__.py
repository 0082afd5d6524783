"""Random augmentation on the device: pure functions of a batch and one key per sample, for the jitted training step.

A sample's result depends on its own key alone, never on its neighbours in the batch, so that devices and processes agree.
"""

from jaxseg.data.augment.batch import augment
from jaxseg.data.augment.config import Augment
from jaxseg.data.augment.spatial import IGNORE, Batch

__all__ = ["IGNORE", "Augment", "Batch", "augment"]
