"""Brain-like heads with tumours, made from a seed: the demo's archive, and the tests' patients. numpy and scipy draw, nibabel writes."""

from jaxseg.data.phantom.archive import PhantomArchive, write_archive
from jaxseg.data.phantom.case import Phantom, make_case

__all__ = ["Phantom", "PhantomArchive", "make_case", "write_archive"]
