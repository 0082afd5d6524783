"""Semi-supervised companions of fine-tuning: what crops of unlabelled scans add to the loss, one method a file."""
