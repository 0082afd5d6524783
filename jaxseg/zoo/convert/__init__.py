"""Peers' checkpoints in our names and layouts: pure functions from a dictionary of numpy arrays to a config and a dictionary of arrays."""
