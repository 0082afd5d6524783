"""A scan in, labels on the scan's own grid out. `sliding_window` is for any function of patches, `segment` for a model with its card."""

from jaxseg.infer.predict import predict_probabilities, segment
from jaxseg.infer.window import sliding_window

__all__ = ["predict_probabilities", "segment", "sliding_window"]
