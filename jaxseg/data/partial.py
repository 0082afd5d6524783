"""Partial labels: only every n-th slice of a case counts as contoured, the rest as if nobody had looked. Called by `loader`."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from jaxseg.data.cache import IGNORE, CaseArrays
from jaxseg.errors import ConfigError


@dataclass(frozen=True)
class Slices:
    """Which slices of the prepared grid are contoured: every `every`-th along `axis` (0, 1, 2 for x, y, z), the middle one (`n // 2` of n) among them.

    A function of the case's shape alone, so that the same labels are there in every run, epoch and process.
    """

    every: int = 1
    axis: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.axis not in (0, 1, 2):
            raise ConfigError(f"every {self.every}th slice along axis {self.axis}: expected 1 or more, along 0, 1 or 2 (x, y or z)")

    def contoured(self, index: np.ndarray, size: int) -> Bool[np.ndarray, " n"]:
        """Whether the slices with these numbers, of `size` in the case, are contoured."""
        return (index - size // 2) % self.every == 0

    def kept(self, arrays: CaseArrays) -> CaseArrays:
        """The case with only those labelled voxels to draw crops by that lie in contoured slices; labels without one are gone."""
        if self.every == 1:
            return arrays
        size = arrays.mask.shape[self.axis]
        left = {value: voxels[self.contoured(voxels[:, self.axis], size)] for value, voxels in arrays.foreground.items()}
        return dataclasses.replace(arrays, foreground={value: voxels for value, voxels in left.items() if len(voxels)})

    def hide(self, label: UInt8[np.ndarray, "x y z"], origin: np.ndarray, shape: tuple[int, ...]) -> UInt8[np.ndarray, "x y z"]:
        """A crop of the label whose lowest corner is voxel `origin` of a case of `shape`, with 255 (ignored) outside contoured slices."""
        if self.every == 1:
            return label
        index = origin[self.axis] + np.arange(label.shape[self.axis])
        label = label.copy()
        np.moveaxis(label, self.axis, 0)[~self.contoured(index, shape[self.axis])] = IGNORE
        return label
