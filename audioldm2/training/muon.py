"""Muon: an optimizer that moves every direction of a weight matrix at the same speed.

A gradient mostly lies in a few directions, those in which the output errs most. Muon replaces its momentum by
the nearest matrix whose singular values are all about 1, so that faint directions, such as the one that
separates one high tone from the next, move as far as strong ones. A small vocoder learns in hundreds of steps
what takes AdamW thousands.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the step size from
Liu et al. 2025 (arXiv 2502.16982), which makes learning rates comparable to AdamW's.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ_ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at 0, so that small singular values grow fastest
STEP_RMS = 0.2  # root mean square of AdamW's updates, in learning rates


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two or more dimensions; it flattens all dimensions after the first."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient; closures are not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
        nesterov = torch.lerp(gradient, mean, group["momentum"])
        direction = orthogonalize(nesterov.flatten(1))
        # The entries of an orthogonal matrix have an RMS of 1 / sqrt(longer side).
        size = STEP_RMS * max(direction.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(direction.view_as(parameter), alpha=group["lr"] * size)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximates the nearest semi-orthogonal matrix by Newton-Schulz iterations.

    Args:
        matrix: (rows, columns).

    Returns:
        A matrix of the same shape whose singular values lie between about 0.7 and 1.2.
    """
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(NEWTON_SCHULZ_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
