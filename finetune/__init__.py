"""Fine-tuning a pretrained encoder for segmentation from few labels: a labelled store in, a model folder out."""
