"""The planned residual-encoder U-Net: nnU-Net's presets where those are known, thick slices left alone, crops that it can take."""

import math

import pytest

from finetune.few_label.resenc import plan_resenc
from jaxseg.errors import ConfigError
from jaxseg.models.unet import UNetConfig


def test_isotropic_crops_get_the_published_preset():
    assert plan_resenc((128, 128, 128), (1, 1, 1)) == UNetConfig.resenc_m()


def test_thick_slices_are_halved_once_the_others_are_as_thick():
    """nnU-Net's plan for Task005 prostate: spacing 0.625 x 0.625 x 3.6 mm, crops 256 x 320 x 20 (arXiv 1904.08128, table of plans)."""
    plan = plan_resenc((320, 256, 20), (0.625, 0.625, 3.6))
    assert plan.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))
    assert plan.kernels[:4] == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3))
    assert plan.features == (32, 64, 128, 256, 320, 320, 320)


@pytest.mark.parametrize("crop", [(32, 32, 32), (8, 8, 8), (18, 40, 24)])
def test_its_strides_divide_the_crop_and_leave_four_voxels(crop):
    strides = plan_resenc(crop, (2, 2, 2)).strides
    for size, factors in zip(crop, zip(*strides)):
        assert size % math.prod(factors) == 0
        assert size // math.prod(factors) >= 4


def test_a_crop_that_cannot_be_halved_is_refused():
    with pytest.raises(ConfigError, match="two stages or more"):
        plan_resenc((6, 6, 6), (1, 1, 1))
