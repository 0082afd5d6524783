"""How much memory preparing a case will take, told from its headers before anything is loaded. Called by `staging`, which keeps within a limit."""

import math
import os

import numpy as np

from jaxseg.data.cases import Case
from jaxseg.data.io import read_grid
from jaxseg.data.recipe import Recipe
from jaxseg.errors import ConfigError

# Of float32 volumes of one channel, besides the scan as read and as stacked: what is filtered, masks, labels.
_NATIVE = 2
# Besides the channels on the working grid: the body's share of each voxel, masks, labels, slices on the way.
_WORKING = 2
# What ITK holds of every channel while it registers them or takes the bias field out.
_ITK = 4
_WORKER = 250 * 2**20  # an interpreter with numpy, scipy and nibabel


def estimated_bytes(case: Case, recipe: Recipe) -> int:
    """An upper estimate of the bytes that preparing `case` by `recipe` needs, a worker process included.

    Raises:
        InputError: a header cannot be read.
    """
    grids = [read_grid(path, case.rules) for path in dict.fromkeys(case.images.values())]
    channels = len(case.images)
    native = max(int(np.prod(grid.shape)) for grid in grids)
    # Fields of view in mm³: the working grid covers the first channel's, whatever its axes.
    working = max(np.prod(grid.shape) * np.prod(grid.spacing) for grid in grids) / np.prod(recipe.spacing)
    itk = _ITK if recipe.n4 or recipe.register else 0
    return round(_WORKER + 4 * (((2 + itk) * channels + _NATIVE) * native + (channels + _WORKING) * working))


def memory_limit(gib: float | None) -> int:
    """`gib` in bytes; by default four fifths of what the machine has free now (of all it has where it does not say). ConfigError unless it is positive."""
    if gib is not None and not 0 < gib < math.inf:
        raise ConfigError(f"memory_gib is {gib}: expected a positive number of GiB")
    if gib is not None:
        return round(gib * 2**30)
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf(name)
    meminfo = "/proc/meminfo"
    if os.path.isfile(meminfo):
        with open(meminfo, encoding="ascii") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        # Free pages leave out what the system's file cache would give back.
        available = int(fields.get("MemAvailable", f"{available // 1024} kB").split()[0]) * 1024
    return round(0.8 * available)
