"""Random crops of a store as an endless, checkpointable iterator of numpy batches. Called by the training programs.

The sample with global number `id` depends on `(seed, id)` alone, so the same run gives the same samples on one process or many,
interrupted or not. Crops are read out of memory maps by grain's threads while the device computes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from jaxseg.data.cache import IGNORE, CaseArrays, release
from jaxseg.data.catalog import Store
from jaxseg.data.mixture import Mixture, Source, check_sources, owners_of_labels
from jaxseg.data.partial import Partial, Slices
from jaxseg.errors import CheckpointError, ConfigError

Batch = dict[str, np.ndarray]
Shape = tuple[int, int, int]

# Ids are int32 on the device.
MAX_SAMPLES = 2**31 - 1
# The random stream of the crops; `mixture` has those of the orders.
_CROP = 1


@dataclass(frozen=True)
class Provenance:
    """Where a crop comes from: the store, the case, its lowest corner and size in voxels of the case (the corner is negative in padding)."""

    store: str
    case: str
    origin: Shape
    crop: Shape


class CropLoader:
    """Endless iterator of batches of random crops.

    Args:
        store: an open store (`open_store`), or several `Source`s that are mixed by their weights.
        names: the cases to draw from where one store is given; every epoch visits each once, in an order of its own.
        crop: voxels along x, y, z. A smaller volume is centred in the crop and padded.
        batch: samples per batch over all processes together.
        seed: of the case order and the crops.
        foreground: the share of samples whose crop holds a voxel of a random label, anywhere in it; the others hold a random body voxel
            at their centre, as far as the volume's borders allow.
        balanced: draw a label first, evenly among all that the cases hold, and then a case that holds it, for every crop that must hold one:
            a label that few cases have is seen as often as any other. (An epoch then no longer visits each case once.)
        labelled: whether batches carry `label`; every case must then have one.
        partial: which part of a case counts as contoured (None: all of it); elsewhere `label` is 255, and no crop is drawn for the sake of a voxel there.
        places: whether batches carry `place`.
        process: (index, count) of this process among those that train together.
        threads: threads that read ahead; 0 reads in the caller.

    Batches:
        `image` float16 (b, x, y, z, c), padded with the case's air value; `mask` uint8 (b, x, y, z), 1 body, 0 air, padding or anonymised;
        `present` float32 (b, c), 0 for a channel that the case lacks; `spacing` float32 (b, 3) mm; `air` float32 (b, c); `id` int32 (b,);
        with `places` `place` float32 (b, 2, 3): the crop's lowest corner from the centre of the prepared scan, and half the size of that, in mm;
        with labels `label` uint8 (b, x, y, z), 255 in the padding. Batch k holds the ids k*B ... k*B+B-1, of which process p of P
        gets the p-th contiguous part.

    Raises:
        ConfigError: sizes that make no sense, or `foreground` without labels.
        InputError: no case, a case that the store lacks, a case without the label asked for, or (while iterating) damaged files.
    """

    def __init__(
        self,
        store: Store | Sequence[Source],
        names: Sequence[str] = (),
        *,
        crop: Shape,
        batch: int,
        seed: int,
        foreground: float = 0.0,
        balanced: bool = False,
        labelled: bool = False,
        partial: Partial | None = None,
        places: bool = False,
        process: tuple[int, int] = (0, 1),
        threads: int = 2,
    ) -> None:
        sources = (Source(store, tuple(names)),) if isinstance(store, Store) else tuple(store)
        _check(crop, batch, seed, foreground, labelled, process)
        if balanced and not foreground:
            raise ConfigError("balanced decides which label a crop holds: with foreground=0 no crop must hold one")
        partial = partial or Slices()
        if partial.every > 1 and (balanced or not labelled):
            raise ConfigError(
                "partial says where labels count: it needs labelled=True, and cannot be balanced (a label may lie in no contoured part)"
            )
        check_sources(sources, labelled)
        self._settings = {"seed": seed, "batch": batch, "cases": _digest(sources, balanced, partial)}
        self._samples = samples = _Samples(Mixture(sources, seed), crop, batch, foreground, balanced, labelled, partial, places, process)
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

    def provenance(self, id: int) -> Provenance:
        """Where the sample with this number (`batch["id"]`) comes from. Nothing but the case's label and mask positions is read."""
        return self._samples.provenance(int(id))

    def close(self) -> None:
        """Stop the reading threads."""
        self._iterator.close()


