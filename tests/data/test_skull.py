"""Skull stripping on heads whose truth is known, and what is no head is refused."""

import numpy as np
import pytest

from jaxseg.data.phantom.anatomy import INDEX
from jaxseg.data.phantom.case import make_case
from jaxseg.data.skull import brain_mask
from jaxseg.errors import InputError

TISSUE = [INDEX[name] for name in "grey white deep pallidum stem hyperintensity necrosis oedema enhancing".split()]
INSIDE = [*TISSUE, *(INDEX[name] for name in ("csf", "vessel", "choroid", "dura"))]


@pytest.mark.parametrize("channel", ["T1", "FLAIR"])
def test_most_of_the_brain_is_kept_and_most_of_the_rest_is_not(channel):
    phantom = make_case(0, spacing=(3.0, 3.0, 3.0), channels=(channel,))
    found = brain_mask(phantom.images[channel], (3.0, 3.0, 3.0))
    inside, tissue = np.isin(phantom.tissue, INSIDE), np.isin(phantom.tissue, TISSUE)
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.84
    assert found[tissue].mean() > 0.93


def test_what_is_no_head_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"brain of \d+ ml"):
        brain_mask(rng.normal(size=(16, 16, 16)).astype(np.float32) + 5, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="no head"):
        brain_mask(np.ones((16, 16, 16), np.float32), (1.0, 1.0, 1.0))
