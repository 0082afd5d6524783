"""Settings of pretraining and fine-tuning derived from a store and a device's memory, in the manner of nnU-Net. Called by `jaxseg plan`.

The rules: tokens are about cubes in millimetres; a crop covers the median case, and gives up its longest axis until a step fits in
memory; what memory is left goes into the batch. `plan_file` writes the result down.
"""

import math
from dataclasses import dataclass

from jaxseg.data.store_facts import StoreFacts
from jaxseg.errors import ConfigError

Triple = tuple[int, int, int]

# (name, width, depth, heads) and from how many cases on a network of this size is worth its memory.
_SIZES = (("tiny", 192, 6, 3, 0), ("small", 384, 8, 6, 100), ("base", 768, 12, 12, 2000))
_SIDE = 8  # voxels of a token along the finest axis; 4 where a label is not even two such tokens wide
_FEWEST = 4  # tokens along an axis of a crop, unless the median case is smaller
_BATCH = (2, 16)  # the smallest that a step is planned for, and the largest
_FEATURES = {"tiny": 16, "small": 16, "base": 32}
_STRIDE = 2
_MARGIN = 1.25  # for what XLA keeps besides the arrays that are counted here


@dataclass(frozen=True)
class StorePlan:
    """What was planned. `crop`, `token` in voxels; `memory_gib` is the estimate for one fine-tuning step with this batch."""

    size: str
    width: int
    depth: int
    heads: int
    token: Triple
    crop: Triple
    batch: int
    feature: int
    stride: int
    pretrain_steps: int
    finetune_steps: int
    lr: float
    memory_gib: float


def plan_store(facts: StoreFacts, memory_gib: float) -> StorePlan:
    """The plan for a store on devices with `memory_gib` each.

    Raises:
        ConfigError: the memory is not positive, or not enough for the smallest crop and network.
    """
    if not memory_gib > 0:
        raise ConfigError(f"--memory-gib {memory_gib}: expected a positive number of GiB")
    budget = memory_gib * 2**30
    token = token_of(facts)
    worth = [size for size in _SIZES if facts.cases >= size[4]]
    for size, width, depth, heads, _ in reversed(worth):
        feature = _FEATURES[size]

        def need(crop: Triple, batch: int, width=width, depth=depth, heads=heads, feature=feature) -> float:
            return step_bytes(crop, token, batch, width, depth, heads, feature, len(facts.channels), facts.classes)

        crop = _fitting_crop(facts, token, lambda crop: need(crop, _BATCH[0]) <= budget)
        if crop is None:
            continue
        batch = max(n for n in range(_BATCH[0], _BATCH[1] + 1) if need(crop, n) <= budget)
        return StorePlan(
            size=size,
            width=width,
            depth=depth,
            heads=heads,
            token=token,
            crop=crop,
            batch=batch,
            feature=feature,
            stride=_STRIDE,
            pretrain_steps=_steps(facts.cases, batch, 200_000),
            finetune_steps=_steps(facts.labelled, batch, 50_000),
            lr=1e-3 if width < 384 else 5e-4 if width < 768 else 3e-4,
            memory_gib=round(need(crop, batch) / 2**30, 2),
        )
    raise ConfigError(
        f"{memory_gib} GiB are not enough for crops of {_FEWEST} tokens of {token} voxels an axis: plan for a larger device, or prepare the "
        "scans with a coarser --spacing"
    )


def token_of(facts: StoreFacts) -> Triple:
    """Voxels of a token: powers of two, about a cube in mm, smaller where a label is less than two tokens wide."""
    finest = min(facts.spacing)
    smallest = min(facts.label_ml.values(), default=math.inf)
    diameter = 2 * (3 * 1000 * smallest / (4 * math.pi)) ** (1 / 3) if smallest < math.inf else math.inf
    side = _SIDE if diameter >= 2 * _SIDE * finest else _SIDE // 2
    x, y, z = (max(1, 2 ** round(math.log2(side * finest / mm))) for mm in facts.spacing)
    return x, y, z


def step_bytes(
    crop: Triple, token: Triple, batch: int, width: int, depth: int, heads: int, feature: int, channels: int, classes: int
) -> float:
    """About the bytes of one fine-tuning step of a UNETR+ in float32, with recomputed blocks: counted from its arrays, then a margin.

    Parameters four times (weights, gradients, AdamW's two moments); each block's input, and one block's inner arrays with its attention; the
    convolutional path's arrays level by level (features double while voxels fall to an eighth); image and logits at full resolution.
    """
    voxels = math.prod(crop)
    tokens = math.prod(c // t for c, t in zip(crop, token))
    parameters = 12 * width**2 * depth + width * math.prod(token) * channels + 27 * 40 * feature**2
    transformer = tokens * width * (depth + 24) + 3 * heads * tokens**2
    fold = math.prod(min(_STRIDE, t) for t in token)
    levels = max(1, max(int(math.log2(t)) for t in token))
    convolutions = sum(30 * feature * 2**level * voxels / fold / 8**level for level in range(levels))
    full = voxels * (4 * channels + 6 * classes)
    return _MARGIN * 4 * (4 * parameters + batch * (transformer + convolutions + full))


def _fitting_crop(facts: StoreFacts, token: Triple, fits) -> Triple | None:
    """The largest crop (whole tokens) up to the median case that `fits`: the axis that is longest in mm gives way first."""
    tokens = [max(1, math.ceil(n / t)) for n, t in zip(facts.shape, token)]
    fewest = [min(_FEWEST, n) for n in tokens]
    while True:
        x, y, z = (n * t for n, t in zip(tokens, token))
        if fits((x, y, z)):
            return x, y, z
        free = [axis for axis in range(3) if tokens[axis] > fewest[axis]]
        if not free:
            return None
        tokens[max(free, key=lambda axis: tokens[axis] * token[axis] * facts.spacing[axis])] -= 1


def _steps(cases: int, batch: int, most: int) -> int:
    """Every case about 300 times, within bounds."""
    return int(min(most, max(1000, math.ceil(300 * cases / batch / 100) * 100)))
