"""Where in a scan is this? Overlaps of a random part of a crop with the parts of a fixed grid, told from their features. Trained by `pretrain`."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxseg.errors import ShapeError
from jaxseg.models.positions import Triple
from jaxseg.models.projected import ProjectedViT, cut_parts
from jaxseg.models.sample_keys import CORNERS, PARTS, keys_for
from jaxseg.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class PlacesConfig:
    """An encoder, and the width of the features that are compared. Samples are cut in two along each axis, so they hold an even number of tokens."""

    VARIANTS: ClassVar[dict[str, str]] = {}

    encoder: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    projection: int = 128


class Places(ProjectedViT):
    """Position contrast as VoCo has it (CVPR 2024, https://arxiv.org/abs/2402.17300), inside each sample: no sample is another's negative.

    Two things differ from the paper. Its base crops are a 4 x 4 grid over the axial plane of a whole scan; here they are the eight parts of what
    is given, cut in two along each axis, be it one crop of the encoder or a larger region of a scan. The authors' code
    (github.com/Luffy03/VoCo, models/voco_head.py, 2024) replaces equation 3 by two losses, of parts that overlap and that do not, and takes the
    bases from a slow average of the network; here equation 3 stands as printed.
    """

    def __init__(self, config: PlacesConfig, *, rngs: nnx.Rngs):
        super().__init__(config.encoder, config.projection, rngs=rngs)
        self.config = config

    def loss(
        self,
        x: Float[Array, "b x y z c"],
        mask: Float[Array, "b x y z"],
        spacing: Float[Array, "b 3"] | None,
        keys: Key[Array, " b"],
    ) -> dict[str, tuple[Array, Array]]:
        """`{"position", "apart"}`: (sum, count) over the parts of the grid that hold body, in crops whose random part holds some.

        "position" is equation 3, -log(1 - |overlap - likeness|), of the random part with each of the grid, whose features get no gradient from it;
        "apart" is equation 5's mean over each two parts of the grid, of the likeness squared, which keeps features from being all one. Likeness is
        the cosine where it is positive, else 0, and squared in "apart", as in the authors' code. Their sum is the paper's loss. Air has no place:
        parts without a voxel of `mask` do not count. ShapeError if the tokens do not split in two.
        """
        grid = self.encoder.grid_of(x)
        if any(n % 2 for n in grid):
            raise ShapeError(f"a sample of {x.shape[1:4]} voxels has {grid} tokens, which do not split in two along every axis")
        side = tuple(n // 2 for n in x.shape[1:4])
        origin = draw_origins(keys_for(keys, CORNERS), side)
        places = [origin, *(jnp.broadcast_to(jnp.asarray(corner), origin.shape) for corner in grid_corners(side))]
        features = self.features(jnp.concatenate([cut_parts(x, place, side) for place in places]), spacing, keys)
        body = jnp.stack([(cut_parts(mask, place, side) > 0).any((1, 2, 3)) for place in places], 1).astype(jnp.float32)
        asked, known = features[:, 0], features[:, 1:]
        likeness = jax.nn.relu(jnp.einsum("bw,bgw->bg", asked, jax.lax.stop_gradient(known), precision="highest"))
        weight = body[:, :1] * body[:, 1:]
        mutual = jnp.square(jax.nn.relu(jnp.einsum("bgw,bhw->bgh", known, known)))
        pairs = jnp.triu(body[:, 1:, None] * body[:, None, 1:], 1)
        return {
            "position": (jnp.sum(position_loss(overlaps(origin, side), likeness) * weight), jnp.sum(weight)),
            "apart": (jnp.sum(mutual * pairs), jnp.sum(pairs)),
        }

    def features(
        self, parts: Float[Array, "k x y z c"], spacing: Float[Array, "b 3"] | None, keys: Key[Array, " b"]
    ) -> Float[Array, "b g w"]:
        """Projected means of the tokens of `parts` (groups of b samples, one after the other), each of length 1, float32; `keys` for drop path."""
        count = len(parts) // len(keys)
        spacing = None if spacing is None else jnp.tile(spacing, (count, 1))
        keys = jnp.concatenate([keys_for(keys, PARTS + number) for number in range(count)])
        projected = self.projected(parts, spacing, keys)
        return projected.reshape(count, -1, projected.shape[-1]).swapaxes(0, 1)


def position_loss(overlap: Float[Array, "b g"], likeness: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """Equation 3 of https://arxiv.org/abs/2402.17300 term by term; 1e-6, as in the authors' code, keeps it finite.

    A cosine that was rounded to more than 1 counts as 1.
    """
    return -jnp.log(jnp.maximum(1.0 - jnp.abs(overlap - likeness), 0.0) + 1e-6)


def grid_corners(side: tuple[int, ...]) -> np.ndarray:
    """The lowest corners `(8, 3)` of the parts of a crop that is cut in two along each axis, in voxels."""
    return np.stack(np.meshgrid(*((0, n) for n in side), indexing="ij"), -1).reshape(8, 3)


def draw_origins(keys: Key[Array, " b"], side: tuple[int, ...]) -> Int[Array, "b 3"]:
    """The lowest corner of a random part of each sample's crop, any voxel from which the part fits."""
    return jax.vmap(lambda key: jax.random.randint(key, (3,), 0, jnp.asarray(side) + 1))(keys)


def overlaps(origin: Int[Array, "b 3"], side: Triple | tuple[int, ...]) -> Float[Array, "b 8"]:
    """The share of the part at `origin` that lies in each part of the grid; shares of one sample add up to 1."""
    size = jnp.asarray(side, jnp.float32)
    shared = 1.0 - jnp.abs(origin[:, None].astype(jnp.float32) - jnp.asarray(grid_corners(tuple(side)), jnp.float32)) / size
    return jnp.prod(jnp.maximum(shared, 0.0), -1)
