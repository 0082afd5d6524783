"""4-D files whose volumes are a model's channels, in the order of its card. Called by `infer.folder`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxseg.data.cases import Case
from jaxseg.data.io.decoded import Rules
from jaxseg.data.io.scans import header_of
from jaxseg.errors import InputError


def volumes_in(path: Path, rules: Rules) -> int:
    """How many volumes a file holds, by its header: 1, or more in a 4-D one. InputError for a file that is no scan."""
    shape = header_of(path, rules).shape
    return shape[3] if len(shape) > 3 else 1


def unpacked(case: Case, channels: Sequence[str]) -> Case:
    """The case with its only file under each of `channels`, where that file is 4-D with just as many volumes and is called after none of them."""
    names = {name.lower() for name in channels}
    if len(channels) < 2 or len(case.images) != 1 or names & {name.lower() for name in case.images}:
        return case
    [path] = case.images.values()
    try:
        if volumes_in(path, case.rules) != len(channels):
            return case
    except InputError:
        return case  # whoever reads it says what is wrong with it
    return dataclasses.replace(case, images=dict.fromkeys(channels, path), packed=tuple(channels))
