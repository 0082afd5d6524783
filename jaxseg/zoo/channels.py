"""Pretrained arrays for other input channels. Called by `finetune.transfer`, and by users of `load_pretrained`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.errors import ConfigError


def adapt_channels(kernel: Any, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """The kernel of a stem for other channels: a patch embedding `(voxels * c, width)` or a convolution `(kx, ky, kz, voxels * c, out)`.

    A channel whose name the pretraining knew takes its own rows. One that it did not know takes the mean over the source's channels; where none
    is known (1 → N above all) that mean is divided so that N equal channels give the same output as before, as nnU-Net repeats a stem and divides.
    """
    kernel = np.asarray(kernel, np.float32)
    before, after = kernel.shape[:-2], kernel.shape[-1]
    rows = kernel.reshape(*before, -1, len(source), after)
    known = {name.lower(): index for index, name in enumerate(source)}
    shared = [name for name in target if name.lower() in known]
    stranger = rows.mean(-2) if shared else rows.sum(-2) / len(target)
    columns = [rows[..., known[name.lower()], :] if name.lower() in known else stranger for name in target]
    return np.stack(columns, axis=-2).reshape(*before, -1, after)


def adapt_stems(
    arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Sequence[str], target: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """`arrays` for a network of other input channels, and the names of those that were adapted.

    Args:
        arrays: of the pretrained network, by the names of `zoo.names`.
        shapes: that the new network expects (`zoo.names.param_shapes`), by the same names.
        source, target: names of the channels; kernels whose shapes differ by their numbers alone are stems.

    Raises ConfigError if channels are not named, each once.
    """
    for names in (source, target):
        if not names or len({name.lower() for name in names}) != len(names):
            raise ConfigError(f"channels are {', '.join(names) or 'none'}; expected at least one name, and each only once")
    adapted = [name for name, array in arrays.items() if name in shapes and _is_stem(array.shape, shapes[name], len(source), len(target))]
    return {name: adapt_channels(array, source, target) if name in adapted else array for name, array in arrays.items()}, adapted


def _is_stem(found: tuple[int, ...], wanted: tuple[int, ...], source: int, target: int) -> bool:
    if len(found) not in (2, 5) or len(found) != len(wanted) or found == wanted:
        return False
    others = (*found[:-2], found[-1]) == (*wanted[:-2], wanted[-1])
    return others and found[-2] % source == 0 and found[-2] // source * target == wanted[-2]
