"""Casts to 8 bits undone: a phantom's brain, wrapped as the mistake does it, comes back."""

import numpy as np
import pytest

from jaxseg.data.overflow import restore, wrap
from jaxseg.data.phantom import make_case
from jaxseg.data.phantom.anatomy import INDEX
from jaxseg.errors import InputError


@pytest.fixture(scope="session")
def brain():
    """Levels 0 to 255 of a stripped brain (x, y, z); the head's brightest voxel has 255."""
    case = make_case(3, channels=("T1",))
    image = case.images["T1"][10:76, 20:92, 24:72]
    inside = np.isin(case.tissue, [INDEX[name] for name in ("csf", "grey", "white")])[10:76, 20:92, 24:72]
    return np.where(inside, np.clip(np.rint(image / np.percentile(case.images["T1"], 99.9) * 255), 0, 255), 0).astype(np.uint8)


def test_wrap_is_what_a_cast_without_the_scale_does(brain):
    step = 6.149
    assert np.array_equal(wrap(brain, step), (brain * step).astype(np.int64).astype(np.uint8))


@pytest.mark.parametrize("step", [17.5146, 6.149])
def test_levels_come_back(brain, step):
    found = restore(wrap(brain, step))
    body = brain > 0
    assert found.step == pytest.approx(step, abs=2e-3)
    assert np.mean(found.levels[body] == brain[body]) > 0.985
    assert not found.levels[brain == 0][wrap(brain, step)[brain == 0] > 0].any()
    assert found.jumps < 0.03 and found.unsure < 0.1


def test_what_has_no_step_is_refused(brain):
    noise = np.where(brain > 0, np.random.default_rng(0).integers(1, 256, brain.shape), 0).astype(np.uint8)
    with pytest.raises(InputError, match="no step explains"):
        restore(noise)


def test_other_types_are_refused(brain):
    with pytest.raises(InputError, match="expected a 3-D scan of uint8"):
        restore(brain.astype(np.int16))
    with pytest.raises(InputError, match="too few"):
        restore(np.zeros((20, 20, 20), np.uint8))
