"""What an encoder learns from without labels: one file an objective, each with `make_loss(graph, …)` and its `OBJECTIVE`."""

from pretrain.objectives import anatomy, contrastive, latent, lesions, mae, mae_latent, simclr, simmim
from pretrain.objectives.objective import Anatomy, Contrast, Objective

__all__ = ["OBJECTIVES", "Anatomy", "Contrast", "Objective"]

OBJECTIVES: dict[str, Objective] = {
    "mae": mae.OBJECTIVE,
    "simmim": simmim.OBJECTIVE,
    "latent": latent.OBJECTIVE,
    "mae_latent": mae_latent.OBJECTIVE,
    "contrastive": contrastive.OBJECTIVE,
    "simclr": simclr.OBJECTIVE,
    "lesions": lesions.OBJECTIVE,
    "anatomy": anatomy.OBJECTIVE,
}
