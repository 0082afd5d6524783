"""Probes of frozen tokens while pretraining: ridge and nearest-neighbour segmentation of labelled crops, and signs of collapse.

`pretrain.train` calls them every so many steps, so that a bad run is seen in minutes. They look at labels; what is learned never does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from jaxseg.data.cache import IGNORE
from jaxseg.data.catalog import Store, open_store
from jaxseg.data.loader import choose_origin, cut
from jaxseg.errors import ConfigError
from jaxseg.models import ViTConfig
from jaxseg.models.vit import patchify
from jaxseg.train import TrainState


@dataclass(frozen=True)
class ProbeConfig:
    """What is probed, and how often.

    Attributes:
        store: folder of prepared, labelled scans with the channels of those that are pretrained on; "" for no probe.
        train: names of the cases that the probes learn from.
        test: names of the cases that they are scored on.
        every: steps between probes; one more is always made at the end.
        crops: labelled crops a case, the same ones at every probe.
        neighbours: of the nearest-neighbour probe.
        ridge: penalty of the linear probe, on features of deviation 1, relative to the number of tokens.
    """

    store: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    every: int = 500
    crops: int = 2
    neighbours: int = 10
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if self.store and (not self.train or not self.test or set(self.train) & set(self.test)):
            raise ConfigError("a probe needs cases to learn from and others to be scored on: --probe.train A B --probe.test C D")
        if min(self.every, self.crops, self.neighbours) < 1 or self.ridge <= 0:
            raise ConfigError(f"probe.every, crops and neighbours must be 1 or more and ridge above 0; found {self}")


@dataclass(frozen=True)
class Crops:
    """Labelled crops: `image` float32 (n, x, y, z, c), `spacing` (n, 3) mm, and the class of each token (n, tokens), -1 where it has none."""

    image: np.ndarray
    spacing: np.ndarray
    classes: np.ndarray


def make_probe(
    graph: nnx.GraphDef, config: ProbeConfig, encoder: ViTConfig, channels: Sequence[str]
) -> Callable[[TrainState], dict[str, float]]:
    """A function of the train state: the numbers of `score` for tokens of the network with structure `graph`, which has an `encoder`.

    Raises:
        ConfigError: the store's channels are not `channels`.
        InputError: there is no such store or case, or a case has no label.
    """
    store = open_store(config.store)
    if tuple(store.recipe.channels) != tuple(channels):
        raise ConfigError(
            f"{config.store}: the probe's scans have the channels {', '.join(store.recipe.channels)}, those pretrained on {', '.join(channels)}"
        )
    train, test = (read_crops(store, names, encoder, config.crops) for names in (config.train, config.test))

    @jax.jit
    def tokens(params: Any, image: jax.Array, spacing: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).encoder(image, spacing=spacing)

    def features(params: Any, crops: Crops) -> np.ndarray:
        # One crop at a time: a probe must fit where a training step does.
        parts = [np.asarray(tokens(params, crops.image[i : i + 1], crops.spacing[i : i + 1]), np.float32) for i in range(len(crops.image))]
        return np.concatenate(parts)

    def probe(state: TrainState) -> dict[str, float]:
        known, asked = ((features(state.params, crops), crops.classes) for crops in (train, test))
        return score(*(_with_class(*each) for each in (known, asked)), neighbours=config.neighbours, ridge=config.ridge)

    return probe


def read_crops(store: Store, names: Sequence[str], encoder: ViTConfig, count: int) -> Crops:
    """`count` crops of each case that hold a label, as many as fit `encoder`'s crop; the same ones whenever they are read.

    A token's class is the most frequent one of its voxels (the lowest of equals); it has none outside the body or where nothing is labelled.
    """
    images, spacings, classes = [], [], []
    for name in names:
        entry, arrays = store.entry(name), store.arrays(name)
        if arrays.label is None:
            raise ConfigError(f"{store.path}: case {name} has no label, which a probe needs")
        for number in range(count):
            origin = choose_origin(arrays, encoder.crop, 1.0, np.random.default_rng(number))
            images.append(cut(arrays.image, origin, encoder.crop, np.asarray(entry.air, np.float16)))
            label, mask = cut(arrays.label, origin, encoder.crop, IGNORE), cut(arrays.mask, origin, encoder.crop, 0)
            classes.append(token_classes(np.where(mask == 1, label, IGNORE), encoder))
            spacings.append(entry.spacing)
    return Crops(np.stack(images).astype(np.float32), np.asarray(spacings, np.float32), np.stack(classes))


def token_classes(label: Int[np.ndarray, "x y z"], encoder: ViTConfig) -> Int[np.ndarray, " n"]:
    """The most frequent class of each token, voxels of 255 apart; -1 for a token of those alone."""
    voxels = np.asarray(patchify(jnp.asarray(label)[None, ..., None], encoder.token))[0]
    values = np.unique(label[label != IGNORE])
    counts = np.stack([(voxels == value).sum(1) for value in values], 1) if len(values) else np.zeros((len(voxels), 1), int)
    values = values if len(values) else np.zeros(1, int)
    return np.where(counts.max(1) > 0, values[counts.argmax(1)].astype(int), -1)


def _with_class(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features[classes >= 0], classes[classes >= 0]


Tokens = tuple[Float[np.ndarray, "n w"], Int[np.ndarray, " n"]]


def score(known: Tokens, asked: Tokens, *, neighbours: int = 10, ridge: float = 1e-2) -> dict[str, float]:
    """What (features, classes) `known` tell of those `asked`.

    Returns:
        "probe_linear" and "probe_knn", the mean over the foreground classes asked for of the Dice over tokens (0 where there is none), and of the
        features asked for "feature_std", the mean deviation of a dimension, "effective_rank", and "feature_cosine", the mean cosine of two
        tokens; in a collapse they go towards 0, 1 and 1.
    """
    mean, deviation = known[0].mean(0), known[0].std(0) + 1e-6
    train, test = ((each[0] - mean) / deviation for each in (known, asked))
    linear = ridge_classes(train, known[1], test, ridge)
    nearest = nearest_classes(train, known[1], test, neighbours)
    return {
        "probe_linear": token_dice(linear, asked[1]),
        "probe_knn": token_dice(nearest, asked[1]),
        "feature_std": float(asked[0].std(0).mean()),
        "effective_rank": effective_rank(asked[0]),
        "feature_cosine": mean_cosine(asked[0]),
    }


def ridge_classes(
    train: Float[np.ndarray, "n w"], classes: Int[np.ndarray, " n"], test: Float[np.ndarray, "m w"], ridge: float
) -> Int[np.ndarray, " m"]:
    """Ridge regression on one-hot classes, in closed form, every class with the same total weight (or a rare one would never win)."""
    values, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weight = (len(classes) / (len(values) * counts))[place][:, None]
    x = np.concatenate([train, np.ones((len(train), 1))], 1).astype(np.float64)
    # The constant is not shrunk.
    penalty = ridge * len(train) * np.diag([1.0] * train.shape[1] + [0.0])
    solution = np.linalg.solve(x.T @ (weight * x) + penalty, x.T @ (weight * np.eye(len(values))[place]))
    return values[(test @ solution[:-1] + solution[-1]).argmax(1)]


def nearest_classes(
    train: Float[np.ndarray, "n w"], classes: Int[np.ndarray, " n"], test: Float[np.ndarray, "m w"], neighbours: int
) -> Int[np.ndarray, " m"]:
    """The most frequent class among the `neighbours` known tokens of the largest cosine, the lowest of equals."""
    known, asked = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-6) for each in (train, test))
    neighbours = min(neighbours, len(known))
    values, place = np.unique(classes, return_inverse=True)
    found = [
        np.argpartition(-(part @ known.T), neighbours - 1, axis=1)[:, :neighbours] for part in np.array_split(asked, len(asked) // 1024 + 1)
    ]
    votes = np.eye(len(values))[place][np.concatenate(found)].sum(1)
    return values[votes.argmax(1)]


def token_dice(predicted: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"]) -> float:
    """The mean Dice of the classes above 0 in `truth`; 0 where there are none."""
    classes = [value for value in np.unique(truth) if value > 0]
    scores = [2 * ((predicted == c) & (truth == c)).sum() / ((predicted == c).sum() + (truth == c).sum()) for c in classes]
    return float(np.mean(scores)) if scores else 0.0


def effective_rank(features: Float[np.ndarray, "n w"]) -> float:
    """exp of the entropy of the covariance's spectrum (Roy and Vetterli, EUSIPCO 2007): 1 for features on a line, their width for a ball."""
    spectrum = np.linalg.eigvalsh(np.atleast_2d(np.cov(features.astype(np.float64), rowvar=False)))
    share = np.maximum(spectrum, 0) / max(spectrum.sum(), 1e-30)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_cosine(features: Float[np.ndarray, "n w"]) -> float:
    """The mean cosine over all pairs of two different tokens: 1 where all point the same way, about 0 where they point everywhere."""
    unit = features.astype(np.float64) / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # The sum over all pairs is the squared length of the sum.
    pairs = len(unit) * (len(unit) - 1)
    return float((np.square(unit.sum(0)).sum() - np.square(unit).sum()) / max(pairs, 1))


def evaluated(loop: Any, probe: ProbeConfig) -> Any:
    """The loop's settings with the probe's pace, where there is a probe."""
    return dataclasses.replace(loop, evaluate_every=probe.every) if probe.store else loop
