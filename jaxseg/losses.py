"""Segmentation losses in float32, each `{term: (sum, count)}`. Training steps and periodic evaluation call them.

The caller divides: `mean(sum) / mean(count)` over samples, micro-batches and devices, so that a device without foreground changes nothing.
Counts come from targets alone. Two forms share every function:

* classes (default): `logits (b, x, y, z, k)` through softmax, `target (b, x, y, z)` integers `0 … k-1`, or `ignore`;
* regions (`regions=True`): overlapping classes through sigmoid, `target (b, x, y, z, k)` 0/1, or `ignore` for that voxel and region.

`valid (b, x, y, z)`, where given, leaves out further voxels. Voxels left out change neither value nor gradient, whatever their logits hold.
A target outside its range that is not `ignore` makes the loss NaN: under jit a loss cannot raise, and NaN stops a run where a wrong number
would not.
`weights` has one entry a class or region of `logits`, and every count is weighted with it, so that equal weights change nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Terms = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
Weights = Sequence[float] | Float[Array, "k"] | None

_SPACE = (1, 2, 3)


class _Prepared(NamedTuple):
    """Logits in float32 (0 where left out), the target as one 0/1 channel a class, and which entries count."""

    logits: Float[Array, "b x y z k"]
    target: Float[Array, "b x y z k"]
    valid: Float[Array, "b x y z k"]


def dice(
    logits: Float[Array, "b x y z k"],
    target: Int[Array, "b x y z *k"],
    *,
    ignore: int = 255,
    valid: Bool[Array, "b x y z"] | None = None,
    weights: Weights = None,
    regions: bool = False,
    batch: bool = False,
    axis: str | None = None,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Terms:
    """Soft Dice loss `1 - (2 tp + smooth) / (2 tp + fp + fn + smooth)` (Milletari et al. 2016, arXiv 1606.04797; MONAI's `DiceLoss`).

    Per sample (default): the sum runs over (sample, class) pairs, and the count is the number of pairs whose sample has a valid voxel. A
    class absent from a sample counts too: its loss is 0 where nothing of it is predicted, near 1 otherwise.
    `batch=True`: tp, fp and fn are pooled over the batch and over the devices of `axis` first (the name of pmap's or shard_map's axis; None
    with arrays that are global), and the pairs are classes. Gradients are then to be averaged over `axis`, as for every other loss.
    `include_background=False` leaves out class 0 of the softmax form.
    """
    return {"dice": _overlap_loss(logits, target, ignore, valid, weights, regions, batch, axis, include_background, (0.5, 0.5), smooth / 2)}


def tversky(
    logits: Float[Array, "b x y z k"],
    target: Int[Array, "b x y z *k"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    ignore: int = 255,
    valid: Bool[Array, "b x y z"] | None = None,
    weights: Weights = None,
    regions: bool = False,
    batch: bool = False,
    axis: str | None = None,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Terms:
    """Tversky loss `1 - (tp + smooth) / (tp + alpha fp + beta fn + smooth)` (Salehi et al. 2017, arXiv 1706.05721; MONAI's `TverskyLoss`).

    `beta > alpha` punishes missed voxels more than false ones. With `alpha = beta = 0.5` it is `dice` with twice the smooth term.
    Everything else is as in `dice`.
    """
    return {
        "tversky": _overlap_loss(logits, target, ignore, valid, weights, regions, batch, axis, include_background, (alpha, beta), smooth)
    }


def cross_entropy(
    logits: Float[Array, "b x y z k"],
    target: Int[Array, "b x y z *k"],
    *,
    ignore: int = 255,
    valid: Bool[Array, "b x y z"] | None = None,
    weights: Weights = None,
    regions: bool = False,
) -> Terms:
    """Cross-entropy summed over valid voxels, and their number (regions: binary cross-entropy over voxels and regions).

    Weighted, `sum(w[target] * ce) / sum(w[target])` as in PyTorch; in the regions form each region has its weight.
    """
    data = _prepare(logits, target, ignore, valid, regions)
    return {"cross_entropy": _weighted(_neg_log_likelihood(data, regions), data, weights, regions)}


def focal(
    logits: Float[Array, "b x y z k"],
    target: Int[Array, "b x y z *k"],
    *,
    gamma: float = 2.0,
    ignore: int = 255,
    valid: Bool[Array, "b x y z"] | None = None,
    weights: Weights = None,
    regions: bool = False,
) -> Terms:
    """Focal loss `(1 - p)^gamma * ce`, p the probability of the truth (Lin et al. 2017, arXiv 1708.02002). `gamma=0` is cross-entropy.

    Counted like `cross_entropy`: k times MONAI's `FocalLoss(use_softmax=True)`, which divides by the number of classes too, and equal to it
    in the regions form.
    """
    data = _prepare(logits, target, ignore, valid, regions)
    nll = _neg_log_likelihood(data, regions)
    # 1e-7 keeps the gradient of the power finite where the truth is certain and gamma < 1.
    return {"focal": _weighted(jnp.maximum(-jnp.expm1(-nll), 1e-7) ** gamma * nll, data, weights, regions)}


def dice_ce(logits: Float[Array, "b x y z k"], target: Int[Array, "b x y z *k"], **options: Any) -> Terms:
    """`dice` and `cross_entropy` as two terms, each with its own count; the step weights and adds them. Options as in `dice`."""
    shared = {name: options[name] for name in ("ignore", "valid", "weights", "regions") if name in options}
    return dice(logits, target, **options) | cross_entropy(logits, target, **shared)


def regions_from_labels(label: Int[Array, "*shape"], regions: Sequence[Sequence[int]], *, ignore: int = 255) -> Int[Array, "*shape k"]:
    """A label map as overlapping regions: channel i is 1 where the label is one of the values `regions[i]`, and `ignore` where the label
    is; uint8, or the label's own type for an `ignore` that uint8 does not hold."""
    label = jnp.asarray(label)
    kind = jnp.uint8 if 0 <= ignore <= 255 else label.dtype
    inside = jnp.stack([jnp.isin(label, jnp.asarray(list(values), label.dtype)) for values in regions], axis=-1)
    return jnp.where((label == ignore)[..., None], jnp.asarray(ignore, kind), inside.astype(kind))


def _prepare(logits: Array, target: Array, ignore: int, valid: Array | None, regions: bool) -> _Prepared:
    k = logits.shape[-1]
    wanted = logits.shape if regions else logits.shape[:-1]
    if target.shape != wanted:
        raise ValueError(f"target has shape {target.shape}; logits {logits.shape} with regions={regions} need {wanted}")
    counts = target != ignore
    if valid is not None:
        counts = counts & (valid.astype(bool)[..., None] if regions else valid.astype(bool))
    bad = counts & ((target < 0) | (target >= (2 if regions else k)))
    channels = (target == 1) if regions else (target[..., None] == jnp.arange(k))
    counts, bad = (counts, bad) if regions else (counts[..., None], bad[..., None])
    hot = jnp.where(bad, jnp.nan, (channels & counts).astype(jnp.float32))
    return _Prepared(jnp.where(counts, logits.astype(jnp.float32), 0.0), hot, jnp.broadcast_to(counts, logits.shape).astype(jnp.float32))


def _neg_log_likelihood(data: _Prepared, regions: bool) -> Array:
    """-log of the probability given to the truth: (b, x, y, z) for classes, (b, x, y, z, k) for regions."""
    if regions:
        return -jax.nn.log_sigmoid(data.logits) * data.target - jax.nn.log_sigmoid(-data.logits) * (1 - data.target)
    return -jnp.sum(jax.nn.log_softmax(data.logits) * data.target, axis=-1)


def _weighted(loss: Array, data: _Prepared, weights: Weights, regions: bool) -> tuple[Array, Array]:
    k = data.logits.shape[-1]
    weight = _weights(weights, k)
    per_entry = data.valid * weight if regions else jnp.sum(data.target * weight, axis=-1)
    return jnp.sum(loss * per_entry), jax.lax.stop_gradient(jnp.sum(per_entry))


def _weights(weights: Weights, k: int) -> Float[Array, "k"]:
    weight = jnp.ones(k, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    if weight.shape != (k,):
        raise ValueError(f"weights has shape {weight.shape}; logits have {k} channels, so it needs ({k},)")
    return weight


def _overlap_loss(
    logits: Array,
    target: Array,
    ignore: int,
    valid: Array | None,
    weights: Weights,
    regions: bool,
    batch: bool,
    axis: str | None,
    include_background: bool,
    alpha_beta: tuple[float, float],
    smooth: float,
) -> tuple[Array, Array]:
    data = _prepare(logits, target, ignore, valid, regions)
    probability = (jax.nn.sigmoid(data.logits) if regions else jax.nn.softmax(data.logits)) * data.valid
    first = 0 if regions or include_background else 1
    over = (0, *_SPACE) if batch else _SPACE
    sums = [jnp.sum(part, over)[..., first:] for part in (probability * data.target, probability, data.target, data.valid)]
    true, predicted, present, voxels = (_pool(part, axis) for part in sums) if batch and axis is not None else sums
    alpha, beta = alpha_beta
    score = (true + smooth) / (true + alpha * (predicted - true) + beta * (present - true) + smooth)
    weight = _weights(weights, logits.shape[-1])[first:] * (voxels > 0)
    return jnp.sum((1 - score) * weight), jax.lax.stop_gradient(jnp.sum(weight))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _pool(value: Array, axis: str) -> Array:
    """Sum over the devices of `axis`, with the derivative that the later *mean* of gradients over `axis` needs: the number of devices.

    Every device computes the same loss of the pooled sums, but differentiates it through its own part alone. The rule is written down
    because that of `psum` itself depends on whether shard_map tracks which values vary over the axis.
    """
    return jax.lax.psum(value, axis)


@_pool.defjvp
def _pool_jvp(axis: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return jax.lax.psum(primals[0], axis), tangents[0] * jax.lax.psum(1, axis)
