"""Muon in PyTorch for kernels of convolutions, as `jaxseg.train.optim` has it (torch's own takes matrices alone). Used by `bench.anchor`."""

import math
from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS, _MOMENTUM, _RMS = 5, 0.95, 0.2


class Muon(torch.optim.Optimizer):
    """Moves each kernel along its momentum (Nesterov's) made orthogonal, sized as AdamW's updates, and shrinks it by `lr * weight_decay`.

    Args:
        kernels: (out, in, x, y, z), seen as a matrix of outputs and of all that goes into one.
        transposed: kernels of transposed convolutions, (in, out, x, y, z).
        lr, weight_decay: as AdamW's.
    """

    def __init__(self, kernels: Iterable[torch.Tensor], transposed: Iterable[torch.Tensor], *, lr: float, weight_decay: float):
        groups = [{"params": list(kernels), "outputs": 0}, {"params": list(transposed), "outputs": 1}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on the gradients that are there."""
        for group in self.param_groups:
            for kernel in group["params"]:
                state, gradient = self.state[kernel], kernel.grad
                state["step"] = count = state.get("step", 0) + 1
                state["mu"] = mu = _MOMENTUM * state.get("mu", torch.zeros_like(kernel)) + (1 - _MOMENTUM) * gradient
                ahead = _MOMENTUM * mu / (1 - _MOMENTUM ** (count + 1)) + (1 - _MOMENTUM) * gradient / (1 - _MOMENTUM**count)
                moved = ahead.movedim(group["outputs"], 0)
                update = _orthogonal(moved.flatten(1)).view(moved.shape).movedim(0, group["outputs"])
                kernel.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    rows, columns = x.shape
    x = x.T if rows > columns else x
    x = x / (x.norm() + 1e-8)
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = first * x + (second * square + third * square @ square) @ x
    return (x.T if rows > columns else x) * (_RMS * math.sqrt(max(rows, columns)))
