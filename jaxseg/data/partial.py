"""Partial labels: only every n-th slice or cube of a case counts as contoured, the rest as if nobody had looked. Called by `loader`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxseg.data.cache import IGNORE, CaseArrays
from jaxseg.errors import ConfigError

Indices = Sequence[Int[np.ndarray, "..."]]


@dataclass(frozen=True)
class Partial(ABC):
    """Which part of a case counts as contoured: one in `every` of its slices (`Slices`) or cubes (`Cubes`), 1 for all of it.

    A function of the case's shape alone, so that the same labels are there in every run, epoch and process.
    """

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every {self.every}th slice or cube: expected 1 or more")

    @abstractmethod
    def contoured(self, index: Indices, shape: Sequence[int]) -> Bool[np.ndarray, "..."]:
        """Whether voxels of a case of `shape` are contoured; `index` are their places along x, y and z, arrays that broadcast."""

    def kept(self, arrays: CaseArrays) -> CaseArrays:
        """The case with only those labelled voxels to draw crops by that are contoured; labels without one are gone."""
        if self.every == 1:
            return arrays
        left = {value: voxels[self.contoured(tuple(voxels.T), arrays.mask.shape)] for value, voxels in arrays.foreground.items()}
        return dataclasses.replace(arrays, foreground={value: voxels for value, voxels in left.items() if len(voxels)})

    def hide(self, label: UInt8[np.ndarray, "x y z"], origin: np.ndarray, shape: tuple[int, ...]) -> UInt8[np.ndarray, "x y z"]:
        """A crop of the label whose lowest corner is voxel `origin` of a case of `shape`, with 255 (ignored) where it is not contoured."""
        if self.every == 1:
            return label
        index = np.meshgrid(
            *(lowest + np.arange(size) for lowest, size in zip(origin, label.shape, strict=True)), indexing="ij", sparse=True
        )
        return np.where(self.contoured(index, shape), label, np.uint8(IGNORE))


@dataclass(frozen=True)
class Slices(Partial):
    """Every `every`-th slice of the prepared grid along `axis` (0, 1, 2 for x, y, z) is contoured, the middle one (`n // 2` of n) among them."""

    axis: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in (0, 1, 2):
            raise ConfigError(f"slices along axis {self.axis}: expected 0, 1 or 2 (x, y or z)")

    def contoured(self, index: Indices, shape: Sequence[int]) -> Bool[np.ndarray, "..."]:
        return (index[self.axis] - shape[self.axis] // 2) % self.every == 0


@dataclass(frozen=True)
class Cubes(Partial):
    """The prepared grid is cut into cubes of `side` voxels; one in `every` is contoured, on diagonal planes, so that they lie all over the case.

    The cube whose lowest corner is the middle voxel (`n // 2` of n along each axis) is among them.
    """

    side: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 1:
            raise ConfigError(f"cubes of {self.side} voxels a side: expected 1 or more")

    def contoured(self, index: Indices, shape: Sequence[int]) -> Bool[np.ndarray, "..."]:
        x, y, z = ((along - size // 2) // self.side for along, size in zip(index, shape, strict=True))
        return (x + y + z) % self.every == 0
