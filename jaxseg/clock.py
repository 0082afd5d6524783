"""Seconds and peak memory of the stages of a main job, added up over interruptions. Used by `pipeline`."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxseg.files import read_json, write_json


class StageClock:
    """Keeps `{"seconds": {stage: seconds}, "peak_memory_gib": …}` in a JSON file, so that a job that goes on later still knows its whole cost."""

    def __init__(self, path: Path):
        self.path = path
        self.record = read_json(path) if path.is_file() else {"seconds": {}, "peak_memory_gib": 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what was spent before an interruption counts too."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self.record["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 3)
            self.record["peak_memory_gib"] = max(self.record["peak_memory_gib"], round(peak_memory_gib(), 3))
            write_json(self.path, self.record)

    @property
    def seconds(self) -> float:
        """All stages together."""
        return round(sum(self.record["seconds"].values()), 1)


def peak_memory_gib() -> float:
    """The largest resident size this process or one of its finished children has had, in GiB (Linux counts in KiB)."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
