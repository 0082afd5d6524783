"""Self-supervised pretraining on unlabelled scans: a store in, an encoder in a model folder out."""
