"""The settings of what unlabelled crops add to the loss. Part of every fine-tuning config."""

from dataclasses import dataclass
from typing import Literal

from jaxseg.errors import ConfigError


@dataclass(frozen=True)
class SemiConfig:
    """One unlabelled crop beside every labelled one.

    Attributes:
        method: "" for none; "mean_teacher" asks the network to agree with the average of its past weights; "pseudo_labels" trains a first
            network on the labels alone, whose confident predictions are labels for the second.
        pool: the unlabelled scans, "FILE.json:KEY"; labels that they may have are not read.
        weight: of the unlabelled terms beside those with labels, reached after `ramp` steps.
        ramp: steps over which the weight grows as exp(-5 (1 - t / ramp)²) (Laine & Aila, arXiv 1610.02242); 0 for the whole weight from the start.
        decay: of the mean teacher's average.
        confidence: probability from which on a prediction counts as a pseudo-label; voxels below it are ignored.
    """

    method: Literal["", "mean_teacher", "pseudo_labels"] = ""
    pool: str = ""
    weight: float = 1.0
    ramp: int = 100
    decay: float = 0.99
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if self.method and not self.pool:
            raise ConfigError(
                f"semi.method {self.method} needs unlabelled scans: name them with --semi.pool FILE.json:KEY (never those to test on)"
            )
        if self.weight < 0 or self.ramp < 0 or not 0 <= self.decay < 1 or not 0.5 <= self.confidence < 1:
            raise ConfigError(
                f"semi: weight {self.weight} and ramp {self.ramp} must not be negative, decay {self.decay} must lie in [0, 1) and "
                f"confidence {self.confidence} in [0.5, 1)"
            )
