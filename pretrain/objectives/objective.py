"""What every objective offers to `pretrain.train`: a network, a loss, and a teacher if it has one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseg.data.augment import Augment
from jaxseg.errors import ConfigError
from jaxseg.models import MAEConfig, ViTConfig
from jaxseg.models.positions import Triple
from jaxseg.train import TrainState, make_step
from jaxseg.train.step import Loss, Step
from pretrain.decoded import Decoder, check_decoder
from pretrain.implants import Lesions


@dataclass(frozen=True)
class Contrast:
    """What contrastive objectives have besides an encoder.

    Attributes:
        projection: width of the features that are compared.
        temperature: of "simclr": the lower, the more the most similar negatives count.
        part: of "simclr": the share of the encoder's crop, in tokens along each axis, that a view has, rounded up.
        region: how many times as long as the encoder's crop along each axis what is loaded of a scan is, rounded up to an even number of tokens.
            Views are drawn from all of it ("simclr"), or it is what is cut in two along each axis ("contrastive": at 2 the parts are
            whole crops, which costs eight times as much). None for once.
    """

    projection: int = 128
    temperature: float = 0.1
    part: float = 0.75
    region: float | None = None

    def __post_init__(self) -> None:
        if self.region is not None and self.region < 1:
            raise ConfigError(f"contrast.region is {self.region}; expected 1 or more times the encoder's crop")

    def loaded(self, encoder: ViTConfig) -> Triple:
        """Voxels of a scan that are loaded for one sample."""
        if self.region is None:
            return encoder.crop
        tokens = (2 * math.ceil(self.region * n / 2) for n in encoder.grid)
        x, y, z = (n * token for n, token in zip(tokens, encoder.token))
        return x, y, z


@dataclass(frozen=True)
class Anatomy:
    """What the objective "anatomy" has besides: what it hides, and the decoder that it trains around the encoder.

    Attributes:
        hidden: share of the tokens that are hidden; what the network sees of the rest is what it is asked to fill in.
        unit: tokens along each axis that are hidden together.
        decoder: "unetr", which is also None, or "unetr_plus" with its convolutional stem.
        feature, stride: see `UNETRConfig` and `UNETRPlusConfig`; fine-tuning takes all of it where its own family and sizes are the same.
    """

    hidden: float = 0.5
    unit: Triple = (2, 2, 2)
    decoder: Decoder | None = None
    feature: int = 16
    stride: int = 2

    def __post_init__(self) -> None:
        check_decoder("anatomy.decoder", self.decoder)
        if not 0 < self.hidden < 1 or min(self.unit) < 1:
            raise ConfigError(
                f"anatomy.hidden is {self.hidden} and anatomy.unit {self.unit}; expected a share between 0 and 1, and 1 or more tokens an axis"
            )


class Objective(NamedTuple):
    """One way to learn without labels. All of them share the encoder and the masks of one `MAEConfig`, so that they compare at equal settings.

    Attributes:
        network: the run's model settings (and its `Contrast`, where `contrasts`) → the config of the network that is trained, of a family of
            `jaxseg.zoo.registry`. Its network draws `encoder` first, so that every objective starts from the same one.
        make_loss: (graph of that network, augmentation) → a loss of (params, batch, keys, extra) for `jaxseg.train.make_step`. It is a sum over
            samples that never look at each other, or the layouts would give other numbers.
        teacher: parameters → the part of them that a teacher averages, or None without a teacher. The average is the loss's `extra`.
        across: whether the loss compares samples all the same. It then takes the devices' `axis` too, sees everybody's features by
            `jaxseg.train.parallel.gather`, sums over its own samples alone, and is never accumulated.
        contrasts: whether `network` takes a `Contrast` as its second argument.
        begin: drawn parameters → those to start from, or None to start from them as they are.
        places: whether `network` takes an `Anatomy` as its second argument, `make_loss` the same as its third, and batches say where their crops lie
            ("place", see `CropLoader`).
        implants: whether `network` takes `Lesions` as its second argument, and `make_loss` those and the channels' names as its third and fourth.
    """

    network: Callable[..., Any]
    make_loss: Callable[..., Loss]
    teacher: Callable[[Any], Any] | None = None
    across: bool = False
    contrasts: bool = False
    implants: bool = False
    places: bool = False
    begin: Callable[[Any], Any] | None = None

    def settings(
        self, model: MAEConfig, contrast: Contrast = Contrast(), lesions: Lesions | None = None, anatomy: Anatomy | None = None
    ) -> Any:
        """The config of the network that is trained, from a run's settings."""
        more: tuple[Any, ...] = ()
        if self.contrasts:
            more = (contrast,)
        elif self.implants:
            more = (lesions or Lesions(),)
        elif self.places:
            more = (anatomy or Anatomy(),)
        return self.network(model, *more)

    def start(self, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        """The state before the first step; a teacher starts as a copy of its student."""
        params = params if self.begin is None else self.begin(params)
        extra = None if self.teacher is None else jax.tree.map(jnp.copy, self.teacher(params))
        return TrainState.create(params, optimizer, extra=extra)

    def make_step(
        self,
        graph: Any,
        augmentation: Augment,
        optimizer: optax.GradientTransformation,
        *,
        weights: Mapping[str, float] | None = None,
        momentum: float = 0.996,
        accumulate: int = 1,
        lesions: Lesions | None = None,
        channels: tuple[str, ...] = (),
        anatomy: Anatomy | None = None,
    ) -> Step:
        """The training step; a teacher becomes `momentum * teacher + (1 - momentum) * student` after each. `weights`: factor of each term."""
        advance = None if self.teacher is None else partial(_average, self.teacher, momentum)
        loss = self.loss_of(graph, augmentation, lesions=lesions, channels=channels, anatomy=anatomy)
        return make_step(loss, optimizer, weights=weights, advance=advance, accumulate=accumulate, across=self.across)

    def loss_of(
        self,
        graph: Any,
        augmentation: Augment,
        *,
        lesions: Lesions | None = None,
        channels: tuple[str, ...] = (),
        anatomy: Anatomy | None = None,
    ) -> Loss:
        """The loss, with what this objective has besides."""
        more: tuple[Any, ...] = (lesions or Lesions(), channels) if self.implants else (anatomy or Anatomy(),) if self.places else ()
        return self.make_loss(graph, augmentation, *more)


def _average(student: Callable[[Any], Any], momentum: float, teacher: Any, params: Any) -> Any:
    return jax.tree.map(lambda old, new: momentum * old + (1.0 - momentum) * new, teacher, student(params))
