"""The overlap of a part with the parts of a grid is that of voxels counted one by one, and cosines of it are what the loss asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import ConfigError
from jaxseg.models import ViTConfig
from jaxseg.models.places import PlacesConfig, cut_parts, draw_origins, grid_corners, overlaps

SIDE = (4, 2, 3)


def test_overlaps_are_counted_voxels():
    origin = np.asarray(draw_origins(jax.random.split(jax.random.key(0), 40), SIDE))
    assert (origin >= 0).all() and (origin <= SIDE).all() and (origin.max(0) == SIDE).all() and (origin.min(0) == 0).all()
    part = np.zeros((8, 4, 6), np.int32)
    for number, corner in enumerate(grid_corners(SIDE)):
        part[tuple(slice(c, c + s) for c, s in zip(corner, SIDE))] = number
    found = np.asarray(cut_parts(jnp.broadcast_to(part, (40, *part.shape)), jnp.asarray(origin), SIDE)).reshape(40, -1)
    counted = np.stack([(found == number).mean(1) for number in range(8)], 1)
    np.testing.assert_allclose(overlaps(jnp.asarray(origin), SIDE), counted, atol=1e-6)


def test_a_crop_that_does_not_split_in_two_is_refused():
    with pytest.raises(ConfigError, match="do not split in two"):
        PlacesConfig(encoder=ViTConfig(crop=(24, 16, 16), token=(8, 8, 8), width=24, heads=2))
