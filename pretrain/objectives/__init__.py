"""What an encoder learns from without labels: one file an objective, each with `make_loss(graph, …)`."""
