"""The bench: jaxseg beside its peers, one process a contender. Not installed. Run: python -m bench [WORKLOAD ...]; `make bench`."""
