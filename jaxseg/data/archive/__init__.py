"""The index of an archive: one row a scan, what it is and whether it may be trained on. Called by the pipeline and `jaxseg index`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxseg.data.archive.index import index_archive
    from jaxseg.data.archive.patients import patient_key
    from jaxseg.data.archive.table import Index, read_index
    from jaxseg.data.archive.values import voxel_hash

__all__ = ["Index", "index_archive", "patient_key", "read_index", "voxel_hash"]
_HOMES = {"index_archive": "index", "patient_key": "patients", "Index": "table", "read_index": "table", "voxel_hash": "values"}


def __getattr__(name: str) -> Any:
    # Worker processes import single modules of this package: they must not wait for pyarrow, which only the table needs.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
