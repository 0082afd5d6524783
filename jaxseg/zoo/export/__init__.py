"""Networks of ours in a peer's names and axes, so that nobody is locked in. Called by `jaxseg export-torch`."""
