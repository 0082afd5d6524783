"""Random crops of a store as an endless, checkpointable iterator of numpy batches. Called by the training programs.

The sample with global number `id` depends on `(seed, id)` alone, so the same run gives the same samples on one process or many,
interrupted or not. Crops are read out of memory maps by grain's threads while the device computes.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxseg.data.cache import IGNORE, CaseArrays
from jaxseg.data.catalog import Store
from jaxseg.errors import CheckpointError, ConfigError, InputError

Batch = dict[str, np.ndarray]
Shape = tuple[int, int, int]

# Ids are int32 on the device.
MAX_SAMPLES = 2**31 - 1
# Tells the random streams of the case order and of the crops apart.
_ORDER, _CROP = 0, 1


class CropLoader:
    """Endless iterator of batches of random crops.

    Args:
        store: an open store (`open_store`).
        names: the cases to draw from; every epoch visits each once, in an order of its own.
        crop: voxels along x, y, z. A smaller volume is centred in the crop and padded.
        batch: samples per batch over all processes together.
        seed: of the case order and the crops.
        foreground: the share of samples whose crop holds a voxel of a random label, anywhere in it; the others hold a random body voxel
            at their centre, as far as the volume's borders allow.
        labelled: whether batches carry `label`; every case must then have one.
        process: (index, count) of this process among those that train together.
        threads: threads that read ahead; 0 reads in the caller.

    Batches:
        `image` float16 (b, x, y, z, c), padded with the case's air value; `mask` uint8 (b, x, y, z), 1 body, 0 air or padding;
        `present` float32 (b, c), 0 for a channel that the case lacks; `spacing` float32 (b, 3) mm; `air` float32 (b, c); `id` int32 (b,);
        with labels `label` uint8 (b, x, y, z), 255 in the padding. Batch k holds the ids k*B ... k*B+B-1, of which process p of P
        gets the p-th contiguous part.

    Raises:
        ConfigError: sizes that make no sense, or `foreground` without labels.
        InputError: no case, a case that the store lacks, a case without the label asked for, or (while iterating) damaged files.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        *,
        crop: Shape,
        batch: int,
        seed: int,
        foreground: float = 0.0,
        labelled: bool = False,
        process: tuple[int, int] = (0, 1),
        threads: int = 2,
    ) -> None:
        _check(crop, batch, seed, foreground, labelled, process)
        _check_names(store, names, labelled)
        self._settings = {"seed": seed, "batch": batch, "cases": hashlib.sha256("\n".join(names).encode()).hexdigest()}
        samples = _Samples(store, tuple(names), crop, batch, seed, foreground, labelled, process)
        batches = grain.MapDataset.source(samples).batch(batch // process[1], drop_remainder=True)
        # Two batches ahead of each thread: enough to hide a slow case, little memory.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """JSON data: the position after the last batch returned (what is read ahead does not count), and the settings it belongs to."""
        return {"grain": self._iterator.get_state(), **self._settings}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved position; CheckpointError if it was saved with another seed, batch or list of cases."""
        different = [f"{key}: {state.get(key)!r} there, {value!r} here" for key, value in self._settings.items() if state.get(key) != value]
        if different:
            raise CheckpointError(
                f"the loader's saved position belongs to other settings ({'; '.join(different)}); resume with the same ones"
            )
        self._iterator.set_state(state["grain"])

    def close(self) -> None:
        """Stop the reading threads."""
        self._iterator.close()


class _Samples:
    """grain's random-access source: this process's samples by their local number."""

    def __init__(
        self,
        store: Store,
        names: tuple[str, ...],
        crop: Shape,
        batch: int,
        seed: int,
        foreground: float,
        labelled: bool,
        process: tuple[int, int],
    ) -> None:
        self.store, self.names, self.crop, self.seed, self.foreground, self.labelled = store, names, crop, seed, foreground, labelled
        self.batch, self.process = batch, process
        self._order = functools.lru_cache(4)(self._permutation)

    def __len__(self) -> int:
        return MAX_SAMPLES // self.batch * (self.batch // self.process[1])

    def __getitem__(self, index: int) -> Batch:
        part = self.batch // self.process[1]
        number, place = divmod(int(index), part)
        return self.sample(number * self.batch + self.process[0] * part + place)

    def sample(self, id: int) -> Batch:
        """The sample with this global number."""
        epoch, place = divmod(id, len(self.names))
        name = self.names[self._order(epoch)[place]]
        try:
            return self._crop(name, id)
        except Exception as error:
            # The traceback is the reader's own; the case is the last line of what is printed.
            error.add_note(f"while reading sample {id} from case {name}")
            raise

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_ORDER, self.seed, epoch]).permutation(len(self.names))

    def _crop(self, name: str, id: int) -> Batch:
        entry, arrays = self.store.entry(name), self.store.arrays(name)
        rng = np.random.default_rng([_CROP, self.seed, id])
        origin = choose_origin(arrays, self.crop, self.foreground, rng)
        air = np.asarray(entry.air, np.float32)
        sample = {
            "image": cut(arrays.image, origin, self.crop, air.astype(np.float16)),
            "mask": cut(arrays.mask, origin, self.crop, 0),
            "present": np.asarray(entry.present, np.float32),
            "spacing": np.asarray(entry.spacing, np.float32),
            "air": air,
            "id": np.asarray(id, np.int32),
        }
        if self.labelled and arrays.label is not None:
            sample["label"] = cut(arrays.label, origin, self.crop, IGNORE)
        return sample


def choose_origin(arrays: CaseArrays, crop: Shape, foreground: float, rng: np.random.Generator) -> np.ndarray:
    """The crop's lowest corner (3,) in voxels; negative along an axis where the volume is smaller than the crop (it is then centred).

    With probability `foreground` a voxel of a random label lies in the crop, uniformly anywhere before the crop is moved inside the volume
    (a lesion that is always central teaches the network to look at the centre); otherwise a body voxel is its centre.
    """
    shape, size = np.asarray(arrays.mask.shape), np.asarray(crop)
    if arrays.foreground and rng.random() < foreground:
        labels = sorted(arrays.foreground)
        voxel, place = _pick(arrays.foreground[labels[rng.integers(len(labels))]], rng), rng.integers(size)
    elif len(arrays.body):
        voxel, place = _pick(arrays.body, rng), size // 2
    else:
        voxel, place = rng.integers(shape), size // 2
    return np.where(shape < size, (shape - size) // 2, np.clip(voxel - place, 0, np.maximum(shape - size, 0)))


def _pick(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return voxels[rng.integers(len(voxels))]


def cut(array: np.ndarray, origin: np.ndarray, crop: Shape, fill: Any) -> np.ndarray:
    """The box of `crop` voxels at `origin`, copied; `fill` where it lies outside the array. Only the box is read from a memory map."""
    shape = array.shape[:3]
    low, high = np.maximum(origin, 0), np.minimum(origin + np.asarray(crop), shape)
    inside = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if inside.shape[:3] == tuple(crop):
        return np.array(inside)
    out = np.empty((*crop, *array.shape[3:]), array.dtype)
    out[...] = fill
    out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))] = inside
    return out


def _check(crop: Shape, batch: int, seed: int, foreground: float, labelled: bool, process: tuple[int, int]) -> None:
    index, count = process
    if len(crop) != 3 or min(crop) < 1:
        raise ConfigError(f"crop is {tuple(crop)}: expected three sizes in voxels, each at least 1")
    if not 0 <= index < count or batch < 1 or batch % count:
        raise ConfigError(f"a batch of {batch} cannot be shared evenly by {count} processes (this is number {index}): choose a multiple")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: expected 0 or more")
    if not 0 <= foreground <= 1:
        raise ConfigError(f"foreground is {foreground}: it is the share of samples, between 0 and 1")
    if foreground and not labelled:
        raise ConfigError("foreground needs labels: with labelled=False nothing may depend on them")


def _check_names(store: Store, names: Sequence[str], labelled: bool) -> None:
    if not names:
        raise InputError(f"{store.path}: no case to draw crops from")
    missing = [name for name in names if not store.entry(name).labelled and labelled]
    if missing:
        raise InputError(f"{store.path}: {len(missing)} of {len(names)} cases have no label, among them {', '.join(missing[:5])}")
