"""AdamW or Muon with warm-up and cosine, clipping, weight decay by parameter name, and layer-wise learning rates. Used by all training."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.errors import ConfigError
from jaxseg.train.groups import decayed_rates, frozen, in_encoder
from jaxseg.train.norm import global_norm
from jaxseg.train.state import array_names

# Names (one dotted part) whose arrays are not weights of a linear map: shrinking them towards zero has no meaning.
_UNDECAYED = re.compile(
    r"(bias|b|scale|gamma|beta|\w*norm\d*|\w*layer_?scale\d*|pos(itions?)?|pos_\w+|position_\w+|(\w*_)?table|registers?|(\w*_)?tokens?)"
)
# The first and the last map of a network, whose rows or columns are voxels or labels and not features: Muon leaves them to Adam.
_ENDS = re.compile(r"(\w*_)?(patch\w*|embed\w*|heads?|head_\w+)")
_STACKED = re.compile(r"\b(blocks|stages|levels)\.(?!\d)")  # their arrays have a leading axis over depth, as in `groups`
STEPS = 1000  # of a schedule, unless said otherwise
_MUON_RMS = 0.2  # root mean square of an update in units of the rate, that of AdamW's (arXiv 2502.16982, 2.2): one rate serves both


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        lr: peak learning rate.
        steps: steps of the whole schedule, warm-up included; a run's own (`loop.steps`) take their place.
        warmup: steps of linear warm-up.
        final: learning rate at the end, as a fraction of `lr`.
        weight_decay: AdamW's, on weights only (no norms, biases, positions, tokens, layer scales), by name.
        betas: AdamW's.
        clip: largest global gradient norm, None for no clipping.
        layer_decay: layer i of the encoder (n blocks or stages, i from 0) learns at `layer_decay ** (n - i)`, the embedding at `layer_decay
            ** (n + 1)`, everything else at 1 (BEiT, arXiv 2106.08254). `groups.layer_depths` says which array is in which layer.
        freeze: dotted prefixes of parameters that stay as they are.
        decoder_first: for so many first steps nothing but what lies behind the encoder's last layer learns; then the encoder's rate rises to
            its own in `warmup` steps more, so that a decoder that knows nothing does not pull a pretrained encoder apart.
        muon: weights of hidden maps and convolutions move along their momentum made orthogonal (Jordan 2024,
            https://kellerjordan.github.io/posts/muon; `optax.contrib.scale_by_muon`: five iterations, momentum 0.95), sized as AdamW's updates
            are, so that `lr` and `weight_decay` serve both; all else stays AdamW's.
    """

    lr: float = 1e-3
    steps: int = STEPS
    warmup: int = 50
    final: float = 0.01
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ()
    decoder_first: int = 0
    muon: bool = False

    def __post_init__(self):
        if self.lr <= 0 or self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"lr={self.lr}, warmup={self.warmup}, steps={self.steps}: need lr > 0, steps >= 1 and 0 <= warmup <= steps")
        if not 0 < self.layer_decay <= 1 or not 0 <= self.final <= 1:
            raise ConfigError(f"layer_decay={self.layer_decay} must lie in (0, 1] and final={self.final} in [0, 1]")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip}: expected a largest norm above 0, or None for no clipping")
        if self.decoder_first < 0:
            raise ConfigError(f"decoder_first={self.decoder_first}: expected a number of steps, 0 or more")

    def over(self, steps: int) -> "OptimConfig":
        """These settings for a run of `steps` steps; a run of none warms up for none.

        Raises:
            ConfigError: the warm-up outlasts the run, or the settings name another number of steps than the run has.
        """
        if self.steps not in (STEPS, steps):
            raise ConfigError(
                f"optim.steps is {self.steps} and the run has {steps} (loop.steps), which its schedule goes by: say only --loop.steps {self.steps}"
            )
        if 0 < steps < self.warmup:
            raise ConfigError(
                f"a run of {steps} steps (loop.steps) ends before its warm-up of {self.warmup} (optim.warmup): "
                f"train longer, or warm up for less, say --optim.warmup {steps // 10}"
            )
        return dataclasses.replace(self, steps=max(1, steps), warmup=min(self.warmup, steps))


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Step → learning rate: linear to `lr` in `warmup` steps, then a half cosine to `final * lr` at `steps`."""
    cosine = optax.cosine_decay_schedule(config.lr, max(1, config.steps - config.warmup), config.final)
    if config.warmup == 0:
        return cosine
    # From lr / (warmup + 1), not 0: the first step would otherwise be spent on nothing.
    first = config.lr / (config.warmup + 1)
    return optax.join_schedules([optax.linear_schedule(first, config.lr, config.warmup), cosine], [config.warmup])


def make_optimizer(config: OptimConfig, params: Any) -> optax.GradientTransformation:
    """The optimizer of `config` for parameters with these names and shapes (`params` may be abstract).

    Raises ConfigError for layer decay of an encoder without layers, a `freeze` prefix that matches nothing, or `decoder_first` of a network
    without an encoder.
    """
    # Where arrays are frozen, their gradients are part of the norm that the step knows, and must not be of this one.
    parts = [clip_by_norm(config.clip, known=not config.freeze)] if config.clip is not None else []
    parts += [
        _direction(config, params),
        optax.add_decayed_weights(config.weight_decay, decay_mask(params)),
        optax.scale_by_learning_rate(learning_rate(config)),
    ]
    if config.layer_decay != 1.0 or config.freeze:
        parts.append(scale_by_tree(multipliers(config, params)))
    if config.decoder_first:
        parts.append(hold(in_encoder(params), config.decoder_first, config.warmup))
    if config.freeze:
        parts.insert(0, scale_by_tree(multipliers(OptimConfig(freeze=config.freeze), params)))
    return optax.chain(*parts)


def _direction(config: OptimConfig, params: Any) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(*config.betas)
    if not config.muon:
        return adam
    axes = muon_axes(params)
    hidden = jax.tree.map(lambda each: each is not None, axes, is_leaf=_is_axes)
    sizes = jax.tree.map(lambda each, leaf: _muon_size(leaf.shape, each), axes, params, is_leaf=_is_axes)
    # optax looks at arrays behind a mask as at nodes without leaves, and so must the axes.
    seen = jax.tree.map(lambda each: optax.MaskedNode() if each is None else each, axes, is_leaf=_is_axes)
    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=seen)
    return optax.chain(optax.masked(muon, hidden), optax.masked(adam, jax.tree.map(lambda each: not each, hidden)), scale_by_tree(sizes))


def _is_axes(entry: Any) -> bool:
    return entry is None or isinstance(entry, optax.contrib.MuonDimensionNumbers)


def _muon_size(shape: tuple[int, ...], axes: optax.contrib.MuonDimensionNumbers | None) -> np.float32:
    """What an orthogonal matrix of this shape is multiplied with, for a root mean square of `_MUON_RMS`."""
    if axes is None:
        return np.float32(1)
    inputs = math.prod(np.take(shape, axes.reduction_axis))
    return np.float32(_MUON_RMS * math.sqrt(max(inputs, shape[-1])))


def muon_axes(params: Any) -> Any:
    """Which axes of an array are a map's inputs and outputs, in the structure of `params`; None where Adam moves it.

    The last axis are outputs, those before it inputs (a convolution's window and channels in together), but for the leading axis of stacked
    blocks. Biases, norms, positions, tokens, layer scales, the embedding of patches, heads and convolutions of one channel (of an image, or
    depthwise) are Adam's.
    """
    decayed = dict(zip(array_names(params), jax.tree.leaves(decay_mask(params))))

    def axes(name: str, leaf: Any) -> Any:
        inputs = tuple(range(bool(_STACKED.search(name)), leaf.ndim - 1))
        if not decayed[name] or not inputs or leaf.shape[-2] == 1 or any(_ENDS.fullmatch(part) for part in name.split(".")):
            return None
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

    return _by_name(params, axes)


def clip_by_norm(limit: float, *, known: bool = True) -> optax.GradientTransformationExtraArgs:
    """Scale all updates so that their global norm is at most `limit`, as `optax.clip_by_global_norm`.

    A step that has the norm of its gradients hands it over (`update(…, grad_norm=…)`), which saves reading them all once more; with `known`
    False it is computed all the same. One product with one number becomes part of the moments' update; optax's form stores clipped gradients.
    """

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any) -> tuple[Any, Any]:
        norm = grad_norm if known and grad_norm is not None else global_norm(updates)
        factor = jnp.minimum(1.0, limit / norm)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiply each update by the array of the same place in `factors`, broadcast against it."""
    return optax.stateless(lambda updates, _: jax.tree.map(lambda update, factor: update * factor, updates, factors))


class HoldState(NamedTuple):
    """How many updates there have been."""

    count: jax.Array


def hold(held: Any, first: int, ramp: int) -> optax.GradientTransformation:
    """Updates of the arrays that are True in `held` are 0 for the `first` steps, and rise linearly to their full size in `ramp` steps more."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, HoldState]:
        factor = jnp.clip((state.count - first + 1) / (ramp + 1), 0.0, 1.0).astype(jnp.float32)
        return jax.tree.map(lambda each, stays: each * factor if stays else each, updates, held), HoldState(state.count + 1)

    return optax.GradientTransformation(lambda params: HoldState(jnp.zeros((), jnp.int32)), update)


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: no part of the array's name is that of a norm, bias, position table, token or layer scale."""
    return _by_name(params, lambda name, _: not any(_UNDECAYED.fullmatch(part) for part in name.split(".")))


def multipliers(config: OptimConfig, params: Any) -> Any:
    """The factor of each parameter's learning rate; for stacked blocks a vector over depth, `(depth, 1, ...)`, float32."""
    rates = decayed_rates(params, config.layer_decay) if config.layer_decay != 1.0 else {}
    still = jax.tree.leaves(frozen(params, config.freeze))
    factors = [np.float32(0) if stays else rates.get(name, np.float32(1)) for name, stays in zip(array_names(params), still)]
    return jax.tree.unflatten(jax.tree.structure(params), factors)


def _by_name(params: Any, function: Any) -> Any:
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [function(name, leaf) for name, leaf in zip(array_names(params), leaves)])
