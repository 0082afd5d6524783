"""Patch embeddings for tokens of other sides: as if the patch had been resampled to the pretraining's voxels first."""

import jax
import numpy as np
import pytest

from jaxseg.errors import ConfigError
from jaxseg.zoo.patches import resample_patches


@pytest.mark.parametrize("source,target", [((4, 4, 4), (8, 8, 8)), ((4, 4, 4), (2, 2, 2)), ((4, 2, 8), (2, 4, 8)), ((4, 4, 4), (4, 4, 4))])
def test_a_patch_is_embedded_as_if_it_had_been_resampled_first(source, target):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(np.prod(source) * 2, 5)).astype(np.float32)
    patch = rng.normal(size=(*target, 2)).astype(np.float32)
    resampled = np.asarray(jax.image.resize(patch, (*source, 2), "linear"))
    np.testing.assert_allclose(
        patch.reshape(-1) @ resample_patches(kernel, source, target), resampled.reshape(-1) @ kernel, rtol=1e-4, atol=1e-4
    )


def test_a_kernel_of_other_patches_is_refused():
    for shape in ((65, 5), (4, 4, 4, 2, 5)):
        with pytest.raises(ConfigError, match="(?s)expected .*patches of"):
            resample_patches(np.zeros(shape), (4, 4, 4), (8, 8, 8))
