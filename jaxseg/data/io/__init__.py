"""Scans in and out of files. `load_volume`, `load_label` and `read_grid` check what they read; `save_volume` writes whole or not at all."""

from jaxseg.data.io.dicom_seg import load_segmentation
from jaxseg.data.io.read import load_label, load_volume, read_grid
from jaxseg.data.io.rtstruct import load_contours
from jaxseg.data.io.scans import find_scans
from jaxseg.data.io.write import save_volume

__all__ = ["find_scans", "load_contours", "load_label", "load_segmentation", "load_volume", "read_grid", "save_volume"]
