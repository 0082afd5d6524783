"""PyTorch's `.pt` and `.pth` files, read without PyTorch and without executing anything that they contain. Called by `zoo.weight_file`."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.zoo.torch_file.archive import read_archive
from jaxseg.zoo.torch_file.legacy import read_legacy
from jaxseg.zoo.torch_file.plain import plain

ZIP_MAGIC = b"PK\3\4"
PICKLE_MAGIC = b"\x80"


def read_torch_file(path: str | Path) -> Any:
    """The object that `torch.save` put in a file (zip or legacy form), tensors as read-only numpy arrays that view the mapped file.

    Dictionaries of any kind come back as `dict`, namespaces as `dict` of their attributes, devices and dtypes as text.
    Raises CheckpointError if the file is neither form, is damaged, or names anything but data; in that case nothing of it was executed.
    """
    where = str(path)
    data = np.memmap(path, np.uint8, "r")
    read = read_archive if data[:4].tobytes() == ZIP_MAGIC else read_legacy
    return plain(read(data, where), where, len(data))
