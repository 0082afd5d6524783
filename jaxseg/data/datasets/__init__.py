"""Public datasets by name: readers of local copies, one file a family. Nothing is downloaded.

`list_datasets` and `open_dataset` are called by users, `prepare` and the command line; `check_dataset` says what a copy holds.
"""

from jaxseg.data.datasets.catalogue import find_dataset, list_datasets, open_dataset
from jaxseg.data.datasets.check import Checked, check_dataset
from jaxseg.data.datasets.dataset import Dataset, LocalCopy

__all__ = ["Checked", "Dataset", "LocalCopy", "check_dataset", "find_dataset", "list_datasets", "open_dataset"]