class _Samples:
    """grain's random-access source: this process's samples by their local number."""

    def __init__(
        self,
        mixture: Mixture,
        crop: Shape,
        batch: int,
        foreground: float,
        balanced: bool,
        labelled: bool,
        partial: Partial,
        places: bool,
        process: tuple[int, int],
    ) -> None:
        self.mixture, self.crop, self.seed, self.foreground, self.labelled = mixture, crop, mixture.seed, foreground, labelled
        self.batch, self.partial, self.places, self.process = batch, partial, places, process
        self.owners = [owners_of_labels(source) for source in mixture.sources] if balanced else None

    def __len__(self) -> int:
        return MAX_SAMPLES // self.batch * (self.batch // self.process[1])

    def __getitem__(self, index: int) -> Batch:
        part = self.batch // self.process[1]
        number, place = divmod(int(index), part)
        return self.sample(number * self.batch + self.process[0] * part + place)

    def sample(self, id: int) -> Batch:
        """The sample with this global number."""
        source, name, label, rng = self._choose(id)
        try:
            return self._crop(self.mixture.sources[source].store, name, label, rng, id)
        except Exception as error:
            # The traceback is the reader's own; the case is the last line of what is printed.
            error.add_note(f"while reading sample {id} from case {name}")
            raise

    def provenance(self, id: int) -> Provenance:
        """Where the sample with this global number comes from."""
        source, name, label, rng = self._choose(id)
        store = self.mixture.sources[source].store
        x, y, z = choose_origin(self.partial.kept(store.arrays(name)), self.crop, self._share(label), rng, label=label).tolist()
        return Provenance(str(store.path), name, (x, y, z), self.crop)

    def _choose(self, id: int) -> tuple[int, str, int | None, np.random.Generator]:
        """(number of the source, case, label that the crop must hold if that is settled, the generator of its place)."""
        source, name = self.mixture.case(id)
        rng = np.random.default_rng([_CROP, self.seed, id])
        owners = {} if self.owners is None else self.owners[source]
        if not owners or rng.random() >= self.foreground:
            return source, name, None, rng
        label = list(owners)[rng.integers(len(owners))]
        return source, owners[label][rng.integers(len(owners[label]))], label, rng

    def _share(self, label: int | None) -> float:
        """The share of crops that hold a label, as far as it is not settled yet."""
        return self.foreground if self.owners is None else float(label is not None)

    def _crop(self, store: Store, name: str, label: int | None, rng: np.random.Generator, id: int) -> Batch:
        entry, arrays = store.entry(name), self.partial.kept(store.arrays(name))
        origin = choose_origin(arrays, self.crop, self._share(label), rng, label=label)
        air = np.asarray(entry.air, np.float32)
        sample = {
            "image": cut(arrays.image, origin, self.crop, air.astype(np.float16)),
            "mask": (cut(arrays.mask, origin, self.crop, 0) == 1).astype(np.uint8),
            "present": np.asarray(entry.present, np.float32),
            "spacing": np.asarray(entry.spacing, np.float32),
            "air": air,
            "id": np.asarray(id, np.int32),
        }
        if self.labelled and arrays.label is not None:
            sample["label"] = self.partial.hide(cut(arrays.label, origin, self.crop, IGNORE), origin, arrays.label.shape)
        if self.places:
            half = np.asarray(arrays.mask.shape, np.float32) / 2
            sample["place"] = np.stack([(origin - half) * sample["spacing"], half * sample["spacing"]]).astype(np.float32)
        release(arrays)
        return sample


def choose_origin(arrays: CaseArrays, crop: Shape, foreground: float, rng: np.random.Generator, *, label: int | None = None) -> np.ndarray:
    """The crop's lowest corner (3,) in voxels; negative along an axis where the volume is smaller than the crop (it is then centred).

    With probability `foreground` a voxel of a random label (or of `label`) lies in the crop, uniformly anywhere before the crop is moved inside the volume
    (a lesion that is always central teaches the network to look at the centre); otherwise a body voxel is its centre.
    """
    shape, size = np.asarray(arrays.mask.shape), np.asarray(crop)
    if arrays.foreground and rng.random() < foreground:
        labels = sorted(arrays.foreground) if label is None else [label]
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
    if batch < 1:
        raise ConfigError(f"batch is {batch}: expected at least one crop a step")
    if not 0 <= index < count or batch % count:
        raise ConfigError(f"a batch of {batch} cannot be shared evenly by {count} processes (this is number {index}): choose a multiple")
    if seed < 0:
        raise ConfigError(f"seed is {seed}: expected 0 or more")
    if not 0 <= foreground <= 1:
        raise ConfigError(f"foreground is {foreground}: it is the share of samples, between 0 and 1")
    if foreground and not labelled:
        raise ConfigError("foreground needs labels: with labelled=False nothing may depend on them")


def _digest(sources: Sequence[Source], balanced: bool, partial: Partial) -> str:
    """What decides which cases are drawn; for one store the hash of its names alone, as positions saved before others could be mixed have it."""
    lines = list(sources[0].names)
    if len(sources) > 1:
        lines = [f"{source.weight!r}:{name}" for source in sources for name in ("", *source.names)]
    return hashlib.sha256(
        "\n".join([*lines, *(["balanced"] if balanced else []), *([repr(partial)] if partial.every > 1 else [])]).encode()
    ).hexdigest()
