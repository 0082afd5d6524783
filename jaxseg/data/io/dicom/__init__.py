"""DICOM series to voxels; needs the extra `dicom`. Called by `jaxseg.data.io.scans`, which imports it only where there is DICOM."""

from jaxseg.data.io.dicom.read import Digest, beside, choose_series, decode_files, decode_path, find_series, header_of
from jaxseg.data.io.dicom.series import Series, describe_folder

__all__ = ["Digest", "Series", "beside", "choose_series", "decode_files", "decode_path", "describe_folder", "find_series", "header_of"]
