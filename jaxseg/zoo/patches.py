"""A pretrained patch embedding for tokens of other sides. Called by `finetune.transfer`, and by users of `load_pretrained`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import ConfigError
from jaxseg.models.positions import Triple


def resample_patches(kernel: Any, source: Triple, target: Triple) -> np.ndarray:
    """The kernel `(voxels * c, width)` of a patch embedding for patches of `target` voxels instead of `source` (x, y, z).

    A patch is embedded as if it had first been resampled to `source` voxels (linearly, smoothed where that is fewer), which is folded into
    the kernel: a scan in voxels of half the size, in tokens of twice as many, gives nearly the tokens that the pretraining saw. A patch of one value
    gives exactly the same token. FlexiViT (Beyer et al. 2023, 2212.08013, section 3.4) resizes kernels for the same purpose, by a pseudo-inverse that
    undoes an enlargement of the patch; here the patch is brought back, so that nothing is magnified where it has fewer voxels.

    Raises ConfigError where `kernel` does not belong to patches of `source` voxels.
    """
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 2 or kernel.shape[0] % int(np.prod(source)):
        raise ConfigError(
            f"the patch embedding has the shape {kernel.shape}; expected (voxels * channels, width) of patches of {source} voxels"
        )
    rows = kernel.reshape(*source, -1, kernel.shape[1])
    for axis, (before, after) in enumerate(zip(source, target)):
        back = np.asarray(jax.image.resize(jnp.eye(after), (before, after), "linear"))
        rows = np.moveaxis(np.tensordot(back.T, rows, (1, axis)), 0, axis)
    return rows.reshape(-1, kernel.shape[1])
