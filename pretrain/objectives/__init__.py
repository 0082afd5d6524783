"""What an encoder learns from without labels: one file an objective, each with `make_loss(graph, …)` and its `OBJECTIVE`."""

from pretrain.objectives import contrastive, latent, mae, simmim
from pretrain.objectives.objective import Objective

OBJECTIVES: dict[str, Objective] = {
    "mae": mae.OBJECTIVE,
    "simmim": simmim.OBJECTIVE,
    "latent": latent.OBJECTIVE,
    "contrastive": contrastive.OBJECTIVE,
}
