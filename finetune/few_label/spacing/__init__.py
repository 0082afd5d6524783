"""The few-label study at other spacings than that of the pretraining. Run by `python -m finetune.few_label.spacing CONFIG`."""
