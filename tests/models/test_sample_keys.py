"""No draw of a pretraining model has a key that augmentation or an objective has, and the models draw with these."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.models import masking
from jaxseg.models.mae import MAEConfig
from jaxseg.models.masked_model import draw_masks
from jaxseg.models.sample_keys import CORNERS, DROP_PATH, MASK, PARTS, keys_for

KEYS = jax.random.split(jax.random.key(5), 3)


def test_each_draw_has_a_key_of_its_own():
    others = [*range(101), *range(2001, 2003), *range(3001, 3003)]  # of augmentation, "lesions" and "anatomy"
    keys = [np.asarray(jax.random.key_data(keys_for(KEYS, draw))) for draw in (*others, MASK, DROP_PATH, CORNERS, *range(PARTS, PARTS + 9))]
    assert len({tuple(row) for key in keys for row in key.tolist()}) == 3 * len(keys)


def test_masks_are_drawn_with_the_key_of_masks():
    body = jnp.ones((3, 64, 1))
    drawn = draw_masks(MAEConfig(), KEYS, (4, 4, 4), body)
    config = MAEConfig()
    expected = masking.draw(keys_for(KEYS, MASK), (4, 4, 4), config.mask_ratio, unit=config.mask_unit, body=body[..., 0] > 0)
    for ours, theirs in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
