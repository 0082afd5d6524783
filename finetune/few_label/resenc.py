"""The residual-encoder U-Net that nnU-Net would plan for given crops and spacing: the baseline arm without a transformer. Called by `study`."""

from collections.abc import Sequence

from jaxseg.models.positions import Triple
from jaxseg.models.unet import UNetConfig

SMALLEST = 4  # voxels that an axis keeps at the coarsest stage
NEAR = 2.0  # axes whose spacing is within this factor of the finest are halved together
BASE, WIDEST = 32, 320
BLOCKS = (1, 3, 4, 6, 6, 6)


def plan_resenc(crop: Triple, spacing: Sequence[float]) -> UNetConfig:
    """ResEnc for crops of `crop` voxels at `spacing` mm; input channels and classes are still to be set.

    The rules of nnU-Net 2 (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, and arXiv 2404.09556): an axis is halved while it keeps 4 voxels and
    its spacing is within a factor of 2 of the finest axis that can still be halved; a kernel has size 1 along an axis that is coarser than
    that, until it no longer is. Unlike nnU-Net's, the crop is given: an axis of an odd size is not halved.

    Raises ConfigError if no axis can be halved.
    """
    sizes, spaces = list(crop), [float(space) for space in spacing]
    kernels, strides, kernel = [], [(1, 1, 1)], [1, 1, 1]
    while True:
        kernel = [3 if size == 3 or space / min(spaces) < NEAR else 1 for size, space in zip(kernel, spaces)]
        kernels.append(tuple(kernel))
        able = [axis for axis in range(3) if sizes[axis] >= 2 * SMALLEST and sizes[axis] % 2 == 0]
        finest = min((spaces[axis] for axis in able), default=0.0)
        halved = [axis for axis in able if spaces[axis] / finest < NEAR]
        if not halved or (len(halved) == 1 and sizes[halved[0]] < 3 * SMALLEST):
            break
        x, y, z = (2 if axis in halved else 1 for axis in range(3))
        strides.append((x, y, z))
        for axis in halved:
            sizes[axis] //= 2
            spaces[axis] *= 2
    kernels[-1] = (3, 3, 3)
    stages = len(strides)
    return UNetConfig(
        kind="residual",
        features=tuple(min(WIDEST, BASE * 2**stage) for stage in range(stages)),
        kernels=tuple(kernels),
        strides=tuple(strides),
        blocks=tuple(BLOCKS[min(stage, len(BLOCKS) - 1)] for stage in range(stages)),
        decoder_convs=(1,) * (stages - 1),
        crop=crop,
    )
