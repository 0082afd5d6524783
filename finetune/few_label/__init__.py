"""The few-label study: what a pretraining is worth when few cases are labelled. Run by `python -m finetune.few_label CONFIG`."""

from finetune.few_label.config import FewLabelConfig

__all__ = ["FewLabelConfig"]
