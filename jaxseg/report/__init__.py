"""Figures and one self-contained HTML page. It draws what it is given and knows neither data folders nor models."""

from jaxseg.report.figures import curve_figure, label_figure, overlay_figure, reconstruction_figure, score_figure
from jaxseg.report.page import Figure, Section, Table, Text, write_page

__all__ = [
    "Figure",
    "Section",
    "Table",
    "Text",
    "curve_figure",
    "label_figure",
    "overlay_figure",
    "reconstruction_figure",
    "score_figure",
    "write_page",
]
