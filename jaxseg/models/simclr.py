"""SimCLR for 3D scans: two overlapping parts of a crop, seen differently, are told from those of every other scan. Trained by `pretrain`."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxseg.errors import ConfigError
from jaxseg.models.positions import Triple
from jaxseg.models.projected import ProjectedViT, cut_parts
from jaxseg.models.sample_keys import CORNERS, DROP_PATH, keys_for
from jaxseg.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class SimCLRConfig:
    """An encoder, the share of its crop's tokens along each axis that a view has (rounded up), the features' width and their temperature.

    What views are drawn from may be larger than the encoder's crop.
    """

    VARIANTS: ClassVar[dict[str, str]] = {}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    part: float = 0.75
    projection: int = 128
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not 0.5 <= self.part <= 1:
            raise ConfigError(f"part is {self.part}; expected 0.5 (views that may only touch) to 1 (whole crops)")
        if self.temperature <= 0 or self.projection < 1:
            raise ConfigError(f"temperature is {self.temperature} and projection {self.projection}; expected both above 0")

    @property
    def view(self) -> Triple:
        """Voxels of a view along x, y, z."""
        x, y, z = (math.ceil(self.part * grid) * token for grid, token in zip(self.encoder.grid, self.encoder.token))
        return x, y, z


class SimCLR(ProjectedViT):
    """Contrast between samples (Chen et al. 2020, https://arxiv.org/abs/2002.05709); `nt_xent` is its loss."""

    def __init__(self, config: SimCLRConfig, *, rngs: nnx.Rngs):
        super().__init__(config.encoder, config.projection, rngs=rngs)
        self.config = config

    def features(
        self,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b w"], Bool[Array, " b"]]:
        """Of a random part of each crop: the projected mean of its tokens, of length 1, float32, and whether it holds a voxel of `mask`.

        One key per sample draws the part and drop path.
        """
        self.encoder.grid_of(x)
        view = self.config.view
        origin = draw_corners(keys_for(keys, CORNERS), x.shape[1:4], view)
        dropped = keys_for(keys, DROP_PATH)
        return self.projected(cut_parts(x, origin, view), spacing, dropped), (cut_parts(mask, origin, view) > 0).any((1, 2, 3))


def draw_corners(keys: Key[Array, " b"], shape: tuple[int, ...], view: Triple) -> Int[Array, "b 3"]:
    """The lowest corner of a part of `view` voxels of each sample's crop, any voxel from which the part fits."""
    spare = jnp.asarray(shape) - jnp.asarray(view)
    return jax.vmap(lambda key: jax.random.randint(key, (3,), 0, spare + 1))(keys)


def nt_xent(
    asked: Float[Array, "a w"],
    known: Float[Array, "n w"],
    own: Int[Array, " a"],
    other: Int[Array, " a"],
    valid: Bool[Array, " n"],
    temperature: float,
) -> tuple[Array, Array]:
    """(sum, count) of the normalised temperature-scaled cross-entropy, equation 1 of https://arxiv.org/abs/2002.05709.

    Args:
        asked: features of length 1 that this device answers for.
        known: all features of the batch, those `asked` among them: what is not oneself or one's other view is a negative.
        own: the place of each of `asked` in `known`.
        other: the place of its other view.
        valid: which of `known` count at all; a feature counts only together with its other view.
    """
    likeness = asked @ known.T / temperature
    allowed = valid[None] & (jnp.arange(len(known))[None] != own[:, None])
    positive = jnp.take_along_axis(likeness, other[:, None], 1)[:, 0]
    # The positive is always allowed, so that no logarithm of an empty sum arises.
    allowed = allowed | (jnp.arange(len(known))[None] == other[:, None])
    loss = jax.nn.logsumexp(likeness, axis=1, where=allowed) - positive
    weight = (valid[own] & valid[other]).astype(jnp.float32)
    return jnp.sum(loss * weight), jnp.sum(weight)
